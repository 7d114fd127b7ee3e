"""Atoms: what one early layer writes about an entity at one token of its name, or what the residual stream carries of
it behind the layer, and the read-outs that turn it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from amnesia.directions.bystanders import other_names
from amnesia.directions.keys import name_keys, name_rows
from amnesia.directions.moments import BystanderMoments, gram
from amnesia.directions.response import Response
from amnesia.directions.solve import Metric, ReadOut
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, DirectionEdit, Edit, WriteOf
from amnesia.errors import InputError
from amnesia.live.model import LiveModel, edited, not_finite
from amnesia.live.streams import mean_stream, share_arriving
from amnesia.live.watching import activations
from amnesia.vector import Vector

_NEAREST = 0.2  # Share of other names, the nearest in what the layer writes, whose mean stands for "any name".

_KEPT_BYTES = 1 << 28  # Of second moments; with their factors and inverses, up to three times as much is kept.


@dataclass(frozen=True, eq=False)
class Change:
    """By how much the weighed logits of the rest of a text change at each token once an edit acts (`Response.to`).

    `text` (n_tokens,) is of text about nothing in particular, `near` (n_near,) of texts about the entity's neighbors.
    """

    text: Tensor
    near: Tensor

    def __add__(self, other: Change) -> Change:
        return Change(self.text + other.text, self.near + other.near)

    def times(self, factor: float) -> Change:
        """The change by an edit of `factor` times the size."""
        return Change(factor * self.text, factor * self.near)

    @property
    def harm(self) -> float:
        """KL(original || edited) to expect on text, nats per token: half the mean square, to second order."""
        return _divergence(self.text)

    @property
    def near_harm(self) -> float:
        """The same on texts about neighbors; 0 without any."""
        return _divergence(self.near)


def _divergence(change: Tensor) -> float:
    return 0.5 * change.square().mean().item() if len(change) else 0.0


@dataclass(frozen=True, eq=False)
class Atom:
    """One layer and token: key (d_mlp,), write v (d_model,), and the read-out on some or all cells.

    `shift` is how far the residual stream moves at the name when the atom is taken away, in the stream's own units.
    `change` is what texts lose then.
    """

    layer: int
    token: int
    key: Tensor
    write: Tensor
    spread: Tensor
    shift: float
    read_out: ReadOut
    change: Change
    of: WriteOf = "layer"

    @property
    def place(self) -> tuple[int, int]:
        """(layer, token)."""
        return self.layer, self.token

    @property
    def size(self) -> int:
        """How many columns its edit changes."""
        return len(self.read_out.cells)

    def edit(self, multiplier: float) -> Edit:
        """The edit; on one cell it is the source's, the column times the multiplier."""
        return replace(self._taken_away, multiplier=multiplier)

    @cached_property
    def _taken_away(self) -> Edit:
        cells = self.read_out.cells
        if self.size == 1:
            return ColumnEdit(Cell(self.layer, int(cells)), 0.0)
        return DirectionEdit(
            layer=self.layer,
            token=self.token,
            multiplier=0.0,
            columns=tuple(cells.tolist()),
            read=Vector.of(self.read_out.u.cpu()),
            write=Vector.of(self.write.cpu()),
            key=Vector.of(self.key[cells].cpu()),
            spread=Vector.of(self.spread[cells].cpu()),
            of=self.of,
        )


def change_by(atoms: Sequence[Atom], multiplier: float) -> Change:
    """What texts lose when atoms are turned together by `multiplier`."""
    return sum((atom.change for atom in atoms[1:]), atoms[0].change).times(1.0 - multiplier)


@dataclass(frozen=True)
class Name:
    """A name in a model, and the moments of its bystanders. `is_reserved` says which other names count as unseen.

    Its keys are read in `texts` with `{entity}`, without any in the wordings of `keys.name_rows`. What an atom writes
    is by `of` what its layer writes about the name, v = W(k − n), or what the stream behind the layer carries of it
    beyond what it carries of other names: all that the layers up to there have written, so that a later layer, which
    tells the name from its neighbors, can take it away.
    `near` says what texts about its neighbors answer to, if there are any: with the share `near_share` of C they count
    among the bystanders, and with `apart_share` the keys of names from which this one is to be told, `apart_from`, at
    all their tokens. `solved` are the metrics of layers, with keys of other names; names with the same bystanders
    share them.
    """

    live: LiveModel
    text: str
    moments: BystanderMoments
    is_reserved: Callable[[str], bool]
    near: Response | None = None
    near_share: float = 0.0
    texts: tuple[str, ...] | None = None
    of: WriteOf = "layer"
    apart_from: tuple[str, ...] = ()
    apart_share: float = 0.0
    solved: dict[tuple[int, frozenset[int]], tuple[Metric, Tensor]] = field(default_factory=dict)

    @torch.inference_mode()
    def atoms(self, max_tokens: int, acting: Sequence[Edit] = ()) -> list[Atom]:
        """On all cells of every layer of the moments, those that move the residual stream most first; without those
        that do not move it, where any does.

        The keys are those of the name while edits are `acting`.
        """
        with edited(self.live, acting):
            keys = name_keys(self.live, self.text, self.moments.layers, max_tokens, self.texts)
            carried = self._carried(max_tokens) if self.of == "stream" else {}
        found = []
        for place, layer in enumerate(self.moments.layers):
            metric, names = self._bystanders(layer)
            if not len(names):
                raise InputError(
                    "all other names count as the entity or as held out: give fewer aliases and held-out controls"
                )
            width = self.live.shape.width(layer)
            own = {token: by_layer[place, :width] for token, by_layer in keys.items()}
            weight = self.live.out_weight(layer)[:, :width]
            spread = metric.moments.diagonal().sqrt().float()
            written = names @ weight.T
            try:
                solved = metric.read_outs(list(own.values()))
            except torch.linalg.LinAlgError:
                raise not_finite(self.live, f"activations in layer {layer}, or none at all") from None
            for (token, key), read_out in zip(own.items(), solved, strict=True):
                if self.of == "layer":
                    write, shift = self._of_layer(layer, weight @ key, written)
                elif (layer, token) in carried:
                    write, shift = carried[layer, token]
                else:
                    continue
                change = self._change(layer, read_out, write)
                found.append(Atom(layer, token, key, write, spread, shift, read_out, change, self.of))
        moving = [atom for atom in found if atom.shift > 0.0]
        return sorted(moving or found, key=lambda atom: (-atom.shift, atom.place))

    def _of_layer(self, layer: int, now: Tensor, written: Tensor) -> tuple[Tensor, float]:
        """What a layer writes about the name beyond what it writes about others, of all that it writes `now` and
        of what is `written` (n, d_model) about these; and how far the stream moves without it."""
        norm, dtype, mean = self.live.norm_after(layer), self.live.model.dtype, written.mean(0)
        if norm is not None:
            near = (written - now).norm(dim=1).topk(max(1, int(_NEAREST * len(written))), largest=False).indices
            mean = written[near].mean(0)
        write = now - mean
        through = norm if norm is not None else (lambda values: values)
        gone = through((now - write).to(dtype)).float() - through(now.to(dtype)).float()
        return write, gone.norm().item()

    def _carried(self, max_tokens: int) -> dict[tuple[int, int], tuple[Tensor, float]]:
        """What the stream behind each layer carries of the name at each token, as what the layer's MLP would have to
        write (d_model,), and its size in the stream, by layer and token. Layers are left out behind whose MLP a norm or
        anything else changes what it writes."""
        layers = self.moments.layers
        named, rows = other_names(self.live)
        others = [row for row, its in zip(rows, named, strict=True) if its.is_last and not self.is_reserved(its.name)]
        mean, found = mean_stream(self.live, others, layers), {}
        shares: dict[int, float | None] = {}
        for token, own in name_rows(self.live, self.text, max_tokens, self.texts).items():
            for layer, carried in zip(layers, mean_stream(self.live, own, layers) - mean, strict=True):
                if layer not in shares:
                    shares[layer] = share_arriving(self.live, own[:: max(1, len(own) // 3)][:3], layer, carried)
                if (share := shares[layer]) is not None:
                    found[layer, token] = carried / share, carried.norm().item()
        return found

    def sparse(self, atom: Atom, sizes: Sequence[int]) -> dict[int, Atom]:
        """The atom on supports of `sizes`; on one cell its write is that of the whole column, as in the source."""
        metric, _ = self._bystanders(atom.layer)
        found = {}
        for size, read_out in metric.supports(atom.key, sizes).items():
            write = atom.write
            if size == 1:
                write = self.live.out_weight(atom.layer)[:, read_out.cells[0]] * atom.key[read_out.cells[0]]
            change = self._change(atom.layer, read_out, write)
            found[size] = replace(atom, write=write, read_out=read_out, change=change)
        return found

    def _bystanders(self, layer: int) -> tuple[Metric, Tensor]:
        """Of all that must stay beside the name, and keys (n, d_mlp) of other names."""
        own = own_tokens(self.live, [self.text])
        if (layer, own) in self.solved:
            return self.solved[layer, own]
        second, names = self.moments.without(self.live, layer, self.is_reserved, own)
        if self.near is not None and self.near_share:
            rows = self.near.activations[:, self.moments.layers.index(layer)].float()
            _add(self.live, layer, rows, second, self.near_share)
        if self.apart_from:
            add_names(self.live, layer, self.apart_from, second, self.apart_share)
        found = Metric(second), names
        if len(self.moments.layers) * second.nbytes <= _KEPT_BYTES:
            self.solved[layer, own] = found
        return found

    def _change(self, layer: int, read_out: ReadOut, write: Tensor) -> Change:
        place = self.moments.layers.index(layer)
        text, near = (
            torch.zeros(0) if response is None else response.to(place, read_out.cells, read_out.u, write)
            for response in (self.moments.response, self.near)
        )
        return Change(text, near)


def add_names(live: LiveModel, layer: int, names: Sequence[str], second: Tensor, share: float) -> None:
    """Add the mean square of the keys of names, at all their tokens, times `share` to second moments (d_mlp, d_mlp)."""
    placed = [row for name in names for rows in name_rows(live, name).values() for row in rows]
    _add(live, layer, torch.cat([batch[:, 0] for _, batch in activations(live, placed, [layer])]), second, share)


def _add(live: LiveModel, layer: int, rows: Tensor, second: Tensor, share: float) -> None:
    """Add the mean square of activations (n, d_mlp) of a layer, times `share`."""
    second.add_(gram(live, layer, rows)[: len(second), : len(second)], alpha=share / len(rows))


def own_tokens(live: LiveModel, names: Iterable[str]) -> frozenset[int]:
    """The tokens of the vocabulary that are one of the names as a whole."""
    plain = {part for name in names for part in (name, name.removeprefix("the "), name.removeprefix("The "))}
    forms = [
        live.tokenizer(text, add_special_tokens=False)["input_ids"] for name in plain for text in (name, f" {name}")
    ]
    return frozenset(ids[0] for ids in forms if len(ids) == 1)
