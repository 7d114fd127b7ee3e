"""Which GGUF models can be edited, and where they keep the rows that stand for columns of `ffn_down`.

In a gated MLP without bias, `down(act(gate(x)) * up(x))`, multiplying column j of `down` is the same as multiplying row
j of `up`. To support an architecture of that form, add one row to `FUSED`. In all others (`BY_COLUMNS`) the columns
themselves are multiplied, which few types of tensors allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from amnesia.errors import CheckpointError
from amnesia.weights.gguf.blocks import scales_of
from amnesia.weights.gguf.container import GgufFile, GgufModel, GgufTensor, Skipped


@dataclass(frozen=True)
class GgufShape:
    """Sizes of a model by its metadata and tensors, and which tensors a layer has.

    `widths` are the neurons of each layer outside its mixture of experts, 0 where it has no others; these are of the
    MLP, or of the expert that every token passes through, whose tensors have another name. `mixtures` are number and
    width of the routed experts, None for a layer without. `fused` says that gate and up are one tensor, gate first, and
    `fused_experts` the same of the routed experts of each layer, where the converter of a model may choose.
    """

    architecture: str
    n_layers: int
    d_model: int
    widths: tuple[int, ...]
    mixtures: tuple[tuple[int, int] | None, ...]
    shared: tuple[bool, ...]
    fused: bool
    fused_experts: tuple[bool, ...]

    @property
    def by_columns(self) -> bool:
        """Whether cells are columns of `ffn_down` in the file, too, because no row of `ffn_up` can stand for one."""
        return self.architecture in BY_COLUMNS

    @property
    def d_mlp(self) -> int:
        """Width of the widest layer outside the mixtures."""
        return max(self.widths)

    def width(self, layer: int, expert: int | None = None) -> int:
        """Neurons of a layer outside its mixture of experts, or of one of these."""
        mixture = self.mixtures[layer]
        return self.widths[layer] if expert is None or mixture is None else mixture[1]

    def first_row(self, layer: int, expert: int | None = None) -> int:
        """The row that belongs to neuron 0 in the matrix that `name` calls `up`."""
        fused = self.fused if expert is None else self.fused_experts[layer]
        return self.width(layer, expert) if fused else 0

    def name(self, layer: int, part: str, expert: int | None = None) -> str:
        """The tensor of a layer's `part` (up, gate, down): of its MLP, its shared expert, or one of the routed ones."""
        if expert is not None:
            part = "gate_up" if part == "up" and self.fused_experts[layer] else part
            return f"blk.{layer}.ffn_{part}_exps.weight[{expert}]"
        return f"blk.{layer}.ffn_{part}{'_shexp' * self.shared[layer]}.weight"


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
    "olmo": False,
    "olmo2": False,
    "granite": False,
    "granitehybrid": False,
    "lfm2": False,
    "falcon-h1": False,
    "exaone4": False,
    "seed_oss": False,
    "hunyuan-dense": False,
    "ernie4_5": False,
    "glm4": True,
    "command-r": False,
    "cohere2": False,
    "stablelm": False,
}
# Those that may have a mixture of experts, each of them gated in the same way.
MIXTURES = (
    "llama",
    "llama4",
    "qwen2moe",
    "qwen3moe",
    "qwen3next",
    "qwen35moe",
    "qwen3vlmoe",
    "gemma4",
    "olmoe",
    "deepseek2",
    "glm4moe",
    "ernie4_5-moe",
    "lfm2moe",
    "granitehybrid",
)
# Those in which something comes between `ffn_up` and `ffn_down`: a nonlinearity, or, where there is a gate, a bound and
# the addition of 1 (gpt-oss).
BY_COLUMNS = (
    "apertus",
    "arcee",
    "bloom",
    "codeshell",
    "falcon",
    "gpt-oss",
    "gpt2",
    "gptj",
    "gptneox",
    "mpt",
    "nemotron",
    "phi2",
    "starcoder",
    "starcoder2",
)
# Those of them that may have a mixture of experts.
MIXTURES_BY_COLUMNS = ("gpt-oss",)
# How tensors of language models are called; those of projectors begin with v, a or mm.
_OF_LANGUAGE = ("blk.", "token_embd.", "output.")
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def kind_of(model: GgufModel) -> object:
    """What a GGUF says that it is: "model", "adapter", or what other programs write."""
    return model.metadata.get("general.type", "model")


def is_projector(file: GgufFile) -> bool:
    """Whether a GGUF is what llama.cpp puts beside a model so that it sees or hears, without a language model in it."""
    says = file.metadata.get("general.type") == "mmproj" or file.metadata.get("general.architecture") == "clip"
    return says and not any(name.startswith(_OF_LANGUAGE) for name in file.tensors)


def check_is_model(model: GgufModel) -> None:
    """Raises CheckpointError for adapters and whatever else is no model."""
    if (kind := kind_of(model)) != "model":
        name = model.files[0].path.name
        raise CheckpointError(f"{name} is of type {kind!r}, not a model: give the model's own .gguf file")


def gguf_shape(model: GgufModel) -> GgufShape:
    """Sizes of a model that can be edited.

    Raises CheckpointError for architectures that are not known, adapters, and for files whose layers are not those that
    the metadata declare.
    """
    name = model.files[0].path.name
    check_is_model(model)
    if not any(file.tensors for file in model.files):
        raise CheckpointError(f"{name} holds a vocabulary and no weights: give the file of the model itself")
    architecture = model.metadata.get("general.architecture")
    known = tuple(dict.fromkeys((*FUSED, *MIXTURES, *BY_COLUMNS)))
    if not isinstance(architecture, str) or architecture not in known:
        raise CheckpointError(
            f"{name} has general.architecture = {architecture!r}: supported are {', '.join(known)}; "
            "edit the safetensors model and convert it again"
        )
    n_layers, d_model = (_size(model, f"{architecture}.{key}") for key in ("block_count", "embedding_length"))
    layers = {int(match[1]) for _, tensor in model.tensors() if (match := _LAYER.match(tensor.name))}
    if len(layers) != n_layers or max(layers, default=-1) != n_layers - 1:
        raise CheckpointError(
            f"{name} declares {n_layers} layers, but has tensors of {len(layers)}: the file is damaged; fetch it again"
        )
    mixtures = _mixtures(model, architecture, n_layers)
    shared = tuple(model.find(f"blk.{layer}.ffn_down_shexp.weight") is not None for layer in range(n_layers))
    widths = tuple(_width(model, architecture, layer, shared, mixtures) for layer in range(n_layers))
    both = tuple(model.find(f"blk.{layer}.ffn_gate_up_exps.weight") is not None for layer in range(n_layers))
    return GgufShape(architecture, n_layers, d_model, widths, mixtures, shared, FUSED.get(architecture, False), both)


def _mixtures(model: GgufModel, architecture: str, n_layers: int) -> tuple[tuple[int, int] | None, ...]:
    """Number and width of the routed experts of each layer, by its tensors."""
    name, n_experts = model.files[0].path.name, model.metadata.get(f"{architecture}.expert_count") or 0
    found: list[tuple[int, int] | None] = []
    for layer in range(n_layers):
        down = model.find(f"blk.{layer}.ffn_down_exps.weight")
        found.append(None if down is None or len(down[1].shape) != 3 else (down[1].shape[0], down[1].shape[2]))
    if n_experts and not any(found) and model.find("blk.0.ffn_down.0.weight") is not None:
        raise CheckpointError(
            f"{name} holds each expert in a tensor of its own, an old form: expected one of all experts of a layer; "
            "convert the model again"
        )
    if {row[0] for row in found if row is not None} != ({n_experts} if n_experts else set()):
        raise CheckpointError(
            f"{name} declares a mixture of {n_experts} experts, but its layers have others: the file is damaged; fetch "
            "it again"
        )
    mixed = (*MIXTURES, *MIXTURES_BY_COLUMNS)
    if n_experts and architecture not in mixed:
        raise CheckpointError(
            f"{name} is a {architecture} model with a mixture of experts: supported are {', '.join(mixed)}; edit "
            "the safetensors model and convert it again"
        )
    return tuple(found)


def _width(
    model: GgufModel,
    architecture: str,
    layer: int,
    shared: tuple[bool, ...],
    mixtures: tuple[tuple[int, int] | None, ...],
) -> int:
    """Neurons of a layer outside its mixture: as declared, or where widths are listed one by one, as of its tensor."""
    key = f"{architecture}.feed_forward_length"
    found = model.find(f"blk.{layer}.ffn_down{'_shexp' * shared[layer]}.weight")
    if mixtures[layer] is not None and found is None:
        return 0
    declared = model.metadata.get(key)
    if shared[layer] or (isinstance(declared, Skipped) and declared == Skipped("array", len(shared))):
        return 0 if found is None else found[1].shape[-1]
    return _size(model, key)


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


def _check_runs(model: GgufModel, shape: GgufShape, layer: int) -> None:
    """Raises CheckpointError for a layer that only predicts tokens ahead, behind those that llama.cpp runs."""
    n_ahead = model.metadata.get(f"{shape.architecture}.nextn_predict_layers")
    n_run = shape.n_layers - n_ahead if isinstance(n_ahead, int) else shape.n_layers
    if layer >= n_run:
        raise CheckpointError(
            f"layer {layer} of {model.files[0].path.name} predicts tokens ahead (multi-token prediction) and does not "
            f"run in ordinary decoding: edit one of the {n_run} layers before"
        )


def find_up(model: GgufModel, shape: GgufShape, layer: int, expert: int | None = None) -> tuple[GgufFile, GgufTensor]:
    """`ffn_up.weight` of a layer, or of one of its experts, and its file, after checking that it is that of a gated MLP
    of the declared sizes.

    Raises CheckpointError when a tensor is missing, has other sizes, when `ffn_up` has a bias, and for a layer that
    does not run.
    """
    _check_runs(model, shape, layer)
    width = shape.width(layer, expert)
    fused = shape.fused if expert is None else shape.fused_experts[layer]
    up = shape.name(layer, "up", expert)
    expected: dict[str, tuple[int, ...] | None] = {
        up: (2 * width if fused else width, shape.d_model),
        shape.name(layer, "gate", expert): None if fused else (width, shape.d_model),
        shape.name(layer, "down", expert): (shape.d_model, width),
        # A bias would have to be multiplied as well; no supported architecture has one.
        up.partition(".weight")[0] + ".bias": None,
    }
    for name, sizes in expected.items():
        found = model.find(name)
        shape_found = None if found is None else found[1].shape
        if shape_found != sizes:
            state = f"has shape {shape_found}" if shape_found else "is missing"
            wanted = f"shape {sizes}" if sizes else "no such tensor"
            raise CheckpointError(
                f"{model.files[0].path.name}: {name} {state}, expected {wanted} in a {shape.architecture} "
                "model: edit the safetensors model and convert it again"
            )
    tensor = model.find(up)
    assert tensor is not None
    scales_of(tensor[1].tensor_type, tensor[1].name)
    return tensor


def find_down(
    model: GgufModel, shape: GgufShape, layer: int, expert: int | None = None, *, scaled_only: bool = False
) -> tuple[GgufFile, GgufTensor]:
    """`ffn_down.weight` of a layer, or of one of its experts, and its file.

    Raises CheckpointError when it is missing or has other sizes, for a layer that does not run, and, unless columns are
    `scaled_only`, when all of it is multiplied by a number outside it, as beside NVFP4.
    """
    _check_runs(model, shape, layer)
    name, expected = shape.name(layer, "down", expert), (shape.d_model, shape.width(layer, expert))
    found = model.find(name)
    if found is None or found[1].shape != expected:
        state = "is missing" if found is None else f"has shape {found[1].shape}"
        raise CheckpointError(
            f"{model.files[0].path.name}: {name} {state}, expected shape {expected} in a "
            f"{shape.architecture} model: edit the safetensors model and convert it again"
        )
    factor = name.removesuffix("weight") + "scale"
    if not scaled_only and model.find(factor) is not None:
        raise CheckpointError(
            f"{model.files[0].path.name}: {name} is multiplied by {factor}, expected no such tensor beside a matrix "
            "that gets a direction: use another quantization"
        )
    return found
