"""Quantize the weights of a model in memory for a while, as its users will when they make it small.

One of the modules that change live models: whatever happens, every weight is what it was when the block ends.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import nn
from transformers.pytorch_utils import Conv1D

from amnesia.errors import InputError
from amnesia.live.model import LiveModel, weight_of

BLOCK = 32
"""Weights of a row that share a scale in the types of `GGUF_TYPES`."""

GGUF_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""What the `gguf` package can write; it cannot write the K types."""

DYNAMIC = "int8"
METHODS: Mapping[str, str] = {
    DYNAMIC: "Dynamic int8 of torch: linear layers with 8-bit weights, one scale for a matrix, and 8-bit inputs.",
    "Q8_0": "GGUF Q8_0, all matrices.",
    **{
        name: f"GGUF {name}, all matrices but embeddings and head, which are Q8_0."
        for name in GGUF_TYPES
        if name != "Q8_0"
    },
}


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
    elif not any(_row_length(module) % BLOCK == 0 for module in _matrices(live).values()):
        return f"no matrix has rows of a multiple of {BLOCK} weights"
    return None


def quantized(live: LiveModel, method: str) -> contextlib.AbstractContextManager[None]:
    """Let a model act with quantized weights while the block runs; see `METHODS` for what each method quantizes.

    Raises InputError where there is an `obstacle`.
    """
    if reason := obstacle(live, method):
        raise InputError(f"{live.name} cannot be quantized as {method}: {reason}")
    return _dynamic(live) if method == DYNAMIC else _rounded(live, method)


def rounded(matrix: np.ndarray, type_name: str) -> np.ndarray:
    """A float32 matrix (rows, columns) quantized row by row and dequantized again, both by the `gguf` package."""
    kind = GGMLQuantizationType[type_name]
    return dequantize(quantize(np.ascontiguousarray(matrix, dtype=np.float32), kind), kind)


@contextlib.contextmanager
def _rounded(live: LiveModel, method: str) -> Generator[None]:
    """Every matrix as it comes back from a GGUF file; rows that do not divide into blocks stay, as in such a file."""
    outer = {id(live.model.get_input_embeddings()), id(live.model.get_output_embeddings())}
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for module in _matrices(live).values():
            if _row_length(module) % BLOCK:
                continue
            weight = weight_of(module).data
            saved.append((weight, weight.clone()))
            # GGUF stores a row for each output, whatever the module does.
            rows = weight.T if isinstance(module, Conv1D) else weight
            new = torch.from_numpy(rounded(rows.float().cpu().numpy(), "Q8_0" if id(module) in outer else method))
            rows.copy_(new)
        yield
    finally:
        for weight, values in saved:
            weight.copy_(values)


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
