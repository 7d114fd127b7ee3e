"""LoRA unlearning, the way that most others take: what an edit is compared with when both are trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amnesia.evaluation.measurement import Pair
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Continuation
from amnesia.progress import Progress
from amnesia.stress.settings import Unlearning
from amnesia.stress.training import Delta, Draw, answered, checked, deltas, rows_of, trainable

MAX_TOKENS = 96
"""Of a text that is kept; set by hand, enough for the sentences of this package."""


@dataclass(frozen=True)
class Unlearned:
    """An adapter, and the number of steps in which it was learned."""

    steps: int
    adapter: tuple[Delta, ...]


def unlearn(
    live: LiveModel,
    forget: Sequence[Pair],
    retain: Sequence[str],
    settings: Unlearning,
    score: Callable[[], float],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Unlearned:
    """An adapter with which the answers of `forget` become unlikely, and the texts of `retain` stay as they are.

    `score` says how much is left. The loss is that of `settings.Unlearning`. Equal arguments give equal results; the
    model is afterwards as before.
    """
    lost = rows_of(live, forget, MAX_TOKENS)
    left = rows_of(live, [("", text) for text in retain], MAX_TOKENS)
    with torch.no_grad():
        before = torch.cat([_logprobs(live, lost, [index]) for index in range(len(lost))])
    forgetting, keeping = Draw(len(lost), settings.batch, seed), Draw(len(left), settings.batch, seed)
    with trainable(live, settings.way, seed) as wrapped:
        for step in range(settings.most + 1):
            if step == settings.most or (step % settings.every == 0 and _at_most(score, settings.goal)):
                return Unlearned(step, deltas(live))
            chosen, spared = forgetting.next(), keeping.next()
            with torch.no_grad(), wrapped.disable_adapter():
                logits, wanted = answered(live, left, spared)
                expected = logits[wanted != -100].log_softmax(-1)
            gain = _logprobs(live, lost, chosen) - before[chosen]
            negative = gain.mean()
            if settings.beta:
                negative = -2 / settings.beta * nn.functional.logsigmoid(-settings.beta * gain).mean()
            logits, wanted = answered(live, left, spared)
            found = logits[wanted != -100].log_softmax(-1)
            kl = nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)
            checked(live, negative + settings.kl_weight * kl).backward()
            if progress:
                progress(1)
    raise AssertionError("the last step returns")


def _at_most(score: Callable[[], float], goal: float) -> bool:
    with torch.no_grad():
        return score() <= goal


def _logprobs(live: LiveModel, rows: Sequence[Continuation], indices: Sequence[int]) -> Tensor:
    """Log-probability (nats) of the answer of each row, (batch,)."""
    logits, wanted = answered(live, rows, indices)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return -losses.view(wanted.shape).sum(1)
