"""Proof, on a loaded model, that the module that was taken for the output projection of an MLP is one."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from amnesia.errors import LayoutError
from amnesia.live.model import LiveModel, weight_of

_N_CELLS = 8
_N_TOKENS = 16
_SHARE = 0.01
"""Of what negated cells do to the logits: what the order of additions may make of it. All products are the same."""
_MIXED = 1e-4
"""Of what other tokens' own activations change by: more at a token that was left alone is no matter of rounding."""


@torch.inference_mode()
def prove_layout(live: LiveModel) -> None:
    """In each layer, negating columns of the weight must do what negating the same entries of its input does, and what
    comes in at one token must depend on nothing that the MLP is given at others, as it does in attention.

    Raises LayoutError naming the first layer where it does not, or where neither does anything.
    """
    for layer in range(live.shape.n_layers):
        module, width = live.out_proj(layer), live.shape.width(layer)
        if not isinstance(module, nn.Linear) or module.in_features != width:
            raise _no_projection(live, layer, f"is a {type(module).__name__}")
        if _mixes(live, layer):
            raise _no_projection(live, layer, "is given what was mixed from several tokens")
        cells = torch.linspace(0, width - 1, min(_N_CELLS, width)).long().to(live.device)

        def negate(_: nn.Module, args: tuple[Tensor, ...], cells: Tensor = cells) -> tuple[Tensor, ...]:
            values = args[0].clone()
            values[..., cells] *= -1
            return (values, *args[1:])

        before = _logits(live)
        handle = module.register_forward_pre_hook(negate)
        try:
            hooked = _logits(live)
        finally:
            handle.remove()
        weight = weight_of(module)
        weight[:, cells] *= -1
        try:
            edited = _logits(live)
        finally:
            weight[:, cells] *= -1
        effect = (edited - before).abs().max().item()
        if not effect:
            raise _no_projection(live, layer, "changes nothing")
        if (edited - hooked).abs().max().item() > _SHARE * effect:
            raise _no_projection(live, layer, "changes otherwise by its columns than by its input")


def _mixes(live: LiveModel, layer: int) -> bool:
    """Whether the projection's input at the last token changes with what its part of the layer is given at the others.

    That part is the layer's own submodule in which the projection lies, or where that is the projection itself, the
    linear module that runs last before it. A part that is given nothing of the usual form counts as mixing.
    """
    block, out_proj = live.model.get_submodule(live.shape.layer_path(layer)), live.out_proj(layer)
    part = next(child for child in block.children() if out_proj in child.modules())
    if part is out_proj:
        part = _last_before(live, block, out_proj)
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].reshape(-1, args[0].shape[-1]).float())

    def disturb(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(states, Tensor):
            return None
        changed = states.clone()
        changed.view(-1, states.shape[-1])[:-1] *= -2
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    with contextlib.ExitStack() as stack:
        stack.callback(out_proj.register_forward_pre_hook(keep).remove)
        _logits(live)
        stack.callback(part.register_forward_pre_hook(disturb, with_kwargs=True).remove)
        _logits(live)
    moved = (seen[1] - seen[0]).abs().amax(-1)
    return not moved[:-1].max() or bool(moved[-1] > _MIXED * moved[:-1].max())


def _last_before(live: LiveModel, block: nn.Module, out_proj: nn.Module) -> nn.Module:
    """The linear module of a layer that runs last before its projection; the projection itself where none does."""
    ran: list[nn.Module] = []
    with contextlib.ExitStack() as stack:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(lambda module, _: ran.append(module)).remove)
        _logits(live)
    return ran[max(ran.index(out_proj) - 1, 0)]


def _logits(live: LiveModel) -> Tensor:
    vocabulary = live.text_config.vocab_size
    ids = torch.arange(1, 1 + _N_TOKENS, device=live.device) * 7 % vocabulary
    return live.model(input_ids=ids[None]).logits.float()


def _no_projection(live: LiveModel, layer: int, what: str) -> LayoutError:
    return LayoutError(
        f"{live.shape.out_proj_path(layer)} of {live.name} {what}: it is not the output projection of an MLP; use a "
        "model of a known type"
    )
