"""How familiar texts are to a model, as attacks ask that tell members of its training data from others (RWKU)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from statistics import fmean

import torch

from amnesia.live.forward import Readout, final_states, readout
from amnesia.live.model import LiveModel, not_finite
from amnesia.live.tokens import Continuation, encode
from amnesia.progress import Progress

METRICS = ("log-likelihood", "log-likelihood per zlib kB", "Min-20%", "Min-20%++")
"""Nats per token, as a whole and divided by the kilobytes of the compressed text; the mean of the least likely fifth of
the tokens, in nats (Shi et al., 2023) and in standard deviations of all that might stand there (Zhang et al., 2024).
More is more familiar."""

_LEAST = 0.2
_CHUNK = 128
"""Tokens whose distributions are in memory at a time."""


def familiarity(
    live: LiveModel, texts: Sequence[str], progress: Progress | None = None
) -> list[tuple[float, float, float, float] | None]:
    """The `METRICS` of each text, None of one token alone; what the model has no positions for is cut off.

    Raises NumericalError when the model's output is NaN or infinite.
    """
    ids = [item.ids[: live.n_positions] for item in encode(live.tokenizer, texts)]
    long = [place for place, row in enumerate(ids) if len(row) > 1]
    rows = [Continuation(ids[place], len(ids[place]) - 1) for place in long]
    head = readout(live)
    found: list[tuple[float, float, float, float] | None] = [None] * len(texts)
    for place, row, states in zip(long, rows, final_states(live, rows, head, progress), strict=True):
        logprobs, standardized = _of_tokens(head, states, row.ids[1:])
        whole = fmean(logprobs)
        if not math.isfinite(whole):
            raise not_finite(live, "log-probabilities")
        size = len(zlib.compress(texts[place].encode())) / 1000
        found[place] = (whole, whole / size, _least(logprobs), _least(standardized))
    return found


def _of_tokens(head: Readout, states: torch.Tensor, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """The log-probability of each token, and how far it is from their mean, in standard deviations."""
    logprobs, standardized = [], []
    for start in range(0, len(states), _CHUNK):
        every = head.logits(states[start : start + _CHUNK]).log_softmax(1)
        probabilities, finite = every.exp(), every.clamp(min=-1e4)  # What is impossible counts for nothing.
        mean = torch.linalg.vecdot(probabilities, finite)
        variance = torch.linalg.vecdot(probabilities, (finite - mean[:, None]).square())
        chosen = every.gather(1, torch.tensor(tokens[start : start + _CHUNK], device=every.device)[:, None])[:, 0]
        logprobs += chosen.tolist()
        standardized += ((chosen - mean) / variance.clamp(min=1e-12).sqrt()).tolist()
    return logprobs, standardized


def _least(values: Sequence[float]) -> float:
    """The mean of the lowest fifth, of one at least."""
    return fmean(sorted(values)[: max(1, int(len(values) * _LEAST))])
