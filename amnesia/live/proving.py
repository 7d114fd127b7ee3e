"""Proof, on a loaded model, that the module that was taken for the output projection of an MLP is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amnesia.errors import LayoutError
from amnesia.live.model import LiveModel, weight_of

_N_CELLS = 8
_N_TOKENS = 16
_SHARE = 0.01
"""Of what negated cells do to the logits: what the order of additions may make of it. All products are the same."""


@torch.inference_mode()
def prove_layout(live: LiveModel) -> None:
    """In each layer, negating columns of the weight must do what negating the same entries of its input does.

    Raises LayoutError naming the first layer where it does not, or where neither does anything.
    """
    for layer in range(live.shape.n_layers):
        module, width = live.out_proj(layer), live.shape.width(layer)
        if not isinstance(module, nn.Linear) or module.in_features != width:
            raise _no_projection(live, layer, f"is a {type(module).__name__}")
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


def _logits(live: LiveModel) -> Tensor:
    vocabulary = live.text_config.vocab_size
    ids = torch.arange(1, 1 + _N_TOKENS, device=live.device) * 7 % vocabulary
    return live.model(input_ids=ids[None]).logits.float()


def _no_projection(live: LiveModel, layer: int, what: str) -> LayoutError:
    return LayoutError(
        f"{live.shape.out_proj_path(layer)} of {live.name} {what}: it is not the output projection of an MLP; use a "
        "model of a known type"
    )
