"""What scaled cells do to everything that should stay: recorded once, then known for any multipliers without a pass.

A cell j that is scaled by m_j adds (m_j − 1) a_tj w_j to the residual stream at token t, where a is the activation and
w the cell's column of the output projection. To second order, the predictions then diverge by ½ δᵀ F δ, where δ is
what was added and F the Fisher information of the residual stream, estimated in each layer from the gradients of
sampled predictions. Leakage is that sum over the tokens of a row: quadratic in the multipliers. Its scale is only
approximate (layers are taken to add up, a large δ is not small), so whoever uses it compares it with measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amnesia.encoding import Continuation, Placed
from amnesia.forward import activations, answer_rows
from amnesia.interventions import replaced_outputs
from amnesia.model import LiveModel, Progress
from amnesia.passes import batches

N_SENSED = 24
"""Rows whose predictions are sampled for the Fisher information; a third of them are texts."""

TAIL = 0.5
"""Share of the leakage that is weighted by itself, so that a few tokens with much of it are not lost in the mean."""

_LARGEST = 6e4  # Activations are kept as float16.


@dataclass(frozen=True)
class Bystanders:
    """Activations of all cells of `layers`, one layer after the other, at every token of what should stay as it is.

    Rows are prompts about others (`n_names`), then neutral texts (`n_texts`), then single common tokens. `others` (the
    first and the last of these) and `texts` weight the tokens (n_tokens,) so that sums over tokens are means over
    rows. `reach` (n_cells,) is wᵀ F w of each cell's column.
    """

    live: LiveModel
    layers: tuple[int, ...]
    n_names: int
    n_texts: int
    activations: Tensor  # (n_tokens, n_cells) float16
    owner: Tensor  # (n_tokens,)
    others: Tensor
    texts: Tensor
    roots: Tensor  # (n_layers, d_model, d_model), F^½
    reach: Tensor
    _last: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows that are prompts or texts; single tokens do not count."""
        return self.n_names + self.n_texts

    def chosen(self, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Activations (n_tokens, n) of some cells, and F^½ w (n, d_model) of each; the last ones are remembered."""
        key, d_mlp = tuple(cells), self.live.shape.d_mlp
        if key not in self._last:
            columns = [
                self.roots[index // d_mlp] @ out_weight(self.live, self.layers[index // d_mlp])[index % d_mlp]
                for index in cells
            ]
            self._last.clear()
            self._last[key] = self.activations[:, list(cells)].float(), torch.stack(columns)
        return self._last[key]

    def leakage(self, cells: Sequence[int], changes: Tensor) -> Tensor:
        """δᵀ F δ at each token (n_tokens,) when the cells' multipliers change by `changes` (n,)."""
        own, columns = self.chosen(cells)
        return (own * changes @ columns).pow(2).sum(1)

    def by_row(self, leakage: Tensor) -> Tensor:
        """The sum of the leakage over the tokens of each prompt and text, (n_rows,)."""
        rows = torch.zeros(int(self.owner.max()) + 1, device=leakage.device)
        return rows.index_add_(0, self.owner, leakage)[: self.n_rows]

    def quadratics(self, cells: Sequence[int], leakage: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices A (n, n) with which changes c leak cᵀ A c: onto the others and onto the texts.

        A part of the weight of each token follows its present `leakage`.
        """
        own, columns = self.chosen(cells)
        overlap = columns @ columns.T
        return tuple(
            (own * _toward_tail(weights, leakage)[:, None]).T @ own * overlap for weights in (self.others, self.texts)
        )  # type: ignore[return-value]

    def prices(self) -> tuple[Tensor, Tensor]:
        """What a change of one leaks for each cell alone (n_cells,): onto the others and onto the texts."""
        found = []
        for weights in (self.others, self.texts):
            at = weights > 0
            kept = weights[at, None]
            parts = []
            for part in self.activations[at].split(self.live.shape.d_mlp, dim=1):
                squares = part.float().pow(2)
                mean = (squares * kept).sum(0)
                parts.append((1 - TAIL) * mean + TAIL * (squares.pow(2) * kept).sum(0).sqrt())
            found.append(torch.cat(parts) * self.reach)
        return found[0], found[1]


def out_weight(live: LiveModel, layer: int) -> Tensor:
    """Columns of the output projection of a layer as float32 rows, (d_mlp, d_model)."""
    weight = live.out_proj(layer).weight
    return (weight.T if live.shape.layout.neuron_axis == 1 else weight).float()


def _toward_tail(weights: Tensor, leakage: Tensor) -> Tensor:
    """Token weights of which the share `TAIL` is proportional to the leakage at the token, within twenty times."""
    total = (weights * leakage).sum()
    if total <= 0:
        return weights
    return weights * (1 - TAIL + TAIL * (leakage * weights.sum() / total).clamp(max=20.0))


@torch.no_grad()
def observe(
    live: LiveModel,
    layers: Sequence[int],
    names: Sequence[Continuation],
    texts: Sequence[Continuation],
    tokens: Sequence[Placed],
    seed: int = 0,
    progress: Progress | None = None,
) -> Bystanders:
    """Record prompts about others, neutral texts, and single tokens at the end of some neutral beginning."""
    rows = [row.ids[:-1] for row in (*names, *texts)]
    # All tokens of a row share their beginnings, so that the row is computed once.
    placed = [Placed(ids[: token + 1], token) for ids in rows for token in range(len(ids))]
    placed += tokens
    owner = [index for index, ids in enumerate(rows) for _ in ids]
    owner += range(len(rows), len(rows) + len(tokens))
    recorded = torch.empty(len(placed), len(layers) * live.shape.d_mlp, dtype=torch.float16, device=live.device)
    for indices, found in activations(live, placed, layers, progress):
        recorded[list(indices)] = found.flatten(1).clamp(-_LARGEST, _LARGEST).half()
    place_of = torch.tensor(owner, device=live.device)
    is_name, is_token = place_of < len(names), place_of >= len(rows)
    halves = 1 if not tokens or not names else 2
    others = is_name / max(1, halves * len(names)) + is_token / max(1, halves * len(tokens))
    roots = _fisher_roots(live, layers, names, texts, seed)
    reach = torch.cat(
        [(out_weight(live, layer) @ root).pow(2).sum(1) for layer, root in zip(layers, roots, strict=True)]
    )
    return Bystanders(
        live=live,
        layers=tuple(layers),
        n_names=len(names),
        n_texts=len(texts),
        activations=recorded,
        owner=place_of,
        others=others.float(),
        texts=(~is_name & ~is_token).float() / max(1, len(texts)),
        roots=roots,
        reach=reach,
    )


def _fisher_roots(
    live: LiveModel, layers: Sequence[int], names: Sequence[Continuation], texts: Sequence[Continuation], seed: int
) -> Tensor:
    """F^½ (n_layers, d_model, d_model) of what each MLP writes, from predictions drawn of the model's own distribution.

    Few rows span few directions, so half of F is its mean eigenvalue in all directions.
    """
    d_model = out_weight(live, layers[0]).shape[1]
    rows = [*_spread(names, N_SENSED - N_SENSED // 3), *_spread(texts, N_SENSED // 3)]
    generator = torch.Generator().manual_seed(seed)
    fisher = torch.zeros(len(layers), d_model, d_model, device=live.device)
    for batch in batches(live, [row.ids for row in rows]):
        shape = (*batch.inputs["input_ids"].shape, d_model)
        added = [torch.zeros(shape, device=live.device, requires_grad=True) for _ in layers]
        functions = {
            ("mlp", layer): lambda output, extra=extra: output + extra.to(output)
            for layer, extra in zip(layers, added, strict=True)
        }
        with torch.enable_grad(), replaced_outputs(live, functions):
            logits, _ = answer_rows(live, rows, batch)
            logprobs = logits.log_softmax(-1)
            drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator).to(live.device)
            gradients = torch.autograd.grad(logprobs.gather(1, drawn).sum(), added)
        seen = batch.inputs["attention_mask"].bool()
        for place, gradient in enumerate(gradients):
            own = gradient[seen]
            fisher[place] += own.T @ own / len(rows)
    mean = fisher.diagonal(dim1=1, dim2=2).mean(1)
    fisher = 0.5 * fisher + 0.5 * mean[:, None, None] * torch.eye(d_model, device=live.device)
    values, vectors = torch.linalg.eigh(fisher)
    return (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.transpose(1, 2)


def _spread(rows: Sequence[Continuation], n: int) -> Sequence[Continuation]:
    return rows[:: max(1, len(rows) // n)][:n]
