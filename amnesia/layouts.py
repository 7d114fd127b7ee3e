"""Where each architecture keeps its MLP. To support an architecture, add one row to `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amnesia.errors import LayoutError


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
    gated: bool
    n_layers_key: str = "num_hidden_layers"
    d_model_key: str = "hidden_size"
    d_mlp_key: str = "intermediate_size"
    attention: str = "self_attn.o_proj"

    def out_proj_path(self, layer: int) -> str:
        """Module path of the output projection of `layer`, for example `model.layers.2.mlp.down_proj`."""
        return f"{self.prefix}{self.layers}.{layer}.{self.out_proj}"

    def attention_path(self, layer: int) -> str:
        """Module path of the output projection of the attention of `layer`."""
        return f"{self.prefix}{self.layers}.{layer}.{self.attention}"

    def tensor_names(self, layer: int) -> tuple[str, ...]:
        """Names under which the weight of the output projection may be stored, most usual first."""
        name = f"{self.layers}.{layer}.{self.out_proj}.weight"
        return (self.prefix + name, name)


def _llama_like(model_type: str) -> MlpLayout:
    return MlpLayout(model_type, "model.", "layers", "mlp.down_proj", neuron_axis=1, gated=True)


LAYOUTS: Mapping[str, MlpLayout] = {
    row.model_type: row
    for row in (
        _llama_like("llama"),
        _llama_like("mistral"),
        _llama_like("qwen2"),
        _llama_like("qwen3"),
        _llama_like("gemma2"),
        _llama_like("olmo2"),
        _llama_like("phi3"),  # Gate and up are fused in one tensor; the output projection is an ordinary one.
        MlpLayout(
            "gpt2",
            "transformer.",
            "h",
            "mlp.c_proj",
            neuron_axis=0,
            gated=False,
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
            gated=False,
            attention="attention.dense",
        ),
    )
}


@dataclass(frozen=True)
class MlpShape:
    """Layout of a particular model together with its sizes."""

    layout: MlpLayout
    n_layers: int
    d_model: int
    d_mlp: int


def layout_for(model_type: str | None) -> MlpLayout:
    """The row of `model_type`; raises LayoutError that lists the known ones."""
    if model_type not in LAYOUTS:
        raise LayoutError(
            f"architecture {model_type!r} is not supported: known are {', '.join(sorted(LAYOUTS))}; "
            "use a model of one of these"
        )
    return LAYOUTS[model_type]


def shape_from_config(config: Mapping[str, Any]) -> MlpShape:
    """Layout and sizes from a model's `config.json`.

    Raises LayoutError for unknown architectures, quantized weights, and configurations without the needed sizes.
    """
    layout = layout_for(config.get("model_type"))
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown")
        raise LayoutError(
            f"the weights are quantized ({method}): columns of packed weights cannot be edited exactly; "
            "use the unquantized model, or its GGUF file"
        )
    sizes = [config.get(key) for key in (layout.n_layers_key, layout.d_model_key, layout.d_mlp_key)]
    if layout.model_type == "gpt2" and sizes[2] is None and isinstance(sizes[1], int):
        sizes[2] = 4 * sizes[1]  # GPT-2 leaves n_inner empty and means four times n_embd.
    for key, size in zip((layout.n_layers_key, layout.d_model_key, layout.d_mlp_key), sizes, strict=True):
        if not isinstance(size, int) or size <= 0:
            raise LayoutError(f"config.json has {key} = {size!r}: expected a positive integer; the folder is damaged")
    return MlpShape(layout, *sizes)
