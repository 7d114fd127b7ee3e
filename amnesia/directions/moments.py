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
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from amnesia.directions.moments_file import MomentsFile, new_moments, open_moments
from amnesia.directions.response import Response, half, response_of
from amnesia.errors import CheckpointError, InputError
from amnesia.facts.names import code_snippets, contrast_entities, foreign_sentences, name_wordings, neutral_texts
from amnesia.live.drawing import drawn
from amnesia.live.forward import activations
from amnesia.live.model import LiveModel, hooks, not_finite, plain_generation
from amnesia.live.split import by_first, whole_of
from amnesia.live.tokens import Placed, encode
from amnesia.progress import Progress

_UNUSED = (
    "_name_or_path",
    "architectures",
    "distributed_config",
    "transformers_version",
)  # Of a configuration, by what a model does.
_VERSION = 4  # Of what is gathered; another number makes files that are kept be made again.
_BLOCK = 4096  # Rows in one product.
_COLUMNS = 4096  # Columns of its left side, in matrices that are larger.
_SAMPLED_AT_ONCE = 96


@dataclass(frozen=True)
class MomentSettings:
    """What the moments are made of.

    `text`, `vocabulary` and `names` are the shares of the three kinds of bystanders, `ridge` the share of the mean
    diagonal that is added to it. `sampled` is the number of tokens that the model writes itself, in `length` steps from
    the first `beginning` tokens of each sentence; `vocabulary_size` the number of its tokens that are read in short
    contexts.

    Half or double of a share or of the ridge changes what a read-out on all columns leaves of texts, tokens and names
    that are in none of this by 12 % at most; without the vocabulary tokens keep 40 % more, without sampled text texts
    27 % more (geometric means of 24 entities on SmolLM2-135M, `tests/benchmarks/moments.py`).
    """

    text: float = 0.6
    vocabulary: float = 0.2
    names: float = 0.2
    ridge: float = 0.005
    sampled: int = 18_000
    length: int = 64
    beginning: int = 4
    vocabulary_size: int = 12_000


@dataclass(frozen=True)
class NameToken:
    """One token of another name in one wording, and whether it is the name's last one."""

    name: str
    is_last: bool


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

    Gathering them is counted by `progress` in tokens and rows. Raises InputError when the weights are on several
    devices, or left on disk.
    """
    if len(places := {str(parameter.device) for parameter in live.model.parameters()}) > 1:
        raise InputError(
            f"{live.name} lies on {', '.join(sorted(places))}: a direction needs all weights on one device; choose one "
            '(--device), or the form that needs none of this (method = "single")'
        )
    settings = settings or MomentSettings()
    layers = tuple(layers)
    vocabulary = _vocabulary(live, settings)
    names, name_rows = _name_rows(live)
    sentences = _sentence_rows(live)
    path = None
    if cache is not None:
        read = (vocabulary, name_rows, sentences, sorted(set(live.tokenizer.all_special_ids)))
        path = cache / f"moments-{_digest(live, layers, settings, read)[:32]}.safetensors"
        # What is damaged or not there is made again.
        if by_first(path.exists):
            with contextlib.suppress(OSError, CheckpointError, KeyError, ValueError):
                return _kept(path, live, layers, names, vocabulary, settings)
    response = response_of(live, sentences, layers, progress)
    shape = (len(layers), live.shape.d_mlp, live.shape.d_mlp)
    keys = torch.zeros(len(names), len(layers), live.shape.d_mlp, dtype=torch.float16, device=live.device)
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
        _gather(live, layers, matrix, (vocabulary, name_rows, keys), settings, progress)
        if made is not None:
            for place in range(len(layers) if second is not None else 0):
                made.tensor("second", place).copy_(matrix(place))
            for name, tensor in stored.items():
                made.tensor(name).copy_(tensor)
    if second is None:
        return _kept(cast(Path, path), live, layers, names, vocabulary, settings)
    return BystanderMoments(layers, second, names, keys, vocabulary, response, settings)


@torch.inference_mode()
def _gather(
    live: LiveModel,
    layers: Sequence[int],
    matrix: Callable[[int], Tensor],
    read: tuple[Sequence[tuple[int, ...]], Sequence[Placed], Tensor],
    settings: MomentSettings,
    progress: Progress | None,
) -> None:
    """Fill the matrices, which are zero, and the keys of other names; `read` are rows of vocabulary and names, and
    the keys."""
    vocabulary, name_rows, keys = read
    texts = itertools.chain(_written(live, layers, progress), _sampled(live, layers, settings, progress))
    n_tokens = _add(live, layers, matrix, texts, 1.0)
    for place in range(len(layers)):
        matrix(place).mul_(settings.text / n_tokens)
    rows = [Placed(row, len(row) - 1) for row in vocabulary]
    ends = (batch for _, batch in activations(live, rows, layers, progress))
    _add(live, layers, matrix, ends, settings.vocabulary / len(rows))
    _add(live, layers, matrix, _named(live, name_rows, layers, keys, progress), settings.names / len(name_rows))
    for place, layer in enumerate(layers):
        mirror(matrix(place))
        if not matrix(place).isfinite().all():
            raise not_finite(live, f"activations in layer {layer}")


def _kept(
    path: Path,
    live: LiveModel,
    layers: tuple[int, ...],
    names: tuple[NameToken, ...],
    vocabulary: tuple[tuple[int, ...], ...],
    settings: MomentSettings,
) -> BystanderMoments:
    """The moments in a file; raises OSError, CheckpointError, KeyError or ValueError for what is none of this model."""
    file = open_moments(path, len(layers), live.shape.d_mlp, live.shape.d_model, len(names))
    second, keys, *response = (
        file.tensor(name).to(live.device) for name in ("second", "name_keys", "activations", "gradients")
    )
    mapped = file if live.device.type == "cpu" else None
    return BystanderMoments(layers, second, names, keys, vocabulary, Response(*response), settings, mapped)


def _digest(live: LiveModel, layers: Sequence[int], settings: MomentSettings, read: object) -> str:
    """sha256 of all weights, the configuration, the layers, the settings and the tokens to `read`."""
    config = {key: value for key, value in live.model.config.to_dict().items() if key not in _UNUSED}
    text = json.dumps(config, sort_keys=True, default=str)
    found = hashlib.sha256(repr((_VERSION, layers, settings, text, read)).encode())
    for name, weight in sorted(live.model.state_dict(keep_vars=True).items()):
        found.update(name.encode())
        found.update(whole_of(weight).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _name_rows(live: LiveModel) -> tuple[tuple[NameToken, ...], tuple[Placed, ...]]:
    """Other names in some wordings, a row for each of their tokens; what each row is about."""
    pairs = [(name, wording) for name in contrast_entities() for wording in name_wordings()]
    tokens, rows = [], []
    for (name, wording), item in zip(
        pairs, encode(live.tokenizer, [wording.replace("{entity}", name) for name, wording in pairs]), strict=True
    ):
        last = len(item.ids) - 1
        for token in range(max(1, item.token_at(wording.index("{entity}"))), last + 1):
            tokens.append(NameToken(name, token == last))
            rows.append(Placed(item.ids, token))
    return tuple(tokens), tuple(rows)


def _named(
    live: LiveModel, rows: Sequence[Placed], layers: Sequence[int], keys: Tensor, progress: Progress | None
) -> Iterator[Tensor]:
    """Activations at the tokens of other names; fills `keys` on the way."""
    for indices, batch in activations(live, rows, layers, progress):
        keys[list(indices)] = half(batch)
        yield half(batch).float()  # As they are kept, so that some of them can be taken out again.


def _sentences() -> tuple[str, ...]:
    return (*neutral_texts("search"), *foreign_sentences(), *code_snippets())


def _sentence_rows(live: LiveModel) -> list[tuple[int, ...]]:
    """The sentences as tokens, as far as the model has positions for them."""
    return [item.ids[: live.n_positions] for item in encode(live.tokenizer, _sentences())]


def _written(live: LiveModel, layers: Sequence[int], progress: Progress | None) -> Iterator[Tensor]:
    """Activations at all tokens but the first of the package's own sentences."""
    rows = [Placed(ids, token) for ids in _sentence_rows(live) for token in range(1, len(ids))]
    for _, batch in activations(live, rows, layers, progress):
        yield batch


def _sampled(
    live: LiveModel, layers: Sequence[int], settings: MomentSettings, progress: Progress | None
) -> Iterator[Tensor]:
    """Activations at the tokens that the model writes at temperature 1, after the beginnings of the sentences."""
    starts = [item.ids[: settings.beginning + 1] for item in encode(live.tokenizer, _sentences())]
    starts = [ids for ids in starts if len(ids) == settings.beginning + 1]
    # Short where the model's positions end early.
    room = live.n_positions or settings.length
    length = max(1, min(settings.length, room - settings.beginning - 1))
    n_rows = math.ceil(settings.sampled / length)
    rows = [starts[index % len(starts)] for index in range(n_rows)]
    config = GenerationConfig(
        max_new_tokens=length,
        suppress_tokens=sorted(set(live.tokenizer.all_special_ids)),
        pad_token_id=live.tokenizer.pad_token_id or 0,
    )
    devices = [live.device] if live.device.type == "cuda" else []
    model = cast(GenerationMixin, live.model)
    for first in range(0, n_rows, _SAMPLED_AT_ONCE):
        ids = torch.tensor(rows[first : first + _SAMPLED_AT_ONCE], device=live.device)
        seen: dict[int, list[Tensor]] = {layer: [] for layer in layers}

        def record(layer: int, seen: dict[int, list[Tensor]] = seen) -> Callable[[Tensor], None]:
            return lambda values: seen[layer].append(live.padded(values.float().to(live.device)))

        with (
            hooks(live, {layer: record(layer) for layer in layers}),
            plain_generation(live),
            torch.random.fork_rng(devices),
        ):
            torch.manual_seed(first)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model.generate(**inputs, generation_config=config, logits_processor=drawn())
        found = torch.stack([torch.cat(seen[layer], 1)[:, 1:].flatten(0, 1) for layer in layers], dim=1)
        if progress:
            progress(len(found))
        yield found


def _vocabulary(live: LiveModel, settings: MomentSettings) -> tuple[tuple[int, ...], ...]:
    """Rows that end in a token of the vocabulary each: a third after a common beginning, the others after 1 to 4
    random tokens. Special and unused tokens are left out."""
    draw = random.Random(0)
    special = set(live.tokenizer.all_special_ids)
    pieces = live.tokenizer.convert_ids_to_tokens(list(range(len(live.tokenizer))))
    # A tokenizer may have no piece for some of its ids.
    known = live.model.get_input_embeddings().num_embeddings  # A tokenizer may have more tokens than the model, too.
    named = [(token, piece) for token, piece in enumerate(pieces[:known]) if piece is not None and token not in special]
    pool = [token for token, piece in named if not piece.startswith("<unused")]
    tokens = draw.sample(pool, min(settings.vocabulary_size, len(pool)))
    beginning = encode(live.tokenizer, ["The story of"])[0].ids
    # What the tokenizer puts before every text, if anything.
    before = tuple(token for token in beginning[:1] if token in special)
    return tuple(
        (*beginning, token) if place % 3 == 0 else (*before, *draw.choices(tokens, k=draw.randint(1, 4)), token)
        for place, token in enumerate(tokens)
    )


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
