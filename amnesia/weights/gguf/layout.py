"""Which GGUF models can be edited, and where they keep the rows that stand for columns of `ffn_down`.

In a gated MLP without bias, `down(act(gate(x)) * up(x))`, multiplying column j of `down` is the same as multiplying row
j of `up`. To support an architecture of that form, add one row to `FUSED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from amnesia.errors import CheckpointError
from amnesia.weights.gguf.blocks import scales_of
from amnesia.weights.gguf.container import GgufFile, GgufModel, GgufTensor


@dataclass(frozen=True)
class GgufShape:
    """Sizes of a model by its metadata; `first_row` is the row of `ffn_up` that belongs to neuron 0.

    That row is d_mlp where gate and up are fused in one tensor of 2 × d_mlp rows, gate first.
    """

    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    first_row: int


# Architectures by `general.architecture` (Mistral is called llama there), and whether gate and up are fused. In all of
# them `up` is multiplied by the activated gate and enters `down` without anything in between.
FUSED: Mapping[str, bool] = {
    "llama": False,
    "mistral3": False,
    "qwen2": False,
    "qwen3": False,
    "qwen3vl": False,
    "qwen35": False,
    "gemma": False,
    "gemma2": False,
    "gemma3": False,
    "gemma4": False,
    "phi3": True,
    "smollm3": False,
    "olmo2": False,
    "granite": False,
    "granitehybrid": False,
    "lfm2": False,
    "exaone4": False,
    "seed_oss": False,
    "hunyuan-dense": False,
    "ernie4_5": False,
    "glm4": True,
    "command-r": False,
    "cohere2": False,
    "stablelm": False,
}
NOT_GATED = (
    "apertus",
    "arcee",
    "bloom",
    "codeshell",
    "falcon",
    "gpt2",
    "gptj",
    "gptneox",
    "mpt",
    "nemotron",
    "phi2",
    "starcoder",
    "starcoder2",
)
_SIZE_KEYS = ("block_count", "embedding_length", "feed_forward_length")
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def gguf_shape(model: GgufModel) -> GgufShape:
    """Sizes of a model that can be edited.

    Raises CheckpointError for architectures without a gate or not known, adapters, mixtures of experts, and for files
    whose layers are not those that the metadata declare.
    """
    name = model.files[0].path.name
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{name} is of type {kind!r}, not a model: give the model's own .gguf file")
    if not any(file.tensors for file in model.files):
        raise CheckpointError(f"{name} holds a vocabulary and no weights: give the file of the model itself")
    architecture = model.metadata.get("general.architecture")
    if architecture in NOT_GATED:
        raise CheckpointError(
            f"{name} is a {architecture} model, whose MLP has no gate: a nonlinearity follows ffn_up, so that its rows "
            "cannot stand for columns of ffn_down; edit the safetensors model and convert it again"
        )
    if not isinstance(architecture, str) or architecture not in FUSED:
        raise CheckpointError(
            f"{name} has general.architecture = {architecture!r}: supported are {', '.join(FUSED)}; "
            "edit the safetensors model and convert it again"
        )
    sizes = [_size(model, f"{architecture}.{key}") for key in _SIZE_KEYS]
    if model.metadata.get(f"{architecture}.expert_count"):
        raise CheckpointError(f"{name} is a mixture of experts: edit the safetensors model and convert it again")
    layers = {int(match[1]) for _, tensor in model.tensors() if (match := _LAYER.match(tensor.name))}
    if len(layers) != sizes[0] or max(layers, default=-1) != sizes[0] - 1:
        raise CheckpointError(
            f"{name} declares {sizes[0]} layers, but has tensors of {len(layers)}: the file is damaged; fetch it again"
        )
    return GgufShape(architecture, *sizes, first_row=sizes[2] if FUSED[architecture] else 0)


def _size(model: GgufModel, key: str) -> int:
    value = model.metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = "no value" if value is None else str(value)
        raise CheckpointError(
            f"{model.files[0].path.name} has {found} for {key}: expected one positive number; "
            "edit the safetensors model and convert it again"
        )
    return value


def check_sizes(name: str, shape: GgufShape, expected: tuple[int, int, int]) -> None:
    """Raises CheckpointError unless (n_layers, d_model, d_mlp) are those `expected`; `name` is the file's."""
    found = (shape.n_layers, shape.d_model, shape.d_mlp)
    if found != expected:
        raise CheckpointError(
            f"{name} has (layers, d_model, d_mlp) = {found}, but the model that the edit is for has {expected}: "
            "give a quantization of that very model"
        )


def find_up(model: GgufModel, shape: GgufShape, layer: int) -> tuple[GgufFile, GgufTensor]:
    """`ffn_up.weight` of a layer and its file, after checking that the layer is a gated MLP of the declared sizes.

    Raises CheckpointError when a tensor is missing, has other sizes, or when `ffn_up` has a bias.
    """
    prefix = f"blk.{layer}.ffn_"
    fused = shape.first_row > 0
    expected: dict[str, tuple[int, ...] | None] = {
        "up.weight": (2 * shape.d_mlp if fused else shape.d_mlp, shape.d_model),
        "gate.weight": None if fused else (shape.d_mlp, shape.d_model),
        "down.weight": (shape.d_model, shape.d_mlp),
        # A bias would have to be multiplied as well; no supported architecture has one.
        "up.bias": None,
    }
    for suffix, sizes in expected.items():
        found = model.find(prefix + suffix)
        shape_found = None if found is None else found[1].shape
        if shape_found != sizes:
            state = f"has shape {shape_found}" if shape_found else "is missing"
            wanted = f"shape {sizes}" if sizes else "no such tensor"
            raise CheckpointError(
                f"{model.files[0].path.name}: {prefix}{suffix} {state}, expected {wanted} in a {shape.architecture} "
                "model: edit the safetensors model and convert it again"
            )
    up = model.find(prefix + "up.weight")
    assert up is not None
    scales_of(up[1].tensor_type, up[1].name)
    return up


def find_down(model: GgufModel, shape: GgufShape, layer: int) -> tuple[GgufFile, GgufTensor]:
    """`ffn_down.weight` of a layer and its file; raises CheckpointError when it is missing or has other sizes."""
    name = f"blk.{layer}.ffn_down.weight"
    found = model.find(name)
    if found is None or found[1].shape != (shape.d_model, shape.d_mlp):
        state = "is missing" if found is None else f"has shape {found[1].shape}"
        raise CheckpointError(
            f"{model.files[0].path.name}: {name} {state}, expected shape {(shape.d_model, shape.d_mlp)} in a "
            f"{shape.architecture} model: edit the safetensors model and convert it again"
        )
    return found
