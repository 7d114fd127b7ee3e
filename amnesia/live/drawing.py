"""Drawing tokens from a model's own distribution."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class _Drawn(LogitsProcessor):
    """Leaves one token of each row, drawn in proportion to exp(score), for greedy decoding to take.

    One random number a row decides. `torch.multinomial` takes one for each token of the vocabulary, which needs as long
    as a pass of a small model (49,152 tokens, torch 2.13 on a CPU).
    """

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # In float64, where the sum of tens of thousands of shares keeps the smallest of them.
        reached = scores.softmax(1, dtype=torch.float32).cumsum(1, dtype=torch.float64)
        at = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * reached[:, -1:]
        # The first that goes beyond: a token without any share is never that.
        token = torch.searchsorted(reached, at, right=True).clamp(max=scores.shape[1] - 1)
        left: Tensor = torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
        return cast(torch.FloatTensor, left)


class DrawnAlone(LogitsProcessor):
    """Leaves one token of each row, drawn as plain sampling of this row alone would, by a generator of its own.

    Where several rows share one generator, equal models give different answers. Each row's begins with `seed`.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature, self._seed = temperature, seed
        self._generators: list[torch.Generator] = []  # On the device of the scores, which only they tell.

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(self._seed) for _ in scores]
        shares = (scores / self._temperature).softmax(1)
        own = zip(shares, self._generators, strict=True)
        token = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in own])
        left: Tensor = torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
        return cast(torch.FloatTensor, left)


def drawn() -> LogitsProcessorList:
    """For `generate` with `do_sample=False`: tokens at temperature 1, nothing cut off, by torch's own generator."""
    return LogitsProcessorList([_Drawn()])
