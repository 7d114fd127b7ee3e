"""Choose cells and multipliers: targets fall to the unknown-entity level, everything else keeps its answers.

The only variables are multipliers of cells. Gradients are never taken of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amnesia.domain import Cell, ColumnEdit
from amnesia.model import Progress
from amnesia.objective import Problem, Tangent
from amnesia.observations import Observations
from amnesia.surrogate import Surrogate

EXACT_MULTIPLIERS = (-8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
"""Powers of two scale floating-point numbers without rounding, so that the edit is exact and inverts exactly."""

TARGET_GOAL = 0.1
"""Mean knowledge score of the targets at which they have been pushed enough."""

NEAR_GOAL = 0.15
"""Mean knowledge score from which on the bystanders' weights fall no further."""

BUDGETS = (0.03, 0.006)
"""Mean divergence in nats, on prompts about others and on neutral texts, that an edit may cost."""

WEIGHTS = (0.5, 1.5)
"""Weights at the start of one nat of mean divergence, on prompts about others and on neutral texts, against one unit of
knowledge score."""

MIN_WEIGHTS = (0.02, 0.05)
MAX_WEIGHTS = (1.0, 8.0)
JOINING_WEIGHTS = (0.8, 2.0)
"""Weights at the least in the choice of cells, so that none joins that does much harm."""

GROWING_STEPS = 16
"""Steps at most in which cells join and leave."""

REFINING_STEPS = 32
"""Small steps of all multipliers that make the edit cheaper when the targets have been reached."""

RATES = (0.12, 0.05, 0.02)
"""Lengths of these steps in their first half, the next third, and at the end."""

SPARE = 0.5
"""Share of `max_cells` by which there may be more cells in the first half of refining."""

UNITS = (0.03, 0.004)
"""Mean divergence in nats that costs the price once: on search controls and prompts about others, on neutral texts."""

REFINED_GOAL = 0.08
"""Mean knowledge score of the targets around which the price of damage is kept, from refining on."""

PRICE = 0.05
"""Price of damage at the start of refining, in knowledge score."""

PRICES = (0.005, 2.5)
"""The least and the highest price."""

ROUNDING_STEPS = 6
"""Steps at each of which some more multipliers take their final, exact values."""

POLISHING_STEPS = 8
"""Changes of one exact multiplier to the next that are measured at the end, and kept where the loss is less."""

STEPS_TO_FULL = 8
"""Steps at least in which cells join until all places are taken."""

TRIAL_STEPS = 4
"""Steps after which a cell may lose its place to another."""

RADIUS = 1.5
"""How far a multiplier moves at most in one step: the measurements are straight lines, the model is not."""

LATE_RADIUS = 0.9
ROUNDING_RADIUS = 0.6
N_ITERATIONS = 80
MAX_CHANGE = 4.0
"""Change of a cell's multiplier that is counted on at most when the cell joins."""


def pursue(
    problem: Problem,
    worth: Tensor,
    *,
    max_cells: int,
    lowest: float,
    start: Sequence[ColumnEdit] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ColumnEdit, ...]:
    """The edit of at most `max_cells` cells with exact multipliers in [lowest, 1), by successive convex approximation.

    At every step, some targets and some bystanders are measured, with the gradients of each by all cells in one
    backward pass. What was measured last of each row, as a straight line, and the leakage onto all bystanders, as a
    quadratic form, make a convex model of the loss in which the multipliers of the joined cells are optimized within a
    radius. Cells join a few at a time while the others already act, so that backups which take over from a negated cell
    are met in turn: those of largest predicted gain, weighted by `worth` (n_cells,). When all places are taken, the
    cell that would be missed least makes room (orthogonal matching pursuit with replacement: Jain, Tewari, Dhillon,
    2011). That finds an edit that reaches the targets, not the cheapest one: their scores hardly move at first and
    then fall at once, so the steps must be long. Small steps (Adam: Kingma, Ba, 2015), in which controls are drawn
    evenly, make it cheaper; in the first half of them there are `SPARE` more cells. Then multipliers are rounded to
    `EXACT_MULTIPLIERS`, some at each step, while the rest makes up for it. Finally single ones are moved to a neighbor
    where a measurement says that it helps.

    The loss is the mean of the targets' scores and the weighted divergence of the bystanders. While cells join, the
    weights fall as long as the targets are above `NEAR_GOAL` and `BUDGETS` are not spent, and rise when the targets are
    below `TARGET_GOAL` and more than that is spent; when both is well, no further cell is looked for. From then on both
    weights follow one price, which holds the targets at `REFINED_GOAL`. The search may `start` from an edit. Where
    targets are about several entities, those of which more is left count more.
    """
    search = _Search(problem, worth, max_cells, lowest, seed)
    search.begin(start)
    return search.run(progress)


class _Search:
    def __init__(self, problem: Problem, worth: Tensor, max_cells: int, lowest: float, seed: int) -> None:
        self._max_cells, self._lowest = max_cells, lowest
        self._per_step = max(2, math.ceil(max_cells / STEPS_TO_FULL))
        self._d_mlp = problem.live.shape.d_mlp
        self._crowd = problem.bystanders
        self._worth = worth.to(problem.live.device).float()
        self._prices = self._crowd.prices()
        self._multipliers = torch.ones(len(worth), device=problem.live.device)
        self._joined: list[int] = []
        self._born: dict[int, int] = {}
        self._exact: set[int] = set()
        self._observed = Observations(problem, seed)
        self._weights = WEIGHTS
        self._price = PRICE
        values = [item for item in EXACT_MULTIPLIERS if item >= lowest]
        self._grid = torch.tensor(values, device=problem.live.device)

    def begin(self, edits: Sequence[ColumnEdit]) -> None:
        """Let the cells of an edit join, with the multipliers that they have there."""
        for edit in edits:
            index = self._crowd.layers.index(edit.cell.layer) * self._d_mlp + edit.cell.neuron
            self._joined.append(index)
            self._born[index] = -TRIAL_STEPS
            self._multipliers[index] = edit.multiplier

    def run(self, progress: Progress | None) -> tuple[ColumnEdit, ...]:
        for step in range(GROWING_STEPS):
            if self._grow(step, progress):
                break
        self._refine(progress)
        for n_left in range(ROUNDING_STEPS, 0, -1):
            self._round(n_left, progress)
        self._polish(progress)
        return tuple(
            ColumnEdit(Cell(self._crowd.layers[index // self._d_mlp], index % self._d_mlp), multiplier)
            for index in sorted(self._joined)
            if (multiplier := self._multipliers[index].item()) < 1
        )

    def _grow(self, step: int, progress: Progress | None) -> bool:
        """Let cells join, move all multipliers, and let one cell leave; or say that nothing more is needed."""
        leakage = self._leakage()
        by_row = self._crowd.by_row(leakage)
        self._observed.measure(self._multipliers, by_row, progress)
        self._observed.emphasize(self._multipliers)
        left = self._observed.left(self._multipliers)
        spent = self._observed.spent(self._multipliers, by_row)
        if left <= TARGET_GOAL and all(nats <= budget for nats, budget in zip(spent, BUDGETS, strict=True)):
            return True
        late = step > GROWING_STEPS // 2
        self._weights = reweighted(self._weights, left, spent, gently=late)
        self._join(min(self._per_step, self._max_cells - len(self._joined)), step)
        if self._joined:
            model = self._model(leakage)
            everywhere = torch.ones_like(model.start, dtype=torch.bool)
            radius = LATE_RADIUS if late else RADIUS
            found = model.minimize(model.start, everywhere, self._lowest, radius, N_ITERATIONS)
            self._multipliers[self._joined] = found
            if step < GROWING_STEPS - 1:
                self._leave(step, model, found)
        return False

    def _refine(self, progress: Progress | None) -> None:
        """Move all multipliers by small steps toward the least damage with which the targets stay at the goal."""
        if not self._joined:
            return
        self._observed.harms = {}
        self._join(math.ceil((1 + SPARE) * self._max_cells) - len(self._joined), GROWING_STEPS)
        found = self._multipliers.clone()
        adam = torch.optim.Adam([found], betas=(0.8, 0.95))
        for step in range(REFINING_STEPS):
            leakage = self._observe(progress)
            if step == REFINING_STEPS // 2:
                self._drop(leakage)
            adam.param_groups[0]["lr"] = RATES[(step >= REFINING_STEPS // 2) + (step >= REFINING_STEPS * 5 // 6)]
            found.grad = torch.zeros_like(found)
            found.grad[self._joined] = self._model(leakage).slope()
            adam.step()
            self._multipliers[self._joined] = found[self._joined].clamp(self._lowest, 1.0)
            # Cells that have left, whose momentum lasts, stay where they were, and the others within their limits.
            found.copy_(self._multipliers)

    def _drop(self, leakage: Tensor) -> None:
        """Let the cells go whose absence the model minds least, until there are no more than may be."""
        while len(self._joined) > self._max_cells:
            model = self._model(leakage)
            self._dismiss(self._by_absence(model, model.start)[0])

    def _observe(self, progress: Progress | None, *, thorough: bool = False) -> Tensor:
        """Measure at the present multipliers, follow with the price, and return the leakage."""
        leakage = self._leakage()
        self._observed.measure(self._multipliers, self._crowd.by_row(leakage), progress, thorough=thorough, evenly=True)
        self._observed.emphasize(self._multipliers)
        self._price = repriced(self._price, self._observed.left(self._multipliers))
        self._weights = tuple(self._price / budget for budget in UNITS)
        return leakage

    def _round(self, n_left: int, progress: Progress | None) -> None:
        """Give some multipliers their exact values, and move the rest; `n_left` such steps are left."""
        leakage = self._observe(progress, thorough=True)
        if self._joined:
            model = self._model(leakage)
            free = torch.tensor([cell not in self._exact for cell in self._joined], device=leakage.device)
            n = math.ceil(int(free.sum()) / n_left)
            found = model.minimize(model.start, free, self._lowest, ROUNDING_RADIUS, N_ITERATIONS)
            found, free = model.rounded(found, free, n, self._grid, self._lowest, ROUNDING_RADIUS)
            self._exact = {cell for cell, more in zip(self._joined, free.tolist(), strict=True) if not more}
            self._multipliers[self._joined] = found

    def _polish(self, progress: Progress | None) -> None:
        """Change exact multipliers to neighbors in the grid, one at a time, where measurements say that it helps."""
        if not self._joined:
            return
        observed = self._observed
        # What was last measured with other multipliers would not compare with what is measured here.
        observed.targets, observed.harms = observed.remeasure(self._multipliers)
        tried: set[tuple[int, float]] = set()
        for _ in range(POLISHING_STEPS):
            model = self._model(self._leakage())
            present = model.loss(model.start).item()
            moves = [
                (model.loss(moved).item(), index, value)
                for place, index in enumerate(self._joined)
                for value, moved in model.neighbors(place, self._grid)
                if (index, value) not in tried
            ]
            if not moves or min(moves)[0] >= present:
                return
            _, index, value = min(moves)
            tried.add((index, value))
            before = self._multipliers.clone(), observed.targets, observed.harms
            self._multipliers[index] = value
            observed.targets, observed.harms = observed.remeasure(self._multipliers)
            found = self._model(self._leakage())
            if found.loss(found.start).item() >= present:
                self._multipliers, observed.targets, observed.harms = before
            if progress:
                progress(len(observed.targets) + len(observed.harms))

    def _leakage(self) -> Tensor:
        """Leakage at each token of the bystanders (n_tokens,)."""
        if not self._joined:
            return torch.zeros_like(self._crowd.others)
        return self._crowd.leakage(self._joined, self._multipliers[self._joined] - 1)

    def _join(self, room: int, step: int) -> None:
        """Take in the cells that promise most: what a change of one gains less what it costs, times its worth."""
        if room <= 0:
            return
        targets, harms = self._observed.targets, self._observed.harms
        slope = torch.zeros_like(self._multipliers)
        for row, share in zip(targets.values(), self._observed.shares, strict=True):
            if row.value_at(self._multipliers) > 0:
                slope += share * row.gradient
        if harms:
            weighted = (self._weights[self._observed.is_text(index)] * row.gradient for index, row in harms.items())
            slope = slope + sum(weighted, torch.zeros_like(slope)) / len(harms)
        slope = slope.clamp(min=0)
        price = sum(
            max(weight, least) * scale * price
            for weight, least, scale, price in zip(
                self._weights, JOINING_WEIGHTS, self._observed.scales, self._prices, strict=True
            )
        )
        # No cell is free: what it does to bystanders that are not here is unknown.
        price = price + price.median()
        lowered = (slope / (2 * price)).clamp(max=MAX_CHANGE)
        gain = (slope * lowered - price * lowered**2) * self._worth
        gain[self._joined] = -1.0
        best = gain.topk(room)
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            if value > 0:
                self._joined.append(index)
                self._born[index] = step

    def _leave(self, step: int, model: Surrogate, multipliers: Tensor) -> None:
        """When all places are taken, let those cells go whose absence the model minds least, half as many as join."""
        if len(self._joined) < self._max_cells:
            return
        old = [i for i in self._by_absence(model, multipliers) if step - self._born[i] >= TRIAL_STEPS]
        for index in old[: self._per_step // 2]:
            self._dismiss(index)

    def _by_absence(self, model: Surrogate, multipliers: Tensor) -> list[int]:
        """The joined cells, those first whose absence the model minds least."""
        without = []
        for place, index in enumerate(self._joined):
            other = multipliers.clone()
            other[place] = 1.0
            without.append((model.loss(other).item(), index))
        return [index for _, index in sorted(without)]

    def _dismiss(self, index: int) -> None:
        self._joined.remove(index)
        self._multipliers[index] = 1.0

    def _model(self, leakage: Tensor) -> Surrogate:
        at, joined, observed = self._multipliers, self._joined, self._observed

        def lines(tangents: Sequence[Tangent]) -> tuple[Tensor, Tensor]:
            if not tangents:
                return at.new_zeros(0), at.new_zeros(0, len(joined))
            return (
                torch.stack([row.value_at(at) for row in tangents]),
                torch.stack([row.gradient[joined] for row in tangents]),
            )

        targets, target_slopes = lines(list(observed.targets.values()))
        harms, harm_slopes = lines(list(observed.harms.values()))
        forms = self._crowd.quadratics(joined, leakage)
        quadratic = sum(
            weight * scale * form for weight, scale, form in zip(self._weights, observed.scales, forms, strict=True)
        )
        weights = [self._weights[observed.is_text(index)] for index in observed.harms]
        return Surrogate(
            start=at[joined],
            targets=targets,
            target_slopes=target_slopes,
            shares=observed.shares,
            harms=harms,
            harm_slopes=harm_slopes,
            harm_weights=at.new_tensor(weights),
            quadratic=quadratic,
        )


def reweighted(weights: Sequence[float], left: float, spent: Sequence[float], *, gently: bool) -> tuple[float, ...]:
    """The bystanders' weights for the next step: up when the targets are gone, down when there is something to spend.

    `left` is the mean knowledge score of the targets, `spent` the divergence that stands against `BUDGETS`.
    """
    found = []
    for weight, least, most, nats, budget in zip(weights, MIN_WEIGHTS, MAX_WEIGHTS, spent, BUDGETS, strict=True):
        share = nats / budget
        if left <= TARGET_GOAL:
            factor = min(1.5, max(1.0, share))
        elif left <= NEAR_GOAL:
            factor = 1.0
        else:
            factor = min(1.0, max(0.8 if gently else 0.6, share))
        found.append(min(most, max(least, weight * factor)))
    return tuple(found)


def repriced(price: float, left: float) -> float:
    """The price of damage for the next step: down when more than the goal is `left` of the targets, up when less."""
    above = left - REFINED_GOAL
    steps = ((0.1, 0.85), (0.02, 0.93), (0.0, 1.0), (-0.03, 1.05))
    factor = next((factor for bound, factor in steps if above > bound), 1.15)
    return min(PRICES[1], max(PRICES[0], price * factor))
