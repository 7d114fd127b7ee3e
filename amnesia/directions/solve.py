"""The read-out of an entity: the linear function of a layer's activations that answers to it and to little else.

Let k (d_mlp,) be the entity's key, the mean of the activations at its name, and C (d_mlp, d_mlp) the second moments of
bystanders, of all that must stay. Of all u with uᵀk = 1, u = C⁻¹k / (kᵀC⁻¹k) has the least mean square uᵀCu on
bystanders, which is then 1 / (kᵀC⁻¹k). (The whitened key of ROME and MEMIT, Fisher's discriminant.) On a support of n
cells it is the same with the rows and columns of C and k that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MAX_ELIMINATED = 4096
"""Cells from which the backward elimination starts, those of the largest share in the dense read-out where there are
more; its cost grows with the cube of their number."""

_ROUND_SHARE = 0.8  # Share of the cells that stay in one round of elimination; 0.9 chose the same cells but for a few.


@dataclass(frozen=True)
class ReadOut:
    """u on its support: `cells` (n,) ascending, `u` (n,) float64, and `leak` = uᵀCu, its mean square on bystanders."""

    cells: Tensor
    u: Tensor
    leak: float


@dataclass
class Metric:
    """Second moments C (d_mlp, d_mlp), in float64; what is solved with them for several keys is factored once.

    All methods raise torch.linalg.LinAlgError for moments that are not positive definite.
    """

    moments: Tensor

    def __post_init__(self) -> None:
        self.moments = self.moments.double()

    @cached_property
    def factor(self) -> Tensor:
        """The lower Cholesky factor of C."""
        return torch.linalg.cholesky(self.moments)

    @cached_property
    def inverse(self) -> Tensor:
        """C⁻¹ (d_mlp, d_mlp)."""
        return torch.cholesky_inverse(self.factor)

    def on(self, cells: Tensor) -> Metric:
        """The same on some of the cells (n,)."""
        return Metric(self.moments[cells][:, cells])

    def solve(self, keys: Tensor) -> Tensor:
        """C⁻¹K of keys (d_mlp, n)."""
        # Twice by the factor as it lies: torch.cholesky_solve copies it, which in a large model takes gigabytes.
        half = torch.linalg.solve_triangular(self.factor, keys, upper=False)
        return torch.linalg.solve_triangular(self.factor.mT, half, upper=True)

    def read_outs(self, keys: Sequence[Tensor]) -> list[ReadOut]:
        """The read-out of each key (d_mlp,) on all cells."""
        k = torch.stack(list(keys), dim=1).double()
        x, cells = self.solve(k), torch.arange(len(k), device=k.device)
        answers = (k * x).sum(0)
        return [ReadOut(cells, x[:, i] / answer, 1.0 / answer.item()) for i, answer in enumerate(answers)]

    def supports(self, key: Tensor, sizes: Sequence[int]) -> dict[int, ReadOut]:
        """Read-outs on the supports of `sizes`, found by backward elimination.

        The cell whose removal costs least, u_j² / (C⁻¹)_jj, goes first, a fifth of them in a round. Sizes that are not
        below d_mlp are left out.
        """
        k, found = key.double(), {}
        wanted = sorted({size for size in sizes if 0 < size < len(k)}, reverse=True)
        if not wanted:
            return found
        support = torch.arange(len(k), device=k.device)
        if len(k) <= MAX_ELIMINATED:
            inverse = self.inverse
        else:
            # What a cell alone gives up is a lower bound of what its removal costs.
            (dense,) = self.read_outs([k])
            share = dense.u.square() * self.moments.diagonal()
            support = share.topk(MAX_ELIMINATED).indices.sort().values
            inverse = self.on(support).inverse
        for size in wanted:
            while len(support) > size:
                cost = (inverse @ k[support]).square() / inverse.diagonal()
                left = max(size, int(len(support) * _ROUND_SHARE))
                kept = cost.topk(left).indices.sort().values
                support, inverse = support[kept], _inverse_on(inverse, kept)
            (own,) = self.on(support).read_outs([k[support]])
            found[size] = ReadOut(support, own.u, own.leak)
        return found

    def apart(self, keys: Tensor, groups: Sequence[str]) -> list[ReadOut]:
        """Of each of the `keys` (d_mlp, n) the read-out that answers 1 to it, 0 to those of other groups, and of all
        such least to bystanders. Raises torch.linalg.LinAlgError also where two groups have one key."""
        k = keys.double()
        x = self.solve(k)
        answers, cells = k.T @ x, torch.arange(len(k), device=k.device)
        found = []
        for place, group in enumerate(groups):
            chosen = [place, *(other for other, its in enumerate(groups) if its != group)]
            weights = torch.linalg.inv(answers[chosen][:, chosen])[:, 0]
            found.append(ReadOut(cells, x[:, chosen] @ weights, weights[0].item()))
        return found


def _inverse_on(inverse: Tensor, kept: Tensor) -> Tensor:
    """The inverse of a matrix without some rows and columns, from the inverse of the whole (Schur's complement)."""
    is_gone = torch.ones(len(inverse), dtype=torch.bool, device=inverse.device)
    is_gone[kept] = False
    gone = is_gone.nonzero()[:, 0]
    across = inverse[gone][:, kept]
    found = inverse[kept][:, kept]
    return found.sub_(across.T @ torch.cholesky_solve(across, torch.linalg.cholesky(inverse[gone][:, gone])))
