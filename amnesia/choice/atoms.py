"""Atoms: what one early layer writes about an entity at one token of its name, and the read-outs that turn it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.directions.keys import name_keys
from amnesia.directions.moments import Moments
from amnesia.directions.solve import ReadOut, read_outs
from amnesia.domain import DirectionEdit
from amnesia.model import LiveModel, Progress
from amnesia.vector import Vector

_NEAREST = 0.2  # Share of other names, the nearest in what the layer writes, whose mean stands for "any name".


@dataclass(frozen=True)
class Atom:
    """One layer and token: key (d_mlp,), write v = W(k − n) (d_model,), read-outs by the size of their support.

    `shift` is how far the residual stream moves at the name when the atom is taken away, in the stream's own units.
    `scale` is the mean square, over what stays, of what the layer writes: `leak` is in units of it.
    """

    layer: int
    token: int
    key: Tensor
    write: Tensor
    spread: Tensor
    shift: float
    scale: float
    read_outs: dict[int, ReadOut]

    @property
    def place(self) -> tuple[int, int]:
        """(layer, token)."""
        return self.layer, self.token

    @property
    def dense(self) -> int:
        """The size of the read-out on all cells."""
        return len(self.key)

    def leak(self, multiplier: float, size: int) -> float:
        """Mean square of what the edit adds to what should stay, as a share of what the layer writes there."""
        unit = self.write.square().sum().item() * self.read_outs[size].leak
        return (1.0 - multiplier) ** 2 * unit / self.scale

    def edit(self, multiplier: float, size: int) -> DirectionEdit:
        """The edit on a support of `size` cells."""
        found = self.read_outs[size]
        return DirectionEdit(
            layer=self.layer,
            token=self.token,
            multiplier=multiplier,
            columns=tuple(found.cells.tolist()),
            read=Vector.of(found.u.cpu()),
            write=Vector.of(self.write.cpu()),
            key=Vector.of(self.key[found.cells].cpu()),
            spread=Vector.of(self.spread[found.cells].cpu()),
        )


@torch.inference_mode()
def atoms_of(
    live: LiveModel,
    name: str,
    moments: Moments,
    is_reserved: Callable[[str], bool],
    max_tokens: int,
    columns: Sequence[int],
    progress: Progress | None = None,
) -> list[Atom]:
    """The atoms of a name at every layer of the moments, those that move the residual stream most first.

    `columns` are the sizes of supports to find beside all cells. `is_reserved` says which other names count as unseen.
    """
    own = frozenset(
        ids[0]
        for form in {name, name.removeprefix("the "), name.removeprefix("The ")}
        for text in (form, f" {form}")
        if len(ids := live.tokenizer(text, add_special_tokens=False)["input_ids"]) == 1
    )
    keys = name_keys(live, name, moments.layers, max_tokens, progress)
    found = []
    for place, layer in enumerate(moments.layers):
        second, names = moments.without(live, layer, is_reserved, own)
        weight, norm = live.out_weight(layer), live.norm_after(layer)
        spread = second.diagonal().sqrt().float()
        # Behind a norm moments are relative already; d_model numbers of mean square 1 have the square d_model.
        scale = float(len(weight)) if norm is not None else (weight.double() @ second).mul(weight).sum().item()
        written = names @ weight.T
        for token, by_layer in keys.items():
            key = by_layer[place]
            now = weight @ key
            if norm is None:
                mean = names.mean(0)
            else:
                near = (written - now).norm(dim=1).topk(max(1, int(_NEAREST * len(names))), largest=False).indices
                mean = names[near].mean(0)
            write = weight @ (key - mean)
            through = norm if norm is not None else (lambda values: values)
            dtype = live.model.dtype
            gone = through((now - write).to(dtype)).float() - through(now.to(dtype)).float()
            shift = gone.norm().item()
            found.append(Atom(layer, token, key, write, spread, shift, scale, read_outs(second, key, columns)))
    return sorted(found, key=lambda atom: (-atom.shift, atom.place))
