"""Second moments of bystanders, of all that must stay: texts, the vocabulary and other names, layer by layer.

They depend on the model alone and are kept in the cache folder under its hash. Nothing but the model is needed: beside
the sentences of this package, texts are sampled from the model itself. Activations stream through; what stays in
memory is one matrix per layer, however many tokens there are.

The first token of a row is left out: it is a sink of attention, with activations of another size. Where a norm follows
the MLP, what a layer writes is divided by its size, so that a bystander a counts there with weight 1 / mean((Wa)²).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from amnesia.directions.bystanders import Bystanders, MomentSettings, NameToken, Rows, bystanders_of
from amnesia.directions.moments_file import MomentsFile, new_moments, open_moments
from amnesia.directions.response import Response, half, response_of
from amnesia.directions.samples import own_text, weights_digest
from amnesia.errors import CheckpointError, InputError
from amnesia.live.disk import devices_of
from amnesia.live.model import LiveModel, not_finite
from amnesia.live.split import by_first, is_split
from amnesia.live.tokens import Placed
from amnesia.live.watching import activations, text_activations
from amnesia.progress import Progress

_UNUSED = (
    "_name_or_path",
    "architectures",
    "distributed_config",
    "transformers_version",
)  # Of a configuration, by what a model does.
_VERSION = 5  # Of what is gathered; another number makes files that are kept be made again.
_BLOCK = 4096  # Rows in one product.
_COLUMNS = 4096  # Columns of its left side, in matrices that are larger.


@dataclass(frozen=True)
class BystanderMoments:
    """`second` (n_layers, d_mlp, d_mlp): the weighted mean of w·a·aᵀ over all bystanders a, float32, by layer.

    `name_keys` (n_rows, n_layers, d_mlp) are the activations at the tokens of other names, float16; row i is about
    `names[i].name`. `vocabulary` are the rows of tokens that were read, each for its last one. `response` says what
    the predictions on text answer to. `file` is where all this lies, if it is mapped into memory.
    """

    layers: tuple[int, ...]
    second: Tensor
    names: tuple[NameToken, ...]
    name_keys: Tensor
    vocabulary: tuple[tuple[int, ...], ...]
    response: Response
    settings: MomentSettings
    file: MomentsFile | None = None

    def bystander_rows(self, is_reserved: Callable[[str], bool]) -> Tensor:
        """Which rows of `name_keys` are about names that are not reserved, boolean (n_rows,)."""
        reserved = {name for name in {row.name for row in self.names} if is_reserved(name)}
        return torch.tensor([row.name not in reserved for row in self.names])

    def without(
        self, live: LiveModel, layer: int, is_reserved: Callable[[str], bool], tokens: frozenset[int]
    ) -> tuple[Tensor, Tensor]:
        """C (d_mlp, d_mlp) of one layer in float64, ridge included, and keys at the last tokens of other names.

        Both are of the layer's own width.

        Names for which `is_reserved` holds, and vocabulary rows that end in one of `tokens`, count as never seen.
        """
        place = self.layers.index(layer)
        # In a mapping of its own, which is not kept.
        second = (self.second[place] if self.file is None else self.file.tensor("second", place)).double()
        seen = self.bystander_rows(is_reserved)
        last = torch.tensor([row.is_last for row in self.names])
        share = self.settings.names / len(self.names)
        # Without copies beside C, which has gigabytes in a large model.
        add_gram(live, layer, self.name_keys[~seen, place].float(), second, -share)
        own = [Placed(row, len(row) - 1) for row in self.vocabulary if row[-1] in tokens]
        if own:
            found = torch.cat([batch[:, 0] for _, batch in activations(live, own, [layer])])
            add_gram(live, layer, found, second, -self.settings.vocabulary / len(self.vocabulary))
        mirror(second)
        width = live.shape.width(layer)
        second = second[:width, :width]
        second.diagonal().add_(self.settings.ridge * second.diagonal().mean())
        return second, self.name_keys[seen & last, place, :width].float()


def early_layers(n_layers: int) -> tuple[int, ...]:
    """Layers in which entities are looked for: the first fifth, and never fewer than six where there are so many."""
    return tuple(range(min(n_layers, max(6, math.ceil(n_layers / 5)))))


def moments_of(
    live: LiveModel,
    layers: Sequence[int],
    cache: Path | None = None,
    settings: MomentSettings | None = None,
    progress: Progress | None = None,
) -> BystanderMoments:
    """The moments of a model, from the folder `cache` where they are kept there for this very model and settings.

    Gathering them is counted by `progress` in rows, as often as they are written or read. Raises
    InputError when the weights are on several devices.
    """
    if len(places := devices_of(live.model)) > 1:
        raise InputError(
            f"{live.name} lies on {', '.join(sorted(places))}: a direction needs all weights on one device; choose one "
            '(--device), or the form that needs none of this (method = "single")'
        )
    settings = settings or MomentSettings()
    layers = tuple(layers)
    read, digest = bystanders_of(live, settings), weights_digest(live)
    path = None
    if cache is not None:
        special = sorted(set(live.tokenizer.all_special_ids))
        what = repr((_VERSION, digest, _configured(live), layers, settings, read, special))
        path = cache / f"moments-{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"
        # What is damaged or not there is made again.
        if by_first(path.exists) if is_split(live.model) else path.exists():
            with contextlib.suppress(OSError, CheckpointError, KeyError, ValueError):
                return _kept(path, live, layers, read, settings)
    own = tuple(own_text(live, read.beginnings, read.n_following, digest, progress))
    answering = own[:: max(1, len(own) // max(1, settings.answering))][: settings.answering]
    response = response_of(live, (*read.sentences, *answering), layers, progress)
    shape = (len(layers), live.shape.d_mlp, live.shape.d_mlp)
    keys = torch.zeros(len(read.names), len(layers), live.shape.d_mlp, dtype=torch.float16, device=live.device)
    stored = {"name_keys": keys, "activations": response.activations, "gradients": response.gradients}
    forms = {"second": (torch.float32, shape), **{name: (row.dtype, tuple(row.shape)) for name, row in stored.items()}}
    with contextlib.ExitStack() as stack:
        made = second = None
        # It saves time and memory, nothing else: where the folder is read-only or the disk full, the next run makes it.
        with contextlib.suppress(OSError):
            made = None if path is None else stack.enter_context(new_moments(path, forms))
        if made is None or live.device.type != "cpu":
            second = torch.zeros(shape, device=live.device)
        matrix = partial(made.tensor, "second") if made and second is None else cast(Tensor, second).__getitem__
        _gather(live, layers, matrix, read, own, keys, settings, progress)
        if made is not None:
            for place in range(len(layers) if second is not None else 0):
                made.tensor("second", place).copy_(matrix(place))
            for name, tensor in stored.items():
                made.tensor(name).copy_(tensor)
    if second is None:
        return _kept(cast(Path, path), live, layers, read, settings)
    return BystanderMoments(layers, second, read.names, keys, read.vocabulary, response, settings)


@torch.inference_mode()
def _gather(
    live: LiveModel,
    layers: Sequence[int],
    matrix: Callable[[int], Tensor],
    read: Bystanders,
    own: Rows,
    keys: Tensor,
    settings: MomentSettings,
    progress: Progress | None,
) -> None:
    """Fill the matrices, which are zero, and the `keys` of other names."""
    texts = text_activations(live, (*read.sentences, *own), layers, progress)
    n_tokens = _add(live, layers, matrix, texts, 1.0)
    for place in range(len(layers)):
        matrix(place).mul_(settings.text / n_tokens)
    rows = [Placed(row, len(row) - 1) for row in read.vocabulary]
    ends = (batch for _, batch in activations(live, rows, layers, progress))
    _add(live, layers, matrix, ends, settings.vocabulary / len(rows))
    named = _named(live, read.name_rows, layers, keys, progress)
    _add(live, layers, matrix, named, settings.names / len(read.name_rows))
    for place, layer in enumerate(layers):
        mirror(matrix(place))
        if not matrix(place).isfinite().all():
            raise not_finite(live, f"activations in layer {layer}")


def _kept(
    path: Path,
    live: LiveModel,
    layers: tuple[int, ...],
    read: Bystanders,
    settings: MomentSettings,
) -> BystanderMoments:
    """The moments in a file; raises OSError, CheckpointError, KeyError or ValueError for what is none of this model."""
    file = open_moments(path, len(layers), live.shape.d_mlp, live.shape.d_model, len(read.names))
    second, keys, *response = (
        file.tensor(name).to(live.device) for name in ("second", "name_keys", "activations", "gradients")
    )
    mapped = file if live.device.type == "cpu" else None
    return BystanderMoments(layers, second, read.names, keys, read.vocabulary, Response(*response), settings, mapped)


def _configured(live: LiveModel) -> str:
    """What the configuration says of a model, as text."""
    config = {key: value for key, value in live.model.config.to_dict().items() if key not in _UNUSED}
    return json.dumps(config, sort_keys=True, default=str)


def _named(
    live: LiveModel, rows: Sequence[Placed], layers: Sequence[int], keys: Tensor, progress: Progress | None
) -> Iterator[Tensor]:
    """Activations at the tokens of other names; fills `keys` on the way."""
    for indices, batch in activations(live, rows, layers, progress):
        keys[list(indices)] = half(batch)
        yield half(batch).float()  # As they are kept, so that some of them can be taken out again.


def _add(
    live: LiveModel,
    layers: Sequence[int],
    matrix: Callable[[int], Tensor],
    batches: Iterable[Tensor],
    weight: float,
) -> int:
    """Add the sum of w·a·aᵀ over batches (n, n_layers, d_mlp) of activations, times `weight`, to the matrices of the
    layers, as `add_gram`; returns how many activations there were."""
    count = 0
    waiting: list[Tensor] = []

    def flush() -> None:
        for place, layer in enumerate(layers):
            add_gram(live, layer, torch.cat([batch[:, place] for batch in waiting]), matrix(place), weight)
        waiting.clear()

    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        # Many rows in one product, which a matrix of this size needs to be fast.
        if sum(map(len, waiting)) >= _BLOCK:
            flush()
    if waiting:
        flush()
    return count


def gram(live: LiveModel, layer: int, rows: Tensor) -> Tensor:
    """Σ w·a·aᵀ (d_mlp, d_mlp) over rows a (n, d_mlp) of one layer, in float32."""
    return _weighted(live, layer, rows).T @ rows


def add_gram(live: LiveModel, layer: int, rows: Tensor, matrix: Tensor, weight: float) -> None:
    """Add `gram` times `weight` to a symmetric matrix, of a large one to its upper triangle alone; see `mirror`."""
    weighted = _weighted(live, layer, rows)
    for start in range(0, len(matrix), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        matrix[part, start:].add_(weighted[:, part].T @ rows[:, start:], alpha=weight)


def mirror(matrix: Tensor) -> None:
    """Give a symmetric matrix the lower triangle that its upper one, to which was added, asks for."""
    for start in range(_COLUMNS, len(matrix), _COLUMNS):
        matrix[start:, start - _COLUMNS : start] = matrix[start - _COLUMNS : start, start:].T


def _weighted(live: LiveModel, layer: int, rows: Tensor) -> Tensor:
    """w·a of rows a (n, d_mlp) of one layer."""
    if live.norm_after(layer) is None:
        return rows
    written = rows @ live.out_weight(layer).T
    return rows * (1.0 / written.square().mean(1).clamp(min=1e-12))[:, None]
