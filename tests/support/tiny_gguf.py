"""Small GGUF files for tests, written by the `gguf` package, and random blocks of any tensor type."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, RopeScalingType
from gguf.quants import dequantize, quantize
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Rows of 256 values hold whole blocks of every type.
D_MODEL, D_MLP, N_LAYERS = 256, 12, 2

MODEL_ARCH_BY_NAME = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
QUANTIZABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")


@functools.cache
def random_rows(tensor_type: GGMLQuantizationType, n_rows: int, n_columns: int, seed: int) -> np.ndarray:
    """Rows of valid data with finite values: uint8 of shape (n_rows, row_bytes), which are not written to.

    Quantized from normal numbers where the package can, else random bytes. Blocks that dequantize to something that
    is not finite or has no size are drawn again, so that this does not need to know where the scales are.
    """
    rng = np.random.default_rng(seed)
    block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if tensor_type.name in QUANTIZABLE:
        numbers = rng.normal(size=(n_rows, n_columns)).astype(np.float32)
        return _kept(quantize(numbers, tensor_type).view(np.uint8).reshape(n_rows, -1))
    blocks = np.zeros((n_rows * n_columns // block_size, block_bytes), dtype=np.uint8)
    bad = np.ones(len(blocks), dtype=bool)
    while bad.any():
        blocks[bad] = rng.integers(0, 256, size=(int(bad.sum()), block_bytes), dtype=np.uint8)
        with np.errstate(all="ignore"):
            size = np.abs(dequantize(blocks, tensor_type)).max(axis=1)
        bad = ~((size > 1e-2) & (size < 1e4))
    return _kept(blocks.reshape(n_rows, -1))


def _kept(rows: np.ndarray) -> np.ndarray:
    rows.setflags(write=False)
    return rows


def write_gguf(
    path: Path,
    ffn_up: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    arch: str = "llama",
    metadata: Mapping[str, int] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    omit: tuple[str, ...] = (),
    parts: int = 1,
    n_rows: int | None = None,
    general_type: str | None = "model",
    alignment: int | None = None,
    ffn_down: GGMLQuantizationType = GGMLQuantizationType.F32,
    d_mlp: int = D_MLP,
    experts: tuple[int, int] | None = None,
    fuse_experts: bool = False,
    widths: tuple[int, ...] = (),
) -> Path:
    """A file with the MLP tensors of a model of `arch`, in `parts` parts; returns the path of the first.

    `ffn_up` and `ffn_down` are types of these tensors, `metadata` overrides sizes, `extra` adds F32 tensors, `omit` leaves tensors out. With `experts` (number and width) each layer has a mixture, too,
    of the same types, with `fuse_experts` gate and up as one tensor; `widths` are those of the layers, one by one.
    """
    writer = GGUFWriter(path, arch, split_max_tensors=-(-(N_LAYERS * 4 + 1) // parts) if parts > 1 else 0)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    if general_type is not None:
        writer.add_type(general_type)
    sizes = {"embedding_length": D_MODEL, "feed_forward_length": d_mlp, "block_count": N_LAYERS}
    if widths:
        del sizes["feed_forward_length"]
        writer.add_array(f"{arch}.feed_forward_length", list(widths))
    if experts is not None:
        sizes["expert_count"] = experts[0]
    sizes |= metadata or {}
    for key, value in sizes.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"token{index}" for index in range(50)])
    writer.add_string("tokenizer.chat_template", "x" * 5000)
    rng = np.random.default_rng(7)
    tensors = {"token_embd.weight": rng.normal(size=(50, D_MODEL)).astype(np.float32)}
    for layer in range(N_LAYERS):
        d_mlp = widths[layer] if widths else d_mlp
        if experts is not None:
            n, width = experts
            both = [("gate_up", 2 * width)] if fuse_experts else [("up", width), ("gate", width)]
            for part, rows, columns in (*((part, rows, D_MODEL) for part, rows in both), ("down", D_MODEL, width)):
                kind = {"gate": GGMLQuantizationType.F32, "down": ffn_down}.get(part, ffn_up)
                data = random_rows(kind, n * rows, columns, seed=layer + 20).reshape(n, rows, -1)
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", data, raw_dtype=kind)
        tensors[f"blk.{layer}.ffn_norm.weight"] = rng.normal(size=D_MODEL).astype(np.float32)
        tensors[f"blk.{layer}.ffn_gate.weight"] = rng.normal(size=(d_mlp, D_MODEL)).astype(np.float32)
        up = f"blk.{layer}.ffn_up.weight"
        if up not in omit:
            writer.add_tensor(up, random_rows(ffn_up, n_rows or d_mlp, D_MODEL, seed=layer), raw_dtype=ffn_up)
        down = f"blk.{layer}.ffn_down.weight"
        if down not in omit:
            writer.add_tensor(down, random_rows(ffn_down, D_MODEL, d_mlp, seed=layer + 10), raw_dtype=ffn_down)
    for name, values in {**tensors, **(extra or {})}.items():
        if name not in omit:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}*.gguf"))


def _start(path: Path, model: PreTrainedModel, arch: str) -> GGUFWriter:
    config = model.config
    writer = GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(f"tiny {arch}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"])
    writer.add_rope_dimension_count(_head_dim(config))
    _add_scaling(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    return writer


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_scaling(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """The rotary scaling of a configuration, where llama.cpp's converter puts it."""
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if rope["rope_type"] == "llama3":
        width = _head_dim(config)
        whole = rope["rope_theta"] ** -(torch.arange(0, width, 2) / width)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        writer.add_tensor("rope_freqs.weight", (whole / scaled).numpy())
    elif rope["rope_type"] == "longrope":
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _finish(writer: GGUFWriter, path: Path, model: PreTrainedModel, tensor_type: GGMLQuantizationType) -> Path:
    names = get_tensor_name_map(MODEL_ARCH_BY_NAME[writer.arch], model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        n_heads = heads.get(name.split(".")[-2]) if writer.arch == "llama" else None
        if n_heads is not None:
            # Llama files interleave the two halves of each head, for the other convention of rotary embeddings.
            values = values.reshape(n_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if writer.arch == "gemma3" and name.endswith("norm.weight"):
            # Gemma multiplies by 1 + weight, and its files hold the sum.
            values = values + 1
        kind = tensor_type if values.ndim == 2 else GGMLQuantizationType.F32
        target = names.get_name(name, try_suffixes=(".weight",))
        data = quantize(np.ascontiguousarray(values), kind) if values.shape[-1] % 32 == 0 else values
        writer.add_tensor(target, data, raw_dtype=kind if values.shape[-1] % 32 == 0 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_gguf(
    path: Path,
    model: PreTrainedModel,
    tensor_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A tiny Llama model converted as llama.cpp does; rows that are no whole blocks stay F32.

    `tokenizer` is a byte-level one, which goes into the file.
    """
    writer = _start(path, model, "llama")
    if tokenizer is not None:
        rows = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(rows["vocab"], key=rows["vocab"].__getitem__))
        writer.add_token_merges([" ".join(pair) for pair in rows["merges"]])
    return _finish(writer, path, model, tensor_type)


def phi3_gguf(path: Path, model: PreTrainedModel) -> Path:
    """A tiny Phi-3 model, whose `gate_up_proj` becomes one `ffn_up` of twice the rows, gate first."""
    return _finish(_start(path, model, "phi3"), path, model, GGMLQuantizationType.F32)


def gemma3_gguf(path: Path, model: PreTrainedModel) -> Path:
    """A tiny Gemma 3 model, in which a norm follows the MLP."""
    writer = _start(path, model, "gemma3")
    writer.add_key_length(model.config.head_dim)
    writer.add_value_length(model.config.head_dim)
    writer.add_sliding_window(model.config.sliding_window)
    return _finish(writer, path, model, GGMLQuantizationType.F32)
