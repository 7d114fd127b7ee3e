"""Live models: where their MLPs are, hooks on them, and edits in memory. It knows nothing of texts.

With `passes`, `forward` and `interventions` it is all that touches live models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amnesia.domain import ColumnEdit, check_edits
from amnesia.errors import InputError, LayoutError
from amnesia.layouts import MlpShape, no_hooks, shape_from_config

Progress = Callable[[int], None]


@dataclass(frozen=True)
class LiveModel:
    """A causal language model in memory, its fast tokenizer, and where its MLPs are. `name` is for messages."""

    model: nn.Module
    tokenizer: Any
    shape: MlpShape
    name: str

    @property
    def device(self) -> torch.device:
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.is_meta:  # Left on disk by accelerate, whose hook fetches it to where it runs.
            return torch.device(embeddings._hf_hook.execution_device)
        return embeddings.weight.device

    def out_proj(self, layer: int) -> nn.Module:
        """The output projection of layer `layer`; its input is the layer's activations.

        Raises LayoutError for a layer with a mixture of experts, which transformers fuses in one parameter.
        """
        if self.shape.experts_in(layer) is not None:
            raise LayoutError(no_hooks(self.name))
        return self.model.get_submodule(self.shape.layout.out_proj_path(layer))

    def attention_out_proj(self, layer: int) -> nn.Module:
        """The output projection of the attention of layer `layer`."""
        return self.model.get_submodule(self.shape.layout.attention_path(layer))


def wrap(model: nn.Module, tokenizer: Any | None, name: str | None = None) -> LiveModel:
    """A LiveModel from a model and tokenizer that are already in memory; edits alone need no tokenizer.

    Raises LayoutError for architectures outside the table and InputError for tokenizers without offset mapping.
    """
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (tokenizer.json)"
        )
    shape = shape_from_config(model.config.to_dict())
    live = LiveModel(model, tokenizer, shape, name or getattr(model.config, "name_or_path", "") or "the model")
    last = shape.n_layers - 1
    try:
        if shape.experts_in(last) is None:
            live.out_proj(last)
        else:
            model.get_parameter(shape.layout.fused_path(last))
    except AttributeError as error:
        raise LayoutError(
            f"{live.name} has no module {shape.layout.out_proj_path(last)}: "
            "expected a plain causal language model of its architecture; load it with AutoModelForCausalLM"
        ) from error
    return live


def freeze(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with `requires_grad` off: gradients are only ever taken of multipliers."""
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def hooks(live: LiveModel, by_layer: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Call a function on the activations (batch, tokens, d_mlp) of given layers; a returned tensor replaces them."""

    def hook_of(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            replaced = function(args[0])
            return None if replaced is None else (replaced, *args[1:])

        return hook

    handles = []
    try:
        for layer, function in by_layer.items():
            handles.append(live.out_proj(layer).register_forward_pre_hook(hook_of(function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def scaled_by(live: LiveModel, multipliers: Mapping[int, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Multiply the activations of each given layer, at every token, by a vector (d_mlp,) or (batch, 1, d_mlp).

    Multiplying activation j equals multiplying column j of the output projection's weight.
    """

    def multiply(vector: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda activations: activations * vector.to(activations)

    return hooks(live, {layer: multiply(vector) for layer, vector in multipliers.items()})


@contextlib.contextmanager
def edited(live: LiveModel, edits: Sequence[ColumnEdit]) -> Iterator[None]:
    """Act as if the edits had been written into the weights while the block runs; the weights do not change."""
    vectors: dict[int, Tensor] = {}
    if edits:
        for edit in _checked(live, edits):
            if edit.cell.expert is not None:
                raise LayoutError(no_hooks(live.name))
            vector = vectors.setdefault(edit.cell.layer, torch.ones(live.shape.d_mlp, device=live.device))
            vector[edit.cell.neuron] = edit.multiplier
    with scaled_by(live, vectors):
        yield


def _checked(live: LiveModel, edits: Sequence[ColumnEdit]) -> tuple[ColumnEdit, ...]:
    return check_edits(edits, live.shape.n_layers, live.shape.d_mlp, live.name, live.shape.experts_in)


@torch.no_grad()
def apply_edits(live: LiveModel, edits: Sequence[ColumnEdit]) -> None:
    """Multiply the columns of the output projections in memory, permanently.

    Raises InputError, before anything changes, when a cell is out of range.
    """
    for edit in _checked(live, edits):
        if edit.cell.expert is None:
            weight = live.out_proj(edit.cell.layer).weight
        else:
            weight = live.model.get_parameter(live.shape.layout.fused_path(edit.cell.layer))[edit.cell.expert]
        weight.select(live.shape.layout.neuron_axis, edit.cell.neuron).mul_(edit.multiplier)


@contextlib.contextmanager
def at_head(live: LiveModel, lines: Tensor | None, places: Tensor) -> Iterator[None]:
    """Let the language-model head see only the given places (n,) of the given lines (n,), or of every line.

    Logits are then (1, n, vocabulary), or (batch, n, vocabulary).
    """

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_picked(args[0], lines, places), *args[1:])

    handle = live.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def at_last_mlp(live: LiveModel, lines: Tensor | None, places: Tensor) -> Iterator[None]:
    """Let the MLP of the last layer see only given places, as `at_head`, and write nothing at the others.

    Nothing else reads what it writes. Hooks on its activations would see these places alone.
    """
    module = live.model.get_submodule(live.shape.layout.mlp_path(live.shape.n_layers - 1))
    shapes: list[torch.Size] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (_picked(args[0], lines, places), *args[1:])

    def after(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        whole = output.new_zeros(shapes.pop())
        at = places.to(output.device)
        if lines is None:
            whole[:, at] = output
        else:
            whole[lines.to(output.device), at] = output[0]
        return whole

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _picked(values: Tensor, lines: Tensor | None, places: Tensor) -> Tensor:
    at = places.to(values.device)
    return values[:, at] if lines is None else values[lines.to(values.device), at][None]
