"""What the MLPs of a live model do with texts: activations, what they write, what predictions answer to that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amnesia.live.batches import batches, passes
from amnesia.live.disk import is_on_disk, run_twice
from amnesia.live.model import LiveModel, hooks
from amnesia.live.places import at_mlp, can_spare
from amnesia.live.tokens import Placed
from amnesia.progress import Progress

_GRADIENT_TOKENS = 256
"""Padded tokens per backward pass, whose logits and their weights are in memory at a time."""


class StopForwardError(Exception):
    """Raised by a hook once everything that was asked for has been seen."""


@torch.inference_mode()
def activations(
    live: LiveModel,
    rows: Sequence[Placed],
    layers: Sequence[int],
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Activations at one token of each row, batch by batch: (indices of the rows, float32 (batch, n_layers, d_mlp)).

    The forward pass ends at the last requested layer, whose MLP sees nothing but these tokens, and the language-model
    head never runs.
    """
    layers = sorted(layers)
    sparing = can_spare(live, layers[-1])
    # What follows the token cannot change it.
    cut = [row.ids[: row.token + 1] for row in rows]
    for one in passes(live, cut):
        lines, places = one.places([-1] * len(one.indices))
        seen: dict[int, Tensor] = {}

        def record(layer: int, lines: Tensor = lines, places: Tensor = places, seen: dict[int, Tensor] = seen):
            def function(values: Tensor) -> None:
                alone = sparing and layer == layers[-1]
                here = values[0] if alone else values[lines.to(values.device), places.to(values.device)]
                seen[layer] = live.padded(here.float().to(live.device))
                if layer == layers[-1]:
                    raise StopForwardError

            return function

        spared = at_mlp(live, layers[-1], lines, places) if sparing else contextlib.nullcontext()
        with hooks(live, {layer: record(layer) for layer in layers}), spared, contextlib.suppress(StopForwardError):
            live.model.base_model(**one.inputs, use_cache=False)
        yield one.indices, torch.stack([seen[layer] for layer in layers], dim=1)
        if progress:
            progress(len(one.indices))


@torch.inference_mode()
def text_activations(
    live: LiveModel, rows: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress | None = None
) -> Iterator[Tensor]:
    """Activations at all tokens of rows but the first of each, batch by batch: float32 (n_tokens, n_layers, d_mlp).

    The forward pass ends at the last requested layer, and the language-model head never runs.
    """
    layers = sorted(layers)
    for batch in batches(live, rows):
        inner = batch.inputs["attention_mask"].bool()
        inner[torch.arange(len(inner)), batch.padding] = False
        seen: dict[int, Tensor] = {}

        def record(layer: int, inner: Tensor = inner, seen: dict[int, Tensor] = seen) -> Callable[[Tensor], None]:
            def function(values: Tensor) -> None:
                seen[layer] = live.padded(values[inner.to(values.device)].float().to(live.device))
                if layer == layers[-1]:
                    raise StopForwardError

            return function

        with hooks(live, {layer: record(layer) for layer in layers}), contextlib.suppress(StopForwardError):
            live.model.base_model(**batch.inputs, use_cache=False)
        yield torch.stack([seen[layer] for layer in layers], dim=1)
        if progress:
            progress(len(batch.indices))


def mlp_outputs(
    live: LiveModel, rows: Sequence[Placed], layers: Sequence[int], progress: Progress | None = None
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What each layer's MLP writes at one token of each row, as `activations`: float32 (batch, n_layers, d_model)."""
    layers = sorted(layers)
    for indices, batch in activations(live, rows, layers, progress):
        outputs = [
            live.whole_mlp(layer)(batch[:, n, : live.shape.width(layer)].to(live.model.dtype))
            for n, layer in enumerate(layers)
        ]
        yield indices, torch.stack([output.float().to(live.device) for output in outputs], dim=1)


def write_gradients(
    live: LiveModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    weigh: Callable[[Tensor], Tensor],
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the prediction of texts answers to changes of what the MLPs of `layers` write, batch by batch.

    Activations (n, n_layers, d_mlp) at every token of the rows but the first and the last, and the gradient of the
    row's weighted sum of logits by what the layer writes there, (n, n_layers, d_model); both float32. `weigh` gives the
    weights for logits (n_rows, n_tokens, n_vocab), float32, of the same shape.
    """
    for batch in batches(live, rows, _GRADIENT_TOKENS):
        seen: dict[int, Tensor] = {}
        added: dict[int, Tensor] = {}

        def hook(layer: int, seen: dict[int, Tensor] = seen, added: dict[int, Tensor] = added) -> Callable[..., Tensor]:
            def function(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                seen[layer] = args[0].detach()
                added[layer] = torch.zeros_like(output, requires_grad=True)
                return output + added[layer]

            return function

        handles: list[RemovableHandle] = []
        blocks = [live.model.get_submodule(live.shape.layer_path(layer)) for layer in range(live.shape.n_layers)]
        on_disk = run_twice(blocks) if is_on_disk(live.model) else contextlib.nullcontext()
        try:
            handles += (live.out_proj(layer).register_forward_hook(hook(layer)) for layer in layers)
            with torch.inference_mode(False), torch.enable_grad(), on_disk:
                # Copies, because the caller may be in inference mode, whose tensors no gradient can pass.
                inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
                logits = live.model(**inputs, use_cache=False).logits[:, :-1].float()
                text = inputs["attention_mask"].bool()
                weights = weigh(logits.detach())
                weights[~text[:, :-1].to(logits.device)] = 0.0
                gradients = torch.autograd.grad(logits, [added[layer] for layer in layers], weights)
        finally:
            for handle in handles:
                handle.remove()
        # Neither a row's first token nor its last, which nothing follows.
        inner = torch.zeros_like(text)
        inner[:, 1:-1] = text[:, :-2]

        def at(values: Tensor, inner: Tensor = inner) -> Tensor:
            # Beside a mixture of experts, the tokens of all rows may come one after the other.
            rows = values.reshape(*inner.shape, values.shape[-1])
            return rows[inner.to(values.device)].float().to(live.device)

        yield (
            torch.stack([live.padded(at(seen[layer])) for layer in layers], dim=1),
            torch.stack([at(gradient) for gradient in gradients], dim=1),
        )
        if progress:
            progress(len(batch.indices))
