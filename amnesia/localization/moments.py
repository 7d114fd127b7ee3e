"""Running moments, z-scores and stability: the mathematics of localization, as pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6
"""ε of z-scores, which keeps quotients finite where activations do not vary."""


@dataclass(frozen=True)
class Moments:
    """Number of samples, and mean and sum of squared deviations (float64) over the samples, of any shape."""

    n: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Moments:
        """Moments over the first axis of `samples` (n, ...)."""
        samples = samples.double()
        mean = samples.mean(0)
        return cls(len(samples), mean, ((samples - mean) ** 2).sum(0))

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of samples together (Chan, Golub and LeVeque, 1979)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(n, self.mean + delta * (other.n / n), self.m2 + other.m2 + delta**2 * (self.n * other.n / n))

    def __sub__(self, part: Moments) -> Moments:
        """Moments of the samples that remain when `part` of them is taken out: the inverse of addition."""
        n = self.n - part.n
        mean = (self.mean * self.n - part.mean * part.n) / n
        return Moments(n, mean, self.m2 - part.m2 - (part.mean - mean) ** 2 * (n * part.n / self.n))

    @property
    def std(self) -> Tensor:
        """Population standard deviation."""
        return (self.m2 / self.n).clamp(min=0).sqrt()


def z_moments(entity: Moments, baseline: Moments) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of the entity's z-scores against the baseline.

    A z-score is (activation − baseline mean) / (baseline std + ε): linear in the activation, so that the moments of
    the activations are enough and no activation has to be kept.
    """
    scale = baseline.std + EPSILON
    return (entity.mean - baseline.mean) / scale, entity.std / scale


def stability(mean_z: Tensor, std_z: Tensor, std_floor: float) -> Tensor:
    """Stability score mean² / std of z-scores, with the sign of the mean, the std at least `std_floor`.

    From "Friends and Grandmothers in Silico" (Yona, Barzilay and Karasik, 2026), algorithm 1, which adds ε to the std
    instead.
    """
    return torch.sign(mean_z) * mean_z**2 / std_z.clamp(min=std_floor)
