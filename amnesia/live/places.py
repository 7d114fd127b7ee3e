"""Let the head of a live model, or the MLP of the last layer that matters, see only the places that are asked about."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from amnesia.architectures import LAYOUTS
from amnesia.live.model import LiveModel


@contextlib.contextmanager
def at_head(live: LiveModel, lines: Tensor | None, places: Tensor) -> Generator[None]:
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


def can_spare(live: LiveModel, layer: int) -> bool:
    """Whether `at_mlp` can be used: the MLP is alone in its block, and the type of the model stands in the table.

    Of others, a pass must have one size from its beginning to its end. In OPT, what is added to what the MLP writes has
    the size that the batch had before, and the MLP is no module.
    """
    return live.shape.experts_in(layer) is None and live.shape.layout.model_type in LAYOUTS


@contextlib.contextmanager
def at_mlp(live: LiveModel, layer: int, lines: Tensor | None, places: Tensor) -> Generator[None]:
    """Let the MLP of a layer see only given places, as `at_head`, and write nothing at the others.

    For the last layer of which anything is read. Hooks on its activations see these places alone.
    """
    path, _, _ = live.shape.out_proj_path(layer).rpartition(".")
    module = live.model.get_submodule(path)
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
