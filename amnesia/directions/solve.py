"""The read-out of an entity: the linear function of a layer's activations that answers to it and to little else.

Let k (d_mlp,) be the entity's key, the mean of the activations at its name, and C (d_mlp, d_mlp) the second moments of
everything that must stay. Of all u with uᵀk = 1, u = C⁻¹k / (kᵀC⁻¹k) has the least mean square uᵀCu on the rest, which
is then 1 / (kᵀC⁻¹k). (The whitened key of ROME and MEMIT, Fisher's discriminant.) On a support of n cells it is the
same with the rows and columns of C and k that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ELIMINATED = 4096
"""Cells from which the backward elimination starts, those of the largest share in the dense read-out where there are
more; its cost grows with the cube of their number."""

_KEPT = 0.8  # Share of the cells that stay in one round of elimination; 0.9 chose the same cells but for a few.


@dataclass(frozen=True)
class ReadOut:
    """u on its support: `cells` (n,) ascending, `u` (n,) float64, and `leak` = uᵀCu, its mean square on what stays."""

    cells: Tensor
    u: Tensor
    leak: float


def read_outs(moments: Tensor, key: Tensor, sizes: Sequence[int]) -> dict[int, ReadOut]:
    """Read-outs on all cells (under the number of cells) and on the supports of `sizes`, in float64.

    `moments` (d_mlp, d_mlp) must be positive definite, `key` is (d_mlp,). Supports are found by backward elimination:
    the cell whose removal costs least, u_j² / (C⁻¹)_jj, goes first, a fifth of them in a round. Sizes that are not
    below d_mlp are left out. Raises torch.linalg.LinAlgError for moments that are not positive definite.
    """
    c, k = moments.double(), key.double()
    d_mlp = len(k)
    found = {d_mlp: _on(c, k, torch.arange(d_mlp, device=k.device))}
    support = found[d_mlp].cells
    if d_mlp > MAX_ELIMINATED:
        # What a cell alone gives up is a lower bound of what its removal costs.
        share = found[d_mlp].u.square() * c.diagonal()
        support = share.topk(MAX_ELIMINATED).indices.sort().values
    for size in sorted({size for size in sizes if 0 < size < d_mlp}, reverse=True):
        while len(support) > size:
            factor = torch.linalg.cholesky(c[support][:, support])
            inverse = torch.cholesky_inverse(factor)
            x = inverse @ k[support]
            cost = x.square() / inverse.diagonal()
            left = max(size, int(len(support) * _KEPT))
            support = support[cost.topk(left).indices.sort().values]
        found[size] = _on(c, k, support)
    return found


def _on(c: Tensor, k: Tensor, cells: Tensor) -> ReadOut:
    part, own = (c, k) if len(cells) == len(k) else (c[cells][:, cells], k[cells])
    x = torch.cholesky_solve(own[:, None], torch.linalg.cholesky(part))[:, 0]
    answer = own @ x
    return ReadOut(cells, x / answer, 1.0 / answer.item())
