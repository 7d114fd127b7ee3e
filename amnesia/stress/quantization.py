"""Quantize the weights of a model in memory for a while, as its users will when they make it small.

One of the modules that change live models: whatever happens, every weight is what it was when the block ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import nn
from transformers.pytorch_utils import Conv1D

from amnesia.errors import InputError
from amnesia.live.model import LiveModel, weight_of

_BLOCK = 32
"""Weights of a row that share a scale in the types of `GGUF_TYPES`."""

GGUF_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types that are the same for all matrices but embeddings and head."""

MIXES: Mapping[str, str] = {"Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "Q3_K_M": "Q3_K", "Q2_K": "Q2_K"}
"""The mixtures of llama.cpp, each with the type of most matrices; `_mixed` says which are finer."""

_OUTER = "Q6_K"
"""What the mixtures store the head in, and embeddings that are the head, too."""

DYNAMIC, NF4 = "int8", "NF4"
METHODS: Mapping[str, str] = {
    DYNAMIC: "Dynamic int8 of torch: linear layers with 8-bit weights, one scale for a matrix, and 8-bit inputs.",
    "Q8_0": "GGUF Q8_0, all matrices.",
    **{
        name: f"GGUF {name}, all matrices but embeddings and head, which are Q8_0."
        for name in GGUF_TYPES
        if name != "Q8_0"
    },
    **{
        name: f"GGUF {name} as llama.cpp mixes it, by its own quantizer, without an importance matrix."
        for name in MIXES
    },
    NF4: "NF4 of bitsandbytes, linear layers in blocks of 64; embeddings and head stay.",
}

_NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes for rows that do not divide into blocks of a K type."""

_JOINED = (".qkv_proj", ".query_key_value", "attn.c_attn")
"""Queries, keys and values in one matrix."""

_OUTPUTS = (".o_proj", "attention.dense", "attn.c_proj")
"""What attention writes through."""

_NEEDED = {NF4: "bitsandbytes", **dict.fromkeys(MIXES, "xllamacpp")}


def obstacle(live: LiveModel, method: str) -> str | None:
    """Why a model cannot be quantized by a method of `METHODS`, or None when it can.

    Raises InputError for an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"unknown quantization {method!r}: expected one of {', '.join(METHODS)}")
    if any(parameter.is_meta for parameter in live.model.parameters()):
        return "part of the weights is not in memory"
    if live.shape.n_experts:
        return "the experts of a layer are one tensor in memory, which no method here takes apart"
    if method == DYNAMIC:
        if not hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic"):
            return f"torch {torch.__version__} has no dynamic quantization any more"
        if live.device.type != "cpu" or live.model.dtype != torch.float32:
            return f"dynamic int8 runs in float32 on a CPU, and the model is in {live.model.dtype} on {live.device}"
        if not any(type(module) is nn.Linear for module in live.model.base_model.modules()):
            return "the layers have no linear modules of torch"
    elif (package := _NEEDED.get(method)) is not None and importlib.util.find_spec(package) is None:
        return f"it is done by {package}: pip install 'amnesia[quantizers]'"
    elif not any(_row_length(module) % _BLOCK == 0 for module in _matrices(live).values()):
        return f"no matrix has rows of a multiple of {_BLOCK} weights"
    return None


def quantized(live: LiveModel, method: str) -> contextlib.AbstractContextManager[None]:
    """Let a model act with quantized weights while the block runs; see `METHODS` for what each method quantizes.

    Raises InputError where there is an `obstacle`.
    """
    if reason := obstacle(live, method):
        raise InputError(f"{live.name} cannot be quantized as {method}: {reason}")
    return _dynamic(live) if method == DYNAMIC else _rounded(live, method)


def rounded(matrix: np.ndarray, type_name: str) -> np.ndarray:
    """A float32 matrix (rows, columns) quantized row by row and dequantized again by the `gguf` package.

    What that package cannot quantize, the quantizer of llama.cpp does, which is in the package `xllamacpp`.
    """
    kind, matrix = GGMLQuantizationType[type_name], np.ascontiguousarray(matrix, dtype=np.float32)
    return dequantize(by_llama_cpp(matrix, kind) if type_name.endswith("_K") else quantize(matrix, kind), kind)


@functools.cache
def _bitsandbytes() -> Any:
    """`bitsandbytes.functional`, imported without the package `kernels`, with which it runs code from the Hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # It warns that the package is not there.
    own = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # ty: ignore[invalid-assignment]
    try:
        return importlib.import_module("bitsandbytes.functional")
    finally:
        del sys.modules["kernels"]
        if own is not None:
            sys.modules["kernels"] = own


def by_llama_cpp(matrix: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes (rows, bytes of a row) of a float32 matrix, by `ggml_quantize_chunk`."""
    block, size = GGML_QUANT_SIZES[kind]
    n_rows, n_columns = matrix.shape
    stored = np.empty((n_rows, n_columns // block * size), dtype=np.uint8)
    written = _quantize_chunk()(
        int(kind), matrix.ctypes.data, stored.ctypes.data, 0, n_rows, n_columns, None
    )  # No importance matrix.
    assert written == stored.nbytes, f"llama.cpp wrote {written} bytes of {stored.nbytes}"
    return stored


@functools.cache
def _quantize_chunk() -> Callable[..., int]:
    """`ggml_quantize_chunk(type, source, destination, start, rows, columns, importance)` of ggml.h."""
    found = importlib.import_module("xllamacpp.xllamacpp").__file__
    assert found is not None, "it is a shared library"
    function = ctypes.CDLL(found).ggml_quantize_chunk
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (ctypes.c_int, pointer, pointer, number, number, number, pointer)
    function.restype = ctypes.c_size_t
    return function


@contextlib.contextmanager
def _rounded(live: LiveModel, method: str) -> Generator[None]:
    """Every matrix as it comes back from a quantized file; rows that do not divide into blocks stay, as there."""
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    mixed = _mixed(live, method) if method in MIXES else {}
    try:
        for module in _matrices(live).values():
            weight = weight_of(module).data
            # Files store a row for each output, whatever the module does.
            rows = weight.T if isinstance(module, Conv1D) else weight
            new = _quantized(rows.float(), _type_of(live, module, method, mixed))
            if new is not None:
                saved.append((weight, weight.clone()))
                rows.copy_(new)
        yield
    finally:
        for weight, values in saved:
            weight.copy_(values)


def _quantized(rows: torch.Tensor, type_name: str | None) -> torch.Tensor | None:
    """A matrix after quantization, or None where it stays as it is."""
    if type_name == NF4:
        functional = _bitsandbytes()
        return functional.dequantize_4bit(*functional.quantize_4bit(rows.contiguous(), blocksize=64, quant_type="nf4"))
    if type_name is not None and rows.shape[1] % GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][0]:
        type_name = _NARROWER.get(type_name)
    if type_name is None or rows.shape[1] % _BLOCK:
        return None
    return torch.from_numpy(rounded(rows.cpu().numpy(), type_name))


def _type_of(live: LiveModel, module: nn.Module, method: str, mixed: Mapping[int, str]) -> str | None:
    """In which type a matrix is stored, None where it is not quantized."""
    is_outer = module in (live.model.get_input_embeddings(), live.model.get_output_embeddings())
    if method == NF4:
        return None if is_outer else NF4
    if method not in MIXES:
        return "Q8_0" if is_outer else method
    # Embeddings that are the head, too, are stored as the head is.
    is_head = weight_of(module) is weight_of(live.model.get_output_embeddings())
    return _OUTER if is_head else mixed.get(id(module), MIXES[method])


def _mixed(live: LiveModel, method: str) -> dict[int, str]:
    """The modules of layers that a mixture stores finer than most, each with its type (llama-quant.cpp)."""
    n, config = live.shape.n_layers, live.text_config
    n_heads = getattr(config, "num_attention_heads", 1)
    n_sharing = n_heads // (getattr(config, "num_key_value_heads", None) or n_heads)
    found = {}
    for layer in range(n):
        # The first eighth, the last eighth, and every third of those between.
        more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
        values, down, joined, output = {
            "Q2_K": ("Q4_K" if n_sharing >= 4 else "Q3_K", "Q3_K", "Q2_K", "Q3_K"),
            "Q3_K_M": ("Q5_K" if layer < 2 else "Q4_K", "Q5_K" if layer < n // 16 else "Q4_K", "Q4_K", "Q4_K"),
            "Q4_K_M": (*(("Q6_K", "Q6_K") if more else ("Q4_K", "Q4_K")), "Q5_K", "Q4_K"),
            "Q5_K_M": (*(("Q6_K", "Q6_K") if more else ("Q5_K", "Q5_K")), "Q6_K", "Q5_K"),
            "Q6_K": ("Q6_K",) * 4,
        }[method]
        ends = {".v_proj": values, **dict.fromkeys(_JOINED, joined), **dict.fromkeys(_OUTPUTS, output)}
        if live.shape.width(layer):
            found[id(live.out_proj(layer))] = down
        block = live.model.get_submodule(live.shape.layer_path(layer))
        for name, module in block.named_modules():
            found |= {id(module): kind for end, kind in ends.items() if name.endswith(end)}
    return found


@contextlib.contextmanager
def _dynamic(live: LiveModel) -> Generator[None]:
    """Every linear module replaced by torch's dynamically quantized one."""
    before = dict(live.model.named_modules())
    configured = {name for name, module in before.items() if hasattr(module, "qconfig")}
    try:
        with warnings.catch_warnings():
            # torch is moving this to another package, and says so with every call.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            # `obstacle` looks whether torch still has it.
            torch.ao.quantization.quantize_dynamic(  # ty: ignore[deprecated]
                live.model, {nn.Linear}, dtype=torch.qint8, inplace=True
            )
        yield
    finally:
        for name, module in before.items():
            if live.model.get_submodule(name) is not module:
                parent, _, child = name.rpartition(".")
                setattr(live.model.get_submodule(parent), child, module)
            if name not in configured and hasattr(module, "qconfig"):
                del module.qconfig


def _matrices(live: LiveModel) -> dict[int, nn.Module]:
    """The modules whose weight is a matrix that a GGUF file quantizes, by the weight, which two of them may share."""
    found: dict[int, nn.Module] = {}
    embeddings = live.model.get_input_embeddings()
    for module in live.model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) or module is embeddings:
            found.setdefault(weight_of(module).data_ptr(), module)
    return found


def _row_length(module: nn.Module) -> int:
    return weight_of(module).shape[0 if isinstance(module, Conv1D) else 1]
