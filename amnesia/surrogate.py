"""A convex model of the search's loss, from straight lines through measurements and the quadratic leakage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SOFT = 0.3
"""Score up to which a target is pushed the less, the nearer it is to the unknown-entity level; below that, not at all:
going further down earns nothing, and pays for no other fact."""

SPARSITY = 0.0005
"""Price of a unit of change of any multiplier."""


@dataclass(frozen=True)
class Surrogate:
    """The loss around the present multipliers `start` (n,) of the joined cells, as far as it has been measured.

    Log-odds of targets and divergences of remembered bystanders are straight lines; `quadratic` is leakage in units of
    the loss.
    """

    start: Tensor
    targets: Tensor  # (n_targets,)
    target_slopes: Tensor  # (n_targets, n)
    shares: Tensor  # (n_targets,), which add up to 1
    harms: Tensor  # (n_remembered,)
    harm_slopes: Tensor
    harm_weights: Tensor  # (n_remembered,)
    quadratic: Tensor  # (n, n)

    def loss(self, multipliers: Tensor) -> Tensor:
        moved = multipliers - self.start
        scores = (self.targets + self.target_slopes @ moved).clamp(min=0)
        above = torch.where(scores < SOFT, scores**2 / (2 * SOFT), scores - SOFT / 2) @ self.shares
        changes = multipliers - 1
        loss = above + changes @ self.quadratic @ changes + SPARSITY * changes.abs().sum()
        if len(self.harms):
            loss = loss + (self.harm_weights * (self.harms + self.harm_slopes @ moved).clamp(min=0)).mean()
        return loss

    def slope(self) -> Tensor:
        """Gradient (n,) of the loss at the present multipliers."""
        at = self.start.clone().requires_grad_()
        return torch.autograd.grad(self.loss(at), [at])[0]

    def minimize(self, start: Tensor, free: Tensor, lowest: float, radius: float, n_iterations: int) -> Tensor:
        """The multipliers of least loss within `radius` of the present ones; those that are not `free` stay."""
        low, high = (self.start - radius).clamp(min=lowest), (self.start + radius).clamp(max=1.0)
        found = start.clone().requires_grad_()
        adam = torch.optim.Adam([found], lr=0.15)
        for iteration in range(n_iterations):
            if iteration == n_iterations // 2:
                adam.param_groups[0]["lr"] = 0.05
            (found.grad,) = torch.autograd.grad(self.loss(found), [found])
            found.grad *= free
            adam.step()
            with torch.no_grad():
                found.copy_(torch.where(free, torch.minimum(torch.maximum(found, low), high), start))
        return found.detach()

    def rounded(
        self, multipliers: Tensor, free: Tensor, n: int, grid: Tensor, lowest: float, radius: float
    ) -> tuple[Tensor, Tensor]:
        """Round `n` free multipliers, the farthest from `grid` first, while the rest makes up for it."""
        free = free.clone()
        for _ in range(n):
            gaps = (multipliers[:, None] - grid).abs().amin(1).masked_fill(~free, -1.0)
            index = int(gaps.argmax())
            value = multipliers[index]
            free[index] = False
            tries = []
            for exact in {grid[grid <= value + 1e-6].max().item(), grid[grid >= value - 1e-6].min().item()}:
                other = multipliers.clone()
                other[index] = exact
                other = self.minimize(other, free, lowest, radius, 12)
                tries.append((self.loss(other).item(), exact, other))
            multipliers = min(tries, key=lambda item: item[:2])[2]
        return multipliers, free

    def neighbors(self, place: int, grid: Tensor) -> Iterator[tuple[float, Tensor]]:
        """The present multipliers with the one at `place`, which is in `grid`, moved up or down to the next value."""
        at = int((grid - self.start[place]).abs().argmin())
        for value in grid[max(0, at - 1) : at + 2].tolist():
            if value != self.start[place]:
                moved = self.start.clone()
                moved[place] = value
                yield value, moved
