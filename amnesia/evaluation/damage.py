"""What an edit does to texts that have nothing to do with its target: perplexity, and divergence from the original.

The divergence KL(original || edited) = Σ p log(p / q) needs both whole distributions at every token. Storing the
original's would take hundreds of kilobytes for each token, and having both models in memory twice the room. Kept
instead are the original's final states, a vector for each token, and its language-model head, from which its exact
distributions are computed again, a few tokens at a time, when the edited model is there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor

from amnesia.errors import NumericalError
from amnesia.evaluation.measurement import Asked
from amnesia.evaluation.results import Damage, LanguageScore, TextScore
from amnesia.evaluation.scores import mean_interval
from amnesia.facts.neutral import NeutralText, neutral_text
from amnesia.live.forward import Readout, continued, final_states, readout
from amnesia.live.model import LiveModel, not_finite
from amnesia.live.tokens import Continuation, encode
from amnesia.progress import Progress
from amnesia.servers.server import Server

T = TypeVar("T")

N_CONTINUED = 16
"""Tokens that the original model writes after a control prompt; the divergence is taken along them."""

MAX_CONTINUED = 64
"""Control prompts that are continued: enough for an interval, few enough to take seconds."""

MAX_WINDOW = 512
"""Tokens of neutral text that are read in one piece."""

MAX_NATS_PER_WORD = 700.0
"""The exponential of a little more is beyond the range of floating-point numbers."""

ENGLISH = "en"

FLUENT = 1.5
"""Bits per character, over those of English, up to which a model counts as fluent in a language.

Gemma 3 270M, which has read all of them, needs 1.13 to 1.18 times as many in German, French and Spanish; SmolLM2-135M,
which has read English, 1.77 to 2.17 times.
"""

_CHUNK = 128
"""Tokens whose distributions are in memory at a time."""


@dataclass(frozen=True)
class Reading:
    """Rows of tokens that a model has read: log-probability (nats) of each row's last `n_answer` tokens, summed, and
    the final states (n_answer, d_model) from which `readout` computes the distributions. A server gives neither tokens
    nor states.

    `divergence` is KL(original || this model) of each row, the mean over its tokens in nats; None for the original,
    where tokens are not shared, and where distributions are not known. `n_likeliest` is of how many of these tokens,
    from the first on, each is the one that the model would write: the likeliest, of equals the first. None is in 16
    bits, where roundings decide; it is empty from a server.
    """

    rows: tuple[Continuation, ...]
    logprobs: tuple[float, ...]
    states: tuple[Tensor, ...]
    readout: Readout | None
    divergence: tuple[float, ...] | None = None
    n_likeliest: tuple[int, ...] = ()


@dataclass(frozen=True)
class Impression:
    """What a model makes of each neutral text, and of what the original model says after control prompts.

    `prompts` are these control prompts. `continued` is None where there are none, for a model with tokens of its own,
    and for one on a server.
    """

    neutral: tuple[Reading, ...]
    prompts: tuple[str, ...]
    continued: Reading | None


def read(
    live: LiveModel,
    rows: Sequence[Continuation],
    progress: Progress | None = None,
    original: Reading | None = None,
) -> Reading:
    """Read rows of tokens, and how far what is predicted diverges from what the `original` model has made of them.

    Raises NumericalError when the model's output is NaN or infinite.
    """
    head, rows = readout(live), tuple(rows)
    states = tuple(final_states(live, rows, head, progress))
    before = None if original is None or original.rows != rows else original.readout
    olds = iter(()) if before is None or original is None else _chunks(original.states)
    tokens = [token for row in rows for token in row.ids[len(row.ids) - row.n_answer :]]
    logprobs: list[float] = []  # Of each token, as what follows.
    divergences: list[float] = []
    is_likeliest: list[bool] = []
    # In 16 bits, what is read at once and what is written token by token often differ in what is likeliest.
    is_sure = torch.finfo(live.model.dtype).bits >= 32
    for start, part in zip(itertools.count(0, _CHUNK), _chunks(states), strict=False):
        logits = head.logits(part)
        wanted = torch.tensor(tokens[start : start + len(part)], device=logits.device)
        chosen = logits.gather(1, wanted[:, None])[:, 0]
        size = logits.logsumexp(1)
        logprobs += (chosen - size).tolist()
        is_likeliest += (logits.max(1).indices == wanted).tolist() if is_sure else [False] * len(part)
        if before is not None:
            old = before.logits(next(olds))
            if old.shape == logits.shape:
                divergences += _divergence(old, logits.to(old.device), size.to(old.device)).tolist()
            else:
                before = None
    if not all(map(math.isfinite, logprobs)):
        raise not_finite(live, "log-probabilities")
    return Reading(
        rows,
        tuple(math.fsum(part) for part in _of_rows(rows, logprobs)),
        states,
        head,
        None if before is None else tuple(fmean(part) for part in _of_rows(rows, divergences)),
        tuple(sum(1 for _ in itertools.takewhile(bool, part)) for part in _of_rows(rows, is_likeliest)),
    )


def _of_rows(rows: Sequence[Continuation], values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Values of all tokens of all rows, parted by rows."""
    start = 0
    for row in rows:
        yield values[start : start + row.n_answer]
        start += row.n_answer


def _divergence(old: Tensor, new: Tensor, new_size: Tensor) -> Tensor:
    """KL(old || new) in nats of each row of logits; `new_size` are the logarithms of what those of `new` sum to."""
    # Σ p (log p − log q), with what the two normalizations differ by taken out of the sum.
    kl = torch.linalg.vecdot(old.softmax(1), old - new) + (new_size - old.logsumexp(1))
    return kl.clamp(min=0)  # Never negative but for rounding.


def impression(
    live: Asked,
    prompts: Sequence[str],
    progress: Progress | None = None,
    neutral: tuple[Reading, ...] | None = None,
) -> Impression:
    """What the original model makes of neutral text, and of its own continuations of (some of) the control prompts.

    Its reading of `neutral` text, which takes seconds, may be given where it is known.
    """
    if isinstance(live, Server):
        return Impression(_neutral(live, progress), (), None)
    unique = list(dict.fromkeys(prompts))
    chosen = tuple(unique[:: max(1, math.ceil(len(unique) / MAX_CONTINUED))])
    rows = continued(live, chosen, N_CONTINUED)
    neutral = _neutral(live, progress) if neutral is None else neutral
    own = tuple(row.n_answer for row in rows)  # Whatever rounding does to equally likely tokens.
    return Impression(neutral, chosen, replace(read(live, rows, progress), n_likeliest=own) if rows else None)


def impression_after(live: Asked, original: Impression, progress: Progress | None = None) -> Impression:
    """What the edited model makes of the same texts."""
    neutral = _neutral(live, progress, original.neutral)
    shared = all(one.rows == other.rows for one, other in zip(original.neutral, neutral, strict=True))
    if isinstance(live, Server):
        return Impression(neutral, original.prompts, None)
    rows = original.continued.rows if original.continued is not None and shared else ()
    return Impression(neutral, original.prompts, read(live, rows, progress, original.continued) if rows else None)


def damage(before: Impression, after: Impression | None) -> tuple[Damage, dict[str, float]]:
    """The damage, and the divergence (nats per token) at each control prompt that was continued.

    Without `after` there is one model only, and no divergence.
    """
    scores = []
    for index, text in enumerate(neutral_text()):
        old = before.neutral[index]
        new = old if after is None else after.neutral[index]
        kl = None if after is None else new.divergence
        n_tokens = sum(row.n_answer for row in old.rows)
        n_words = _n_words(text)
        scores.append(
            TextScore(
                register=text.register,
                language=text.language,
                n_tokens=n_tokens,
                n_words=n_words,
                perplexity_before=_perplexity(sum(old.logprobs), n_words),
                perplexity_after=_perplexity(sum(new.logprobs), n_words),
                kl=None
                if kl is None
                else sum(value * row.n_answer for value, row in zip(kl, old.rows, strict=True)) / n_tokens,
            )
        )
    n_words = sum(row.n_words for row in scores)
    totals = [
        sum(sum(reading.logprobs) for reading in one.neutral) for one in (before, before if after is None else after)
    ]
    found = None if after is None or after.continued is None else after.continued.divergence
    return (
        Damage(
            _perplexity(totals[0], n_words),
            _perplexity(totals[1], n_words),
            tuple(scores),
            None if found is None else mean_interval(found),
            _languages(before, before if after is None else after),
        ),
        {} if found is None else dict(zip(before.prompts, found, strict=True)),
    )


def _languages(before: Impression, after: Impression) -> tuple[LanguageScore, ...]:
    """The registers of each language taken together, in the order in which languages first come."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(neutral_text()):
        places.setdefault(text.language, []).append(place)
    bits = {name: [_bits(one, rows) for one in (before, after)] for name, rows in places.items()}
    scores = []
    for language, rows in places.items():
        n_words = sum(_n_words(neutral_text()[place]) for place in rows)
        old, new = (
            _perplexity(sum(sum(one.neutral[place].logprobs) for place in rows), n_words) for one in (before, after)
        )
        own = bits[language]
        fluent = own[0] <= FLUENT * bits[ENGLISH][0]
        scores.append(LanguageScore(language, n_words, _n_characters(rows), old, new, *own, fluent))
    return tuple(scores)


def _bits(one: Impression, places: Sequence[int]) -> float:
    """Bits per character of some of the neutral texts."""
    nats = -sum(sum(one.neutral[place].logprobs) for place in places)
    return nats / math.log(2) / _n_characters(places)


def _n_characters(places: Sequence[int]) -> int:
    return sum(len(passage) for place in places for passage in neutral_text()[place].passages)


def _neutral(live: Asked, progress: Progress | None, originals: Sequence[Reading] | None = None) -> tuple[Reading, ...]:
    if isinstance(live, Server):
        return tuple(_served(live, text.passages, progress) for text in neutral_text())
    # Of similar length, rows of several texts fill a batch better.
    texts = [_windows(live, text) for text in neutral_text()]
    original = None if originals is None else _joined(originals)
    return tuple(_parted(read(live, [row for rows in texts for row in rows], progress, original), map(len, texts)))


def _joined(parts: Sequence[Reading]) -> Reading:
    """Readings by one model, neither of them compared with another, as one."""
    rows, logprobs, states, n_likeliest = (
        tuple(itertools.chain.from_iterable(column))
        for column in zip(*((one.rows, one.logprobs, one.states, one.n_likeliest) for one in parts), strict=True)
    )
    return Reading(rows, logprobs, states, parts[0].readout, None, n_likeliest)


def _parted(whole: Reading, sizes: Iterable[int]) -> Iterator[Reading]:
    """A reading as one of each of so many rows."""
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        kl = None if whole.divergence is None else whole.divergence[part]
        yield Reading(
            whole.rows[part], whole.logprobs[part], whole.states[part], whole.readout, kl, whole.n_likeliest[part]
        )
        start += size


def _served(server: Server, passages: Sequence[str], progress: Progress | None) -> Reading:
    found = server.text_logprobs(passages, progress)
    rows = tuple(Continuation((), n_tokens) for _, n_tokens in found)
    return Reading(rows, tuple(logprob for logprob, _ in found), (), None)


def _windows(live: LiveModel, text: NeutralText) -> list[Continuation]:
    """A text as rows of tokens that fit the model; of each the first token has nothing to be predicted from."""
    width = min(MAX_WINDOW, live.n_positions or MAX_WINDOW)
    return [
        Continuation(part, len(part) - 1)
        for item in encode(live.tokenizer, text.passages)
        for start in range(0, len(item.ids), width)
        if len(part := item.ids[start : start + width]) > 1
    ]


def _n_words(text: NeutralText) -> int:
    return sum(len(passage.split()) for passage in text.passages)


def _perplexity(logprob: float, n_words: int) -> float:
    if -logprob / n_words > MAX_NATS_PER_WORD:
        raise NumericalError(
            f"neutral text has {-logprob / n_words:.0f} nats per word, which is no finite perplexity: "
            "the edit has destroyed the model, use smaller multipliers"
        )
    return math.exp(-logprob / n_words)


def _chunks(states: Sequence[Tensor]) -> Iterator[Tensor]:
    """The states one after the other in parts (_CHUNK, d_model), of which the last may be smaller."""
    group: list[Tensor] = []
    for part in (part for rows in states for part in rows.split(_CHUNK)):
        room = _CHUNK - sum(map(len, group))
        group.append(part[:room])
        if len(part) >= room:
            yield torch.cat(group)
            group = [part[room:]]
    if sum(map(len, group)):
        yield torch.cat(group)
