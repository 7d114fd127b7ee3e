"""Where each architecture keeps its MLP. To support an architecture, add one row to `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amnesia.errors import LayoutError, clipped


@dataclass(frozen=True)
class ExpertLayout:
    """Where the layers with a mixture of experts keep the output projections of their experts.

    `out_proj` is the module path below the layer, with `{expert}`, under which files hold each expert's matrix, with
    `neuron_axis` 1. `fused` is the parameter in which transformers 5 keeps all of them in memory, and in files that it
    was told to save as in memory: (n_experts, d_model, d_mlp). `dense_layers_key` and `step_key` name the settings that
    leave layers without experts: a list of layers, and a period.
    """

    out_proj: str
    fused: str
    d_mlp_key: str
    dense_layers_key: str | None = None
    step_key: str | None = None


@dataclass(frozen=True)
class MlpLayout:
    """Names and orientation of the MLP output projection of one architecture.

    Module paths start at the causal language model; tensors on disk have the same path plus `.weight`, with or
    without the leading `prefix` (GPT-2 on the Hub lacks it). `neuron_axis` is the axis of the stored weight that
    is indexed by neurons: 1 for `nn.Linear` (d_model, d_mlp), 0 for GPT-2's `Conv1D` (d_mlp, d_model).
    `attention` is the output projection of the attention.
    """

    model_type: str
    prefix: str
    layers: str
    out_proj: str
    neuron_axis: int
    n_layers_key: str = "num_hidden_layers"
    d_model_key: str = "hidden_size"
    d_mlp_key: str = "intermediate_size"
    attention: str = "self_attn.o_proj"
    experts: ExpertLayout | None = None

    def out_proj_path(self, layer: int) -> str:
        """Module path of the output projection of `layer`, for example `model.layers.2.mlp.down_proj`."""
        return f"{self.prefix}{self.layers}.{layer}.{self.out_proj}"

    def mlp_path(self, layer: int) -> str:
        """Module path of the MLP of `layer`, which maps (..., d_model) to the same."""
        return self.out_proj_path(layer).rpartition(".")[0]

    def attention_path(self, layer: int) -> str:
        """Module path of the output projection of the attention of `layer`."""
        return f"{self.prefix}{self.layers}.{layer}.{self.attention}"

    def fused_path(self, layer: int) -> str:
        """Path of the parameter that holds the output projections of all experts of `layer` in memory."""
        assert self.experts is not None, "only asked of architectures with experts"
        return f"{self.prefix}{self.layers}.{layer}.{self.experts.fused}"

    def tensor_names(self, layer: int, expert: int | None = None) -> tuple[str, ...]:
        """Names under which the weight of the output projection may be stored, most usual first.

        `name[3]` stands for matrix 3 of a tensor with three axes.
        """
        if expert is None:
            names = [f"{self.layers}.{layer}.{self.out_proj}.weight"]
        else:
            assert self.experts is not None, "only cells of models with experts name one"
            path = self.experts.out_proj.format(expert=expert)
            names = [f"{self.layers}.{layer}.{path}.weight", f"{self.layers}.{layer}.{self.experts.fused}[{expert}]"]
        return tuple(prefix + name for name in names for prefix in (self.prefix, ""))


def _llama_like(model_type: str, experts: ExpertLayout | None = None) -> MlpLayout:
    return MlpLayout(model_type, "model.", "layers", "mlp.down_proj", neuron_axis=1, experts=experts)


# Architectures with experts name their number in one of these ways, transformers 5 sometimes in the other one.
_N_EXPERTS_KEYS = ("num_local_experts", "num_experts")
_FUSED = "mlp.experts.down_proj"


LAYOUTS: Mapping[str, MlpLayout] = {
    row.model_type: row
    for row in (
        _llama_like("llama"),
        _llama_like("mistral"),
        _llama_like("qwen2"),
        _llama_like("qwen3"),
        _llama_like("gemma2"),
        _llama_like("gemma3_text"),
        _llama_like("olmo2"),
        _llama_like("phi3"),  # Gate and up are fused in one tensor; the output projection is an ordinary one.
        MlpLayout(
            "gpt2",
            "transformer.",
            "h",
            "mlp.c_proj",
            neuron_axis=0,
            n_layers_key="n_layer",
            d_model_key="n_embd",
            d_mlp_key="n_inner",
            attention="attn.c_proj",
        ),
        MlpLayout(
            "gpt_neox",
            "gpt_neox.",
            "layers",
            "mlp.dense_4h_to_h",
            neuron_axis=1,
            attention="attention.dense",
        ),
        _llama_like("mixtral", ExpertLayout("block_sparse_moe.experts.{expert}.w2", _FUSED, "intermediate_size")),
        _llama_like("olmoe", ExpertLayout("mlp.experts.{expert}.down_proj", _FUSED, "intermediate_size")),
        _llama_like(
            "qwen3_moe",
            ExpertLayout(
                "mlp.experts.{expert}.down_proj",
                _FUSED,
                "moe_intermediate_size",
                dense_layers_key="mlp_only_layers",
                step_key="decoder_sparse_step",
            ),
        ),
    )
}


@dataclass(frozen=True)
class MlpShape:
    """Layout of a particular model together with its sizes.

    `d_mlp` is the width of layers without experts. Layers in `dense_layers`, and those that `step` passes over, have
    none; the others have `n_experts` of width `d_expert`.
    """

    layout: MlpLayout
    n_layers: int
    d_model: int
    d_mlp: int
    n_experts: int = 0
    d_expert: int = 0
    dense_layers: frozenset[int] = frozenset()
    step: int = 1

    def experts_in(self, layer: int) -> tuple[int, int] | None:
        """(n_experts, d_mlp of each) of a layer with a mixture of experts, None for a layer without."""
        if not self.n_experts or layer in self.dense_layers or (layer + 1) % self.step:
            return None
        return self.n_experts, self.d_expert


def layout_for(model_type: str | None) -> MlpLayout:
    """The row of `model_type`; raises LayoutError that lists the known ones."""
    if model_type is None or model_type not in LAYOUTS:
        raise LayoutError(
            f"architecture {clipped(repr(model_type))} is not supported: known are {', '.join(sorted(LAYOUTS))}; "
            "use a model of one of these"
        )
    return LAYOUTS[model_type]


def shape_from_config(config: Mapping[str, Any]) -> MlpShape:
    """Layout and sizes from a model's `config.json`.

    Raises LayoutError for unknown architectures, quantized weights, and configurations without the needed sizes.
    """
    layout = layout_for(config.get("model_type"))
    if config.get("quantization_config"):
        method = clipped(repr(dict(config["quantization_config"]).get("quant_method", "unknown"))).strip("'")
        raise LayoutError(
            f"the weights are quantized ({method}): columns of packed weights cannot be edited exactly; "
            "use the unquantized model, or its GGUF file"
        )
    sizes = [config.get(key) for key in (layout.n_layers_key, layout.d_model_key, layout.d_mlp_key)]
    if layout.model_type == "gpt2" and sizes[2] is None and isinstance(sizes[1], int):
        sizes[2] = 4 * sizes[1]  # GPT-2 leaves n_inner empty and means four times n_embd.
    keys = (layout.n_layers_key, layout.d_model_key, layout.d_mlp_key)
    n_layers, d_model, d_mlp = (_checked_size(key, size) for key, size in zip(keys, sizes, strict=True))
    return MlpShape(
        layout, n_layers, d_model, d_mlp, *(_expert_sizes(config, layout.experts) if layout.experts else ())
    )


def _expert_sizes(config: Mapping[str, Any], experts: ExpertLayout) -> tuple[int, int, frozenset[int], int]:
    """Number of experts, their d_mlp, the layers that have none, and the period of the layers that do."""
    found = {key: config[key] for key in _N_EXPERTS_KEYS if config.get(key) is not None}
    if len(set(map(repr, found.values()))) != 1:
        raise LayoutError(
            f"config.json has {clipped(repr(found)) if found else 'no number of experts'}: expected one number as "
            f"{' or '.join(_N_EXPERTS_KEYS)}; the folder is damaged"
        )
    (key, n_experts), *_ = found.items()
    # A model that can have layers without experts may have no others.
    _checked_size(key, n_experts, low=0 if experts.dense_layers_key else 1)
    d_expert = config.get(experts.d_mlp_key)
    if n_experts:
        _checked_size(experts.d_mlp_key, d_expert)
    step = _checked_size(str(experts.step_key), config.get(experts.step_key, 1))
    layers = config.get(experts.dense_layers_key) or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise LayoutError(f"config.json has {experts.dense_layers_key} that is not a list of layers: it is damaged")
    return n_experts, d_expert or 0, frozenset(layers), step


def _checked_size(key: str, size: object, low: int = 1) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < low:
        kind = "a positive integer" if low else "a whole number"
        raise LayoutError(f"config.json has {key} = {clipped(repr(size))}: expected {kind}; the folder is damaged")
    return size


def no_hooks(name: str) -> str:
    """Why the activations of a mixture of experts cannot be seen or changed, and what can be done instead."""
    return (
        f"{name} is a mixture of experts, which transformers fuses in memory so that no single one can be watched: its "
        "cells cannot be searched, but `amnesia edit` writes an edit of known ones (LAYER:EXPERT:NEURON)"
    )
