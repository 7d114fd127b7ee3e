"""What a search asks of a live model: how much is left of the targets, and how far everything else has moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amnesia.bystanders import Bystanders
from amnesia.encoding import Continuation
from amnesia.forward import answer_rows
from amnesia.model import LiveModel, scaled_by
from amnesia.passes import batches, collate

ROWS_PER_PASS = 32
"""Rows that are measured in one pass at most, for memory."""

# From the log-probabilities (n_answer, vocabulary) of rows to one value for each.
_Measured = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Tangent:
    """A measured value of one row, and its gradient (n_cells,), at the multipliers `at` (n_cells,)."""

    value: Tensor
    gradient: Tensor
    at: Tensor

    def value_at(self, multipliers: Tensor) -> Tensor:
        """The value on the straight line through the measurement."""
        return self.value + self.gradient @ (multipliers - self.at)


@dataclass(frozen=True)
class Problem:
    """What the search may see. `before` and `unknown` are log-probabilities (n_targets,) of the targets in nats.

    `entities` (n_targets,) numbers the entities that the targets are about, each of which counts the same. `kept` are
    the rows of the bystanders: prompts about others with their answers, of which the first `n_controls` are the search
    controls, then neutral texts. Targets are measured as
    knowledge scores on the log-odds scale, where facts that the model is sure of have gradients too, and bystanders as
    KL(original ‖ edited) in nats, the mean over the answer. Multipliers are those of all cells of the bystanders'
    layers, (n_cells,).
    """

    live: LiveModel
    targets: tuple[Continuation, ...]
    before: Tensor
    unknown: Tensor
    entities: Tensor
    kept: tuple[Continuation, ...]
    n_controls: int
    bystanders: Bystanders
    _references: dict[int, Tensor] = field(default_factory=dict)

    def tangents(self, multipliers: Tensor, targets: Sequence[int], kept: Sequence[int]) -> list[Tangent]:
        """Tangents of some targets, then of some of `kept`: the values, and in one pass back all gradients of each."""
        rows = [*(self.targets[index] for index in targets), *(self.kept[index] for index in kept)]
        found: dict[int, Tangent] = {}
        for part in parts([len(row.ids) for row in rows]):
            own = [targets[place] for place in part if place < len(targets)]
            others = [kept[place - len(targets)] for place in part if place >= len(targets)]
            found.update(zip(part, self._tangents(multipliers, own, others), strict=True))
        return [found[place] for place in range(len(rows))]

    def _tangents(self, multipliers: Tensor, targets: Sequence[int], kept: Sequence[int]) -> list[Tangent]:
        layers, d_mlp = self.bystanders.layers, self.live.shape.d_mlp
        (rows, odds), (others, divergences) = self._odds(targets), self._divergences(kept)
        n = len(rows)
        # One multiplier per cell and row, so that a single backward pass yields every row's own gradient.
        own = {
            layer: part.expand(n + len(others), 1, d_mlp).clone().requires_grad_()
            for layer, part in zip(layers, multipliers.split(d_mlp), strict=True)
        }
        values = self._values([*rows, *others], lambda found: torch.cat([odds(found[:n]), divergences(found[n:])]), own)
        gradients = torch.autograd.grad(values.sum(), list(own.values()))
        stacked = torch.cat([gradient[:, 0] for gradient in gradients], 1)
        at = multipliers.clone()
        return [Tangent(value, slope, at) for value, slope in zip(values.detach(), stacked, strict=True)]

    @torch.no_grad()
    def scores(self, multipliers: Tensor, targets: Sequence[int]) -> Tensor:
        """Knowledge scores of some targets on the log-odds scale, (n,)."""
        return self._measured(targets, self._odds, multipliers)

    @torch.no_grad()
    def divergences(self, multipliers: Tensor, kept: Sequence[int]) -> Tensor:
        """Divergences of some of `kept`, (n,)."""
        return self._measured(kept, self._divergences, multipliers)

    @torch.no_grad()
    def references(self, rows: Sequence[int]) -> list[Tensor]:
        """The original model's log-probabilities (n_answer, vocabulary) over the answers of some of `kept`."""
        missing = [index for index in rows if index not in self._references]
        chosen = [self.kept[index] for index in missing]
        for batch in batches(self.live, [row.ids for row in chosen]):
            logits, lengths = answer_rows(self.live, chosen, batch)
            for index, own in zip(batch.indices, logits.log_softmax(-1).split(lengths), strict=True):
                self._references[missing[index]] = own
        return [self._references[index] for index in rows]

    def plain_scores(self, scores: Tensor, targets: Sequence[int]) -> Tensor:
        """Knowledge scores (n,) of log-probabilities, from those on the log-odds scale."""
        before, unknown = (base[list(targets)] for base in (self.before, self.unknown))
        odds = log_odds(unknown) + scores * (log_odds(before) - log_odds(unknown))
        return (torch.nn.functional.logsigmoid(odds) - unknown) / (before - unknown)

    def _odds(self, targets: Sequence[int]) -> tuple[list[Continuation], _Measured]:
        before, unknown = (log_odds(base[list(targets)]) for base in (self.before, self.unknown))
        rows = [self.targets[index] for index in targets]

        def measured(logprobs: Sequence[Tensor]) -> Tensor:
            totals = [
                own[range(row.n_answer), row.ids[-row.n_answer :]].sum()
                for row, own in zip(rows, logprobs, strict=True)
            ]
            found = torch.stack(totals) if totals else before.new_zeros(0)
            return (log_odds(found) - unknown) / (before - unknown)

        return rows, measured

    def _divergences(self, kept: Sequence[int]) -> tuple[list[Continuation], _Measured]:
        references = self.references(kept)

        def measured(logprobs: Sequence[Tensor]) -> Tensor:
            found = [divergence(row, own) for row, own in zip(references, logprobs, strict=True)]
            return torch.stack(found) if found else self.before.new_zeros(0)

        return [self.kept[index] for index in kept], measured

    def _measured(
        self, chosen: Sequence[int], kind: Callable[[Sequence[int]], tuple[list[Continuation], _Measured]], at: Tensor
    ) -> Tensor:
        factors = self._factors(at)
        found = at.new_zeros(len(chosen))
        rows, _ = kind(chosen)
        for part in parts([len(row.ids) for row in rows]):
            found[part] = self._values(*kind([chosen[place] for place in part]), factors)
        return found

    def _factors(self, multipliers: Tensor) -> dict[int, Tensor]:
        parts = multipliers.split(self.live.shape.d_mlp)
        return {layer: part.reshape(1, 1, -1) for layer, part in zip(self.bystanders.layers, parts, strict=True)}

    def _values(self, rows: Sequence[Continuation], measured: _Measured, factors: dict[int, Tensor]) -> Tensor:
        if not rows:
            return measured([])
        with scaled_by(self.live, factors):
            batch = collate(self.live, [row.ids for row in rows], range(len(rows)))
            logits, lengths = answer_rows(self.live, rows, batch)
            return measured(logits.log_softmax(-1).split(lengths))


def parts(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of these lengths in parts of at most `ROWS_PER_PASS` of similar length, each where two need least padding.

    Every part is in ascending order.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    found = []
    for start in range(0, len(order), ROWS_PER_PASS):
        part = order[start : start + ROWS_PER_PASS]
        longest = [lengths[index] for index in part]
        cut = min(range(len(part)), key=lambda n: n * longest[n - 1] + (len(part) - n) * longest[-1])
        found += [sorted(half) for half in (part[:cut], part[cut:]) if half]
    return found


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 − p)) of log p."""
    return logprob - torch.log(-torch.expm1(logprob.clamp(max=-1e-4)))


def divergence(reference: Tensor, logprobs: Tensor) -> Tensor:
    """Mean over the answer's tokens of KL(reference ‖ edited), from log-probabilities (n_answer, vocabulary)."""
    return (reference.exp() * (reference - logprobs)).sum(-1).mean()
