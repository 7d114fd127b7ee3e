"""Where each architecture keeps its MLP. To support an architecture, add one row to `LAYOUTS`.

A row has names alone. Which of them a model has, under which prefix and how wide, is found by looking: in the headers
of its files, or among the parameters in memory. Both are asked by a `Sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from amnesia.errors import LayoutError, clipped

Sizes = Callable[[str], tuple[int, ...] | None]
"""Shape of the tensor of a name, None where there is none."""

TEXT_CONFIG = "text_config"
"""Where the configuration of a model that takes images, too, keeps that of its language model."""

MULTIMODAL = "model.language_model."
"""What comes before `layers` in the model that takes images, too, as transformers 5 builds and saves it."""
PREFIXES = (MULTIMODAL, "language_model.model.", "model.", "")
"""Files of the same model have one of these, or the row's own, before `layers`: as transformers 5 saves a multimodal
model, as others are on the Hub, as a plain language model is saved, and as the model without its head is."""

# The output projections of what mixes tokens, of which a layer has one: full and linear attention, convolution.
_MIXERS = ("self_attn.o_proj", "self_attn.out_proj", "linear_attn.out_proj", "conv.out_proj", "mamba.out_proj")


@dataclass(frozen=True)
class ExpertLayout:
    """Where the layers with a mixture of experts keep the output projections of their routed experts.

    `fused` are names of the tensor below the layer in which transformers 5 keeps all of them in memory, and of what
    files call it: (n_experts, d_model, d_mlp), with `neuron_axis` 0 (n_experts, d_mlp, d_model), with None one of both,
    which the sizes tell. `out_proj` is the module path below the layer, with `{expert}`, under which files hold each
    expert's matrix (d_model, d_mlp) instead.
    """

    fused: tuple[str, ...] = ("mlp.experts.down_proj",)
    out_proj: str | None = "mlp.experts.{expert}.down_proj"
    neuron_axis: int | None = 1


@dataclass(frozen=True)
class MlpLayout:
    """Names and orientation of the MLP output projection of one architecture.

    `out_proj` are module paths below a layer, of which each layer has one, or none where it has `experts` alone: that
    of its MLP, or of the expert that every token passes through. `neuron_axis` is the axis of the stored weight that is
    indexed by neurons: 1 for `nn.Linear` (d_model, d_mlp), 0 for GPT-2's `Conv1D` (d_mlp, d_model). `prefix` comes
    before `layers` in the model that `auto_class` of transformers builds; adapters name modules by it. `mixers` are
    paths of the output projections of attention, or of what stands in its place; a layer has at least one.
    """

    model_type: str
    out_proj: tuple[str, ...] = ("mlp.down_proj",)
    prefix: str = "model."
    layers: str = "layers"
    neuron_axis: int = 1
    mixers: tuple[str, ...] = _MIXERS
    n_layers_key: str = "num_hidden_layers"
    d_model_key: str = "hidden_size"
    experts: ExpertLayout | None = None
    auto_class: str = ""

    def __post_init__(self) -> None:
        usual = "AutoModelForImageTextToText" if self.takes_images else "AutoModelForCausalLM"
        object.__setattr__(self, "auto_class", self.auto_class or usual)

    @property
    def takes_images(self) -> bool:
        """Whether the language model is a part of one that takes images, too."""
        return self.prefix == MULTIMODAL

    def below(self, prefix: str, layer: int) -> str:
        """What the names of all that belongs to a layer begin with, for example `model.layers.2.`."""
        return f"{prefix}{self.layers}.{layer}."


_EXPERTS = ExpertLayout()
_GEMMA_EXPERTS = ExpertLayout(("experts.down_proj",), None)
_LLAMA4 = ("feed_forward.down_proj", "feed_forward.shared_expert.down_proj")
_LLAMA4_EXPERTS = ExpertLayout(("feed_forward.experts.down_proj",), None, neuron_axis=0)
_QWEN = ("mlp.down_proj", "mlp.shared_expert.down_proj")
_DEEPSEEK = ("mlp.down_proj", "mlp.shared_experts.down_proj")

# All that the row of such a type says is its name: the output projection is `model.layers.N.mlp.down_proj`, an
# ordinary linear one (also where gate and up are fused).
_USUAL = (
    "llama mistral qwen2 qwen3 qwen3_5_text gemma gemma2 gemma3_text gemma4_unified_text ministral3 phi3 smollm3 "
    "olmo olmo2 olmo3 granite exaone4 seed_oss hunyuan_v1_dense ernie4_5 glm glm4 cohere cohere2 stablelm "
    "nemotron arcee apertus"
).split()

LAYOUTS: Mapping[str, MlpLayout] = {
    row.model_type: row
    for row in (
        *map(MlpLayout, _USUAL),
        # An Auto class builds the language model alone, too, but vLLM serves the whole, and finds its modules alone.
        MlpLayout("qwen3_5", prefix=MULTIMODAL),
        MlpLayout("qwen3_vl", prefix=MULTIMODAL),
        # Released files hold experts as (n_experts, d_mlp, d_model); transformers 5 saves them the other way round.
        MlpLayout("qwen3_vl_moe", prefix=MULTIMODAL, experts=ExpertLayout(out_proj=None, neuron_axis=None)),
        MlpLayout("gemma3", prefix=MULTIMODAL),
        MlpLayout("gemma4", prefix=MULTIMODAL, experts=_GEMMA_EXPERTS),
        MlpLayout("gemma4_text", experts=_GEMMA_EXPERTS),
        MlpLayout("gemma4_unified", prefix=MULTIMODAL),
        MlpLayout("mistral3", prefix=MULTIMODAL),
        MlpLayout("phi", ("mlp.fc2",), mixers=("self_attn.dense",)),
        MlpLayout(
            "granitemoehybrid",
            ("shared_mlp.output_linear",),
            experts=ExpertLayout(("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"), None),
        ),
        MlpLayout("lfm2", ("feed_forward.w2",)),
        MlpLayout("falcon_h1", ("feed_forward.down_proj",)),
        MlpLayout("starcoder2", ("mlp.c_proj",)),
        MlpLayout("gpt_neox", ("mlp.dense_4h_to_h",), prefix="gpt_neox.", mixers=("attention.dense",)),
        MlpLayout(
            "gpt2",
            ("mlp.c_proj",),
            prefix="transformer.",
            layers="h",
            neuron_axis=0,
            mixers=("attn.c_proj",),
            n_layers_key="n_layer",
            d_model_key="n_embd",
        ),
        MlpLayout("gpt_oss", experts=ExpertLayout(out_proj=None, neuron_axis=0)),
        MlpLayout("mixtral", experts=ExpertLayout(out_proj="block_sparse_moe.experts.{expert}.w2")),
        MlpLayout("olmoe", experts=_EXPERTS),
        MlpLayout("qwen2_moe", _QWEN, experts=_EXPERTS),
        MlpLayout("qwen3_moe", experts=_EXPERTS),
        MlpLayout("qwen3_next", _QWEN, experts=_EXPERTS),
        MlpLayout("qwen3_5_moe", _QWEN, experts=_EXPERTS),
        MlpLayout("qwen3_5_moe_text", _QWEN, experts=_EXPERTS),
        MlpLayout("deepseek_v2", _DEEPSEEK, experts=_EXPERTS),
        MlpLayout("deepseek_v3", _DEEPSEEK, experts=_EXPERTS),
        MlpLayout("glm4_moe", _DEEPSEEK, experts=_EXPERTS),
        MlpLayout("ernie4_5_moe", _DEEPSEEK, experts=_EXPERTS),
        MlpLayout("llama4", _LLAMA4, experts=_LLAMA4_EXPERTS),
        MlpLayout("llama4_text", _LLAMA4, experts=_LLAMA4_EXPERTS),
        MlpLayout(
            "lfm2_moe",
            ("feed_forward.w2",),
            experts=ExpertLayout(("feed_forward.experts.down_proj",), "feed_forward.experts.{expert}.w2"),
        ),
    )
}


NORMS_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""What a norm between the MLP and the residual stream is called, in a layer."""

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")
"""What the norm behind the last layer is called, beside `layers`."""


GUESSED: dict[str, MlpLayout] = {}
"""Rows that this process found for types without one, see `guessing`."""


@dataclass(frozen=True)
class Projection:
    """The output projection of one layer's MLP: its module path below the layer, and how many neurons it reads."""

    path: str
    d_mlp: int


@dataclass(frozen=True)
class Mixture:
    """The routed experts of one layer: the name of their tensors below the layer, with `{expert}`, number and width.

    `neuron_axis` is that of each of their matrices.
    """

    name: str
    n_experts: int
    d_mlp: int
    neuron_axis: int = 1


@dataclass(frozen=True)
class MlpShape:
    """What a particular model was found to have: the prefix of its names, and the projections of each layer.

    `plain` is None for layers that have nothing but a mixture of experts, `mixtures` for those without one.
    """

    layout: MlpLayout
    prefix: str
    d_model: int
    plain: tuple[Projection | None, ...]
    mixtures: tuple[Mixture | None, ...]
    d_mlp: int = field(init=False)
    """Width of the widest layer outside the mixtures, 0 if there is none. Narrower ones are padded with zeros."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_mlp", max(row.d_mlp if row else 0 for row in self.plain))

    @property
    def n_layers(self) -> int:
        return len(self.plain)

    @property
    def n_experts(self) -> int:
        """Of the layers that have a mixture; 0 when none has."""
        return max(row.n_experts if row else 0 for row in self.mixtures)

    @property
    def plain_layers(self) -> tuple[int, ...]:
        """The layers whose activations can be watched: all but those that have nothing but a mixture of experts."""
        return tuple(layer for layer, row in enumerate(self.plain) if row is not None)

    def width(self, layer: int) -> int:
        """Neurons of a layer outside its mixture of experts."""
        row = self.plain[layer]
        return 0 if row is None else row.d_mlp

    def experts_in(self, layer: int) -> tuple[int, int] | None:
        """(n_experts, d_mlp of each) of a layer with a mixture of experts, None for a layer without."""
        row = self.mixtures[layer]
        return None if row is None else (row.n_experts, row.d_mlp)

    def layer_path(self, layer: int) -> str:
        """Module path of a layer, for example `model.layers.2`."""
        return self.layout.below(self.prefix, layer)[:-1]

    def out_proj_path(self, layer: int, prefix: str | None = None) -> str:
        """Module path of the output projection of `layer`, with another `prefix` than was found if one is given."""
        row = self.plain[layer]
        assert row is not None, "asked of layers in `plain_layers` only"
        return self.layout.below(self.prefix if prefix is None else prefix, layer) + row.path

    def tensor(self, layer: int, expert: int | None = None) -> tuple[str, int]:
        """Name and neuron axis of the matrix of a layer, or of one of its experts.

        `name[3]` stands for matrix 3 of a tensor with three axes.
        """
        if expert is None:
            return f"{self.out_proj_path(layer)}.weight", self.layout.neuron_axis
        row = self.mixtures[layer]
        assert row is not None, "only cells of layers with experts name one"
        return self.layout.below(self.prefix, layer) + row.name.format(expert=expert), row.neuron_axis

    def fused(self, layer: int) -> str:
        """Name of the parameter that holds the output projections of all experts of `layer` in memory."""
        return self.tensor(layer, 0)[0].removesuffix("[0]")


def layout_for(model_type: str | None) -> MlpLayout:
    """The row of `model_type`, or what was guessed for it; raises LayoutError for others."""
    found = LAYOUTS.get(model_type or "") or GUESSED.get(model_type or "")
    if found is None:
        raise LayoutError(
            f"architecture {clipped(repr(model_type))} is not supported: try `amnesia --layout auto COMMAND`, or use a "
            f"model of one of the {len(LAYOUTS)} types that README lists under Architectures"
        )
    return found


@dataclass(frozen=True)
class Configured:
    """What `config.json` says: the row of its architecture, how many layers there are, and the width between them."""

    layout: MlpLayout
    n_layers: int
    d_model: int


def configured(config: Mapping[str, Any], n_layers: int | None = None) -> Configured:
    """Of at most `n_layers`; raises LayoutError for unknown types, quantized weights, and sizes missing or wrong."""
    if config.get("quantization_config"):
        method = clipped(repr(dict(config["quantization_config"]).get("quant_method", "unknown"))).strip("'")
        raise LayoutError(
            f"the weights are quantized ({method}): columns of packed weights cannot be edited exactly; "
            "use the unquantized model, or its GGUF file"
        )
    layout = layout_for(config.get("model_type"))
    text = text if isinstance(text := config.get(TEXT_CONFIG), Mapping) else config
    keys = (layout.n_layers_key, layout.d_model_key)
    total, d_model = (_checked_size(key, text.get(key)) for key in keys)
    return Configured(layout, total if n_layers is None else min(n_layers, total), d_model)


def _checked_size(key: str, size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise LayoutError(f"config.json has {key} = {clipped(repr(size))}: expected a positive integer; it is damaged")
    return size


def find_shape(config: Mapping[str, Any], sizes: Sizes, model: str, n_layers: int | None = None) -> MlpShape:
    """Look for the output projections of every layer of `model`, a name for messages, or of its first `n_layers`.

    Raises what `configured` raises, and LayoutError when a layer has none, or several in one role, or when they are
    not of the size that the configuration gives.
    """
    return Search(configured(config, n_layers), sizes, model).shape()


_FoundT = TypeVar("_FoundT")


@dataclass(frozen=True)
class Search:
    """The search for the projections of one model; `shape` raises what `find_shape` does of sizes and names."""

    of: Configured
    sizes: Sizes
    model: str

    def shape(self) -> MlpShape:
        layout = self.of.layout
        every = range(self.of.n_layers)
        prefixes = dict.fromkeys((layout.prefix, *PREFIXES))
        fitting = [prefix for prefix in prefixes if any(self._has(layout.below(prefix, layer)) for layer in every)]
        if len(fitting) != 1:
            have = f"weights under {', '.join(map(repr, fitting))}" if fitting else "no output projection of an MLP"
            expected = ", ".join(f"{layout.below(prefix, 0)}{layout.out_proj[0]}" for prefix in prefixes)
            raise self._error(have, f"{'one' if fitting else 'one of the names'} of {expected}")
        (prefix,) = fitting
        plain = tuple(self._plain(layout.below(prefix, layer)) for layer in every)
        mixtures = tuple(self._mixture(layout.below(prefix, layer)) for layer in every)
        for layer, row in enumerate(zip(plain, mixtures, strict=True)):
            if row == (None, None):
                raise self._error(
                    f"no output projection in layer {layer}",
                    f"{layout.below(prefix, layer)}{' or '.join(layout.out_proj)}",
                )
        counts = {row.n_experts for row in mixtures if row is not None}
        if len(counts) > 1:
            raise self._error(f"layers of {' and '.join(map(str, sorted(counts)))} experts", "as many in each")
        return MlpShape(layout, prefix, self.of.d_model, plain, mixtures)

    def _has(self, below: str) -> bool:
        return self._plain(below) is not None or self._mixture(below) is not None

    def _plain(self, below: str) -> Projection | None:
        rows = []
        for path in self.of.layout.out_proj:
            size = self.sizes(f"{below}{path}.weight")
            if size is not None:
                rows.append(Projection(path, self._width(f"{below}{path}.weight", size, self.of.layout.neuron_axis)))
        return self._only(rows, below)

    def _mixture(self, below: str) -> Mixture | None:
        experts = self.of.layout.experts
        if experts is None:
            return None
        rows = []
        for name in experts.fused:
            size = self.sizes(below + name)
            if size is not None and len(size) == 3:
                axis = experts.neuron_axis
                if axis is None:
                    if size[1] == size[2]:
                        raise self._error(f"square experts {below}{name}", "rows unlike columns", "use another model")
                    axis = 1 if size[1] == self.of.d_model else 0
                width = self._width(below + name, size[1:], axis)
                rows.append(Mixture(f"{name}[{{expert}}]", size[0], width, axis))
        if experts.out_proj is not None:
            name, widths = f"{experts.out_proj}.weight", []
            while (size := self.sizes(one := below + name.format(expert=len(widths)))) is not None:
                widths.append(self._width(one, size, 1))
            if widths:
                if len(set(widths)) > 1:
                    raise self._error(f"experts of different widths below {below}", "one width")
                rows.append(Mixture(name, len(widths), widths[0]))
        return self._only(rows, below)

    def _width(self, name: str, size: tuple[int, ...], axis: int) -> int:
        if len(size) != 2 or size[1 - axis] != self.of.d_model:
            wanted = f"{self.of.d_model} on axis {1 - axis}, as config.json says"
            raise self._error(f"tensor {name} of shape {list(size)}", wanted)
        return size[axis]

    def _only(self, rows: list[_FoundT], below: str) -> _FoundT | None:
        if len(rows) > 1:
            raise self._error(f"{len(rows)} output projections below {below}", "one")
        return rows[0] if rows else None

    def _error(self, found: str, expected: str, why: str = "") -> LayoutError:
        usual = "the weights do not belong to this config.json"
        if self.of.layout.model_type not in LAYOUTS:
            usual = "transformers names its modules otherwise than its files do; use a model of a known type"
        return LayoutError(f"{self.model} has {found}: expected {expected}; {why or usual}")
