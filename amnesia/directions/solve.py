"""The read-out of an entity: the linear function of a layer's activations that answers to it and to little else.

Let k (d_mlp,) be the entity's key, the mean of the activations at its name, and C (d_mlp, d_mlp) the second moments of
bystanders, of all that must stay. Of all u with uᵀk = 1, u = C⁻¹k / (kᵀC⁻¹k) has the least mean square uᵀCu on
bystanders, which is then 1 / (kᵀC⁻¹k). (The whitened key of ROME and MEMIT, Fisher's discriminant.) On a support of n
cells it is the same with the rows and columns of C and k that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def solve(c: Tensor, k: Tensor) -> Tensor:
    """C⁻¹K (d_mlp, n) of C (d_mlp, d_mlp) and keys K, in their type.

    Raises torch.linalg.LinAlgError where C is not positive definite.
    """
    factor = torch.linalg.cholesky(c)
    # Twice by the factor as it lies: torch.cholesky_solve copies it, which in a large model takes gigabytes.
    half = torch.linalg.solve_triangular(factor, k, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def read_outs(moments: Tensor, keys: Sequence[Tensor]) -> list[ReadOut]:
    """The read-out of each key (d_mlp,) on all cells, in float64.

    Raises torch.linalg.LinAlgError for `moments` (d_mlp, d_mlp) that are not positive definite.
    """
    c, k = moments.double(), torch.stack(list(keys), dim=1).double()
    x = solve(c, k)
    cells = torch.arange(len(c), device=c.device)
    answers = (k * x).sum(0)
    return [ReadOut(cells, x[:, i] / answer, 1.0 / answer.item()) for i, answer in enumerate(answers)]


def supports(moments: Tensor, key: Tensor, sizes: Sequence[int]) -> dict[int, ReadOut]:
    """Read-outs on the supports of `sizes`, in float64, found by backward elimination.

    The cell whose removal costs least, u_j² / (C⁻¹)_jj, goes first, a fifth of them in a round. Sizes that are not
    below d_mlp are left out. Raises torch.linalg.LinAlgError for moments that are not positive definite.
    """
    c, k = moments.double(), key.double()
    support = torch.arange(len(k), device=k.device)
    if len(k) > MAX_ELIMINATED:
        # What a cell alone gives up is a lower bound of what its removal costs.
        (dense,) = read_outs(c, [k])
        support = (dense.u.square() * c.diagonal()).topk(MAX_ELIMINATED).indices.sort().values
    found = {}
    for size in sorted({size for size in sizes if 0 < size < len(k)}, reverse=True):
        while len(support) > size:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(c[support][:, support]))
            cost = (inverse @ k[support]).square() / inverse.diagonal()
            left = max(size, int(len(support) * _ROUND_SHARE))
            support = support[cost.topk(left).indices.sort().values]
        (own,) = read_outs(c[support][:, support], [k[support]])
        found[size] = ReadOut(support, own.u, own.leak)
    return found


def apart(moments: Tensor, keys: Tensor, groups: Sequence[str]) -> list[ReadOut]:
    """Of each of the `keys` (d_mlp, n) the read-out that answers 1 to it, 0 to those of other groups, and of all such
    least to bystanders.

    Raises torch.linalg.LinAlgError for moments that are not positive definite, and where two groups have one key.
    """
    k = keys.double()
    x = solve(moments.double(), k)
    answers, cells = k.T @ x, torch.arange(len(k), device=k.device)
    found = []
    for place, group in enumerate(groups):
        chosen = [place, *(other for other, its in enumerate(groups) if its != group)]
        weights = torch.linalg.inv(answers[chosen][:, chosen])[:, 0]
        found.append(ReadOut(cells, x[:, chosen] @ weights, weights[0].item()))
    return found
