"""The residual stream behind the layers of a live model, and how much of what an MLP writes arrives in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amnesia.edits import DirectionEdit
from amnesia.live.batches import passes
from amnesia.live.model import LiveModel, edited
from amnesia.live.tokens import Placed
from amnesia.live.watching import StopForwardError, activations
from amnesia.progress import Progress
from amnesia.vector import Vector

_STRAIGHT = 0.05
"""Share of its length by which a write may differ from what arrives of it; half precision rounds by less."""


@torch.inference_mode()
def streams(
    live: LiveModel, rows: Sequence[Placed], layers: Sequence[int], progress: Progress | None = None
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What each layer gives to the next at one token of each row, batch by batch, as `watching.activations`.

    Indices of the rows, and float32 (batch, n_layers, d_model). The forward pass ends at the last requested layer.
    """
    layers = sorted(layers)
    # What follows the token cannot change it.
    for one in passes(live, [row.ids[: row.token + 1] for row in rows]):
        lines, places = one.places([-1] * len(one.indices))
        seen: dict[int, Tensor] = {}

        def keep(layer: int, lines: Tensor = lines, places: Tensor = places, seen: dict[int, Tensor] = seen):
            def function(states: Tensor) -> None:
                seen[layer] = states[lines.to(states.device), places.to(states.device)].float().to(live.device)
                if layer == layers[-1]:
                    raise StopForwardError

            return function

        with after_layers(live, {layer: keep(layer) for layer in layers}), contextlib.suppress(StopForwardError):
            live.model.base_model(**one.inputs, use_cache=False)
        yield one.indices, torch.stack([seen[layer] for layer in layers], dim=1)
        if progress:
            progress(len(one.indices))


@contextlib.contextmanager
def after_layers(live: LiveModel, by_layer: Mapping[int, Callable[[Tensor], None]]) -> Generator[None]:
    """Call a function on what each given layer gives to the next, (batch, tokens, d_model), while the block runs."""

    def hook_of(function: Callable[[Tensor], None]) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            function(output if isinstance(output, Tensor) else output[0])

        return hook

    blocks = [(live.model.get_submodule(live.shape.layer_path(layer)), own) for layer, own in by_layer.items()]
    handles = [block.register_forward_hook(hook_of(own)) for block, own in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_stream(live: LiveModel, rows: Sequence[Placed], layers: Sequence[int]) -> Tensor:
    """The mean over rows of the stream behind layers, float32 (n_layers, d_model)."""
    total = torch.zeros(len(layers), live.shape.d_model, device=live.device)
    for _, batch in streams(live, rows, layers):
        total += batch.sum(0)
    return total / len(rows)


def share_arriving(live: LiveModel, rows: Sequence[Placed], layer: int, write: Tensor) -> float | None:
    """How many times `write` (d_model,) is in the stream behind a layer once its MLP writes it at the token of any row.

    1 where the layer adds what its MLP writes, the multiplier where it scales that; None where anything else becomes of
    it, as behind a norm, or where rows differ, as behind a gate.
    """
    found = [_share_arriving(live, row, layer, write) for row in rows]
    shares = [share for share in found if share is not None]
    alike = len(shares) == len(rows) and max(shares) - min(shares) <= _STRAIGHT * max(shares)
    return shares[0] if alike else None


def _share_arriving(live: LiveModel, row: Placed, layer: int, write: Tensor) -> float | None:
    ((_, found),) = activations(live, [row], [layer])
    here = found[0, 0, : live.shape.width(layer)].double()
    read = Vector.of((here / here.square().sum()).cpu())
    none = Vector.of(torch.zeros(len(here)))
    taken = DirectionEdit(layer, 0, 0.0, tuple(range(len(here))), read, Vector.of(write.cpu()), none, none)
    before = mean_stream(live, [row], [layer])
    with edited(live, [taken]):
        arrived = (before - mean_stream(live, [row], [layer]))[0]
    share = (arrived @ write / write.square().sum()).item()
    straight = (arrived - share * write).norm() <= _STRAIGHT * arrived.norm()
    return share if straight and share > 0 else None
