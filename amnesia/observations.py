"""What a search has measured so far, and what follows from it for everything that it has not measured lately."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from amnesia.model import Progress
from amnesia.objective import Problem, Tangent

TARGETS_PER_STEP = 6
MAX_TURNS = 5
"""Steps at most in which every target is measured once."""

EMPHASIS = 4.0
"""By how much an entity of which all is left counts more than one of which nothing is."""

HARD_PER_STEP = 4
"""Bystanders that are drawn from the ones with the largest estimated divergence."""

CONTROLS_PER_STEP = 6
WORST_PER_STEP = 8
"""Search controls of largest divergence that are measured again when all targets are."""

OTHERS_PER_STEP = 2
TEXTS_PER_STEP = 2
REMEMBERED = 12
REMEMBERED_STEPS = 4
"""Bystanders with noticeable divergence whose last measurement takes part in later steps."""

CONTROLS_REMEMBERED_STEPS = 8
"""Steps for which a search control that was drawn evenly is remembered."""

NOTICED = 0.02
"""Divergence in nats from which on a bystander is remembered."""

MOST = 1.0
"""Nats of divergence of a single bystander that count at most: with these its answer is lost."""

PRIOR_SCALES = (0.07, 0.05)
"""Nats of divergence for a unit of leakage, onto others and texts, as far as nothing has been measured."""


class Observations:
    """Tangents of targets and bystanders of a problem, as they were measured last.

    `targets` has one for each target from the first measurement on, `harms` those of the bystanders that have moved
    noticeably, both by their number in the problem.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.targets: dict[int, Tangent] = {}
        self.harms: dict[int, Tangent] = {}
        self._problem = problem
        self._n_names = problem.bystanders.n_names
        self._scales = tuple(map(_Scale, PRIOR_SCALES))
        self._seen: dict[int, float] = {}
        self._measured: dict[int, int] = {}
        self._n_steps = 0
        self._random = random.Random(seed)
        n = len(problem.targets)
        self._emphasis = torch.full((int(problem.entities.max()) + 1,), 1.0, device=problem.entities.device)
        self._emphasis /= len(self._emphasis)
        self._draws = _draws(n, max(TARGETS_PER_STEP, math.ceil(n / MAX_TURNS)), self._random)

    @property
    def scales(self) -> tuple[float, float]:
        """How many nats of divergence a unit of leakage comes to, for prompts about others and for texts."""
        others, texts = (scale.value for scale in self._scales)
        return others, texts

    def is_text(self, kept: int) -> bool:
        """Whether a bystander is a neutral text."""
        return kept >= self._n_names

    def measure(
        self,
        multipliers: Tensor,
        leakage: Tensor,
        progress: Progress | None = None,
        *,
        thorough: bool = False,
        evenly: bool = False,
    ) -> None:
        """Measure some targets (all, if `thorough`) and some bystanders, whose `leakage` (n_rows,) is known.

        All targets are measured at first, then some in turn. Bystanders are mostly those with the largest estimates;
        `evenly`, they are mostly search controls, each as likely as the next, and `harms` are those alone.
        """
        targets = range(len(self._problem.targets)) if thorough else next(self._draws)
        self._n_steps += 1
        if evenly:
            chosen = self._controls(thorough)
        else:
            estimates = self._estimates(multipliers, leakage)
            near = estimates.topk(min(3 * HARD_PER_STEP, len(estimates))).indices.tolist()
            chosen = self._random.sample(near, min(HARD_PER_STEP, len(near)))
        names, texts = range(self._n_names), range(self._n_names, len(leakage))
        chosen += self._random.sample(names, min(OTHERS_PER_STEP, len(names)))
        chosen += self._random.sample(texts, min(TEXTS_PER_STEP, len(texts)))
        kept = list(dict.fromkeys(chosen))
        found = self._problem.tangents(multipliers, targets, kept)
        self.targets.update(zip(targets, found[: len(targets)], strict=True))
        harms = dict(zip(kept, found[len(targets) :], strict=True))
        for index, tangent in harms.items():
            nats = tangent.value.item()
            self._seen[index] = nats
            if leakage[index] > 0:
                self._scales[self.is_text(index)].note(min(MOST, nats), leakage[index].item())
            self._measured[index] = self._n_steps
        self._remember(harms, evenly)
        if progress:
            progress(len(targets) + len(kept))

    def _controls(self, thorough: bool) -> list[int]:
        controls = range(self._problem.n_controls)
        worst = sorted(self.harms, key=lambda index: -self.harms[index].value.item())[: WORST_PER_STEP * thorough]
        return [*self._random.sample(controls, min(CONTROLS_PER_STEP, len(controls))), *worst]

    def _remember(self, harms: dict[int, Tangent], evenly: bool) -> None:
        """Put these first, and drop the oldest of those that there were."""
        n_steps = CONTROLS_REMEMBERED_STEPS if evenly else REMEMBERED_STEPS
        older = {
            index: tangent
            for index, tangent in self.harms.items()
            if index not in harms and self._n_steps - self._measured[index] < n_steps
        }
        if evenly:
            self.harms = {index: row for index, row in (harms | older).items() if index < self._problem.n_controls}
        else:
            noticed = {index: row for index, row in harms.items() if row.value > NOTICED} | older
            self.harms = dict(list(noticed.items())[:REMEMBERED])

    def remeasure(self, multipliers: Tensor) -> tuple[dict[int, Tangent], dict[int, Tangent]]:
        """The same targets and harms at other multipliers, with the slopes that they had."""
        at = multipliers.clone()
        found = (
            self._problem.scores(multipliers, list(self.targets)),
            self._problem.divergences(multipliers, list(self.harms)),
        )
        targets, harms = (
            {index: Tangent(value, row.gradient, at) for (index, row), value in zip(known.items(), values, strict=True)}
            for known, values in zip((self.targets, self.harms), found, strict=True)
        )
        return targets, harms

    def left(self, multipliers: Tensor) -> float:
        """Estimated mean knowledge score of the targets, where those below the unknown-entity level count as that."""
        return (self._scores(multipliers) @ self.shares).item()

    def _scores(self, multipliers: Tensor) -> Tensor:
        odds = torch.stack([tangent.value_at(multipliers) for tangent in self.targets.values()])
        return self._problem.plain_scores(odds, list(self.targets)).clamp(min=0)

    @property
    def shares(self) -> Tensor:
        """The shares of the targets in a mean, in the order of `targets`: the same for each entity, at first."""
        entities = self._problem.entities[list(self.targets)]
        counts = entities.bincount(minlength=len(self._emphasis))
        return (self._emphasis / counts)[entities]

    def emphasize(self, multipliers: Tensor) -> None:
        """Give entities of which more is left a larger share, so that none is given up because others are cheaper."""
        entities = self._problem.entities[list(self.targets)]
        scores = self._scores(multipliers)
        left = torch.zeros_like(self._emphasis).index_add_(0, entities, scores) / entities.bincount()
        weights = 1 + EMPHASIS * left.clamp(0, 1)
        self._emphasis = weights / weights.sum()

    def spent(self, multipliers: Tensor, leakage: Tensor) -> tuple[float, float]:
        """Estimated mean divergence in nats of prompts about others and of neutral texts."""
        estimates = self._estimates(multipliers, leakage).clamp(max=MOST)
        others, texts = (
            part.mean().item() if len(part) else 0.0
            for part in (estimates[: self._n_names], estimates[self._n_names :])
        )
        return others, texts

    def _estimates(self, multipliers: Tensor, leakage: Tensor) -> Tensor:
        """Divergence of each bystander (n_rows,): from its tangent, else from its leakage and what was seen."""
        others, texts = self.scales
        estimates = leakage * texts
        estimates[: self._n_names] = leakage[: self._n_names] * others
        for index, value in self._seen.items():
            estimates[index] = 0.5 * estimates[index] + 0.5 * value
        for index, tangent in self.harms.items():
            estimates[index] = tangent.value_at(multipliers).clamp(min=0)
        return estimates


class _Scale:
    """A running ratio of divergence to leakage that starts from a prior."""

    def __init__(self, prior: float) -> None:
        self._nats, self._leakage = 0.2, 0.2 / prior

    def note(self, nats: float, leakage: float) -> None:
        self._nats = 0.9 * self._nats + nats
        self._leakage = 0.9 * self._leakage + leakage

    @property
    def value(self) -> float:
        return self._nats / self._leakage


def _draws(n: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    """All of `n` indices, then endless draws of at most `size` of them, without repetition until all have come."""
    yield list(range(n))
    queue: list[int] = []
    while True:
        if len(queue) < min(size, n):
            queue += draw.sample(range(n), n)
        chosen = list(dict.fromkeys(queue[:size]))
        queue = queue[size:]
        yield chosen
