"""Let the head of a live model, or the MLP of its last layer, see only the places that are asked about."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

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


@contextlib.contextmanager
def at_last_mlp(live: LiveModel, lines: Tensor | None, places: Tensor) -> Generator[None]:
    """Let the MLP of the last layer see only given places, as `at_head`, and write nothing at the others.

    Nothing else reads what it writes. Hooks on its activations would see these places alone.
    """
    path, _, _ = live.shape.out_proj_path(live.shape.n_layers - 1).rpartition(".")
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
