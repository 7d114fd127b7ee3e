"""Choose cells and multipliers by gradient: targets fall to the unknown-entity level, controls keep their answers.

The only variables are multipliers of cells. Gradients are never taken of weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.domain import Cell, ColumnEdit
from amnesia.encoding import Continuation
from amnesia.model import LiveModel, Progress, answer_logits, batches, collate, scaled_by

TARGET_FLOOR = -0.05
"""Knowledge score below which pushing a target fact further down earns nothing."""

CONTROL_WEIGHT = 5.0
"""Weight at the start of one nat of mean divergence on the controls against one unit of target knowledge score."""

DIVERGENCE_BUDGET = 0.04
"""Mean divergence on the controls, in nats, up to which the weight falls, and above which it rises."""

STEPS = 44
SETTLING_STEPS = 16
"""The last steps: no cell joins, the rate is lower, and only the targets decide over the weight of the controls."""

TARGET_GOAL = 0.05
"""Mean knowledge score of the targets at which they have been pushed enough, and the controls gain weight."""

SNAPSHOT_STEPS = 8
"""Every how many of the last steps the multipliers are kept for the caller to judge."""

RATE = 0.8
SETTLING_RATE = 0.25
TARGETS_PER_STEP = 8
CONTROLS_PER_STEP = 12
CELLS_PER_STEP = 2


@dataclass(frozen=True)
class Problem:
    """What the search may see: search facts, search controls and neutral texts, and the original model's answers.

    `before` and `unknown` are log-probabilities (n_targets,) in nats; `reference[i]` holds the original model's
    log-probabilities (n_answer, vocabulary) over the answer of `controls[i]`.
    """

    live: LiveModel
    targets: tuple[Continuation, ...]
    before: Tensor
    unknown: Tensor
    controls: tuple[Continuation, ...]
    reference: tuple[Tensor, ...]


def pose(
    live: LiveModel,
    targets: Sequence[Continuation],
    before: Sequence[float],
    unknown: Sequence[float],
    controls: Sequence[Continuation],
) -> Problem:
    """A Problem, with the original model's distribution over the answers of the controls."""
    reference: list[Tensor] = [torch.empty(0)] * len(controls)
    with torch.inference_mode():
        for batch in batches(live, [row.ids for row in controls]):
            logits, _, _ = answer_logits(live, controls, batch)
            for line, index in enumerate(batch.indices):
                # A clone, because inference tensors cannot take part in a differentiated expression.
                reference[index] = logits[line, -controls[index].n_answer :].log_softmax(-1)
    return Problem(
        live,
        tuple(targets),
        torch.tensor(before, device=live.device),
        torch.tensor(unknown, device=live.device),
        tuple(controls),
        tuple(row.clone() for row in reference),
    )


def sensitivity(problem: Problem, layers: Sequence[int], progress: Progress | None = None) -> Tensor:
    """How much the controls feel each cell: the mean of |d(log-probability)/d(multiplier)|, (n_layers, d_mlp).

    This is |gradient × activation|, summed over the tokens; one backward pass per batch serves all cells.
    """
    live = problem.live
    total = torch.zeros(len(layers), live.shape.d_mlp)
    for batch in batches(live, [row.ids for row in problem.controls]):
        size = len(batch.indices)
        # One multiplier per cell and row, so that a single backward pass yields every row's own gradient.
        ones = {
            layer: torch.ones(size, 1, live.shape.d_mlp, device=live.device, requires_grad=True) for layer in layers
        }
        with scaled_by(live, ones):
            logits, tokens, mask = answer_logits(live, problem.controls, batch)
        logprobs = (logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0] * mask).sum(1)
        gradients = torch.autograd.grad(logprobs.sum(), [ones[layer] for layer in layers])
        stacked = torch.stack([gradient[:, 0].float().cpu() for gradient in gradients], 1)  # (rows, n_layers, d_mlp)
        total += stacked.abs().sum(0) / len(problem.controls)
        if progress:
            progress(size)
    return total


def pursue(
    problem: Problem,
    layers: Sequence[int],
    worth: Tensor,
    *,
    max_cells: int,
    lowest: float,
    budget: float = DIVERGENCE_BUDGET,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[ColumnEdit, ...], ...]:
    """Edits of at most `max_cells` cells of `layers` with multipliers within [lowest, 1), found by gradient pursuit.

    Returns a few snapshots of one search, the boldest first: before it settles, and as the controls gain weight.

    At every step a few cells join: those whose gradient, smoothed over the steps and weighted by `worth`
    (n_layers, d_mlp), promises the largest fall of the loss. The joined ones follow Adam. Cells join while the others
    already act, so backups that take over from a negated cell show up in the gradient and are met in turn.

    The loss, on a few targets and controls at each step, is the mean target knowledge score above `TARGET_FLOOR` and
    the divergence KL(original ‖ edited) over the answers of the controls. The weight of the divergence falls while it
    is within `budget` (nats) and the targets are above `TARGET_GOAL`, and rises otherwise.
    """
    live = problem.live
    device = live.device
    multipliers = torch.ones(len(layers), live.shape.d_mlp, device=device, requires_grad=True)
    joined = torch.zeros_like(multipliers, dtype=torch.bool)
    smoothed = torch.zeros_like(multipliers)
    worth = worth.to(device)
    weight, spent, left = CONTROL_WEIGHT, 0.0, 1.0
    snapshots = []
    adam = torch.optim.Adam([multipliers], lr=RATE, betas=(0.7, 0.95))
    draws = zip(
        _draws(len(problem.targets), TARGETS_PER_STEP, seed),
        _draws(len(problem.controls), CONTROLS_PER_STEP, seed + 1),
        strict=True,
    )
    for step, (targets, controls) in zip(range(STEPS), draws, strict=False):
        scores, divergence = _measures(problem, dict(zip(layers, multipliers, strict=True)), targets, controls)
        loss = (scores - TARGET_FLOOR).clamp(min=0).mean() + weight * divergence
        (gradient,) = torch.autograd.grad(loss, [multipliers])
        spent = 0.7 * spent + 0.3 * divergence.item()
        left = 0.7 * left + 0.3 * scores.mean().item()
        smoothed = 0.5 * smoothed + 0.5 * gradient
        settled = step - (STEPS - SETTLING_STEPS)
        if settled >= 0:
            if settled % SNAPSHOT_STEPS == 0:
                snapshots.append(_edits(layers, multipliers, joined))
            adam.param_groups[0]["lr"] = SETTLING_RATE
            weight *= 1.25 if left < TARGET_GOAL else 0.9
        else:
            weight *= 0.88 if spent < budget and left > TARGET_GOAL else 1.12
        with torch.no_grad():
            if step % 4 == 0:
                joined &= multipliers < 1  # A cell that went back to where it was makes room for another.
            room = min(CELLS_PER_STEP, max_cells - int(joined.sum()))
            if room > 0 and settled < 0:
                promise = (smoothed.clamp(min=0) * worth).masked_fill(joined, -1.0)
                best = promise.flatten().topk(room)
                joined.view(-1)[best.indices[best.values > 0]] = True
            multipliers.grad = gradient * joined
            adam.step()
            multipliers.clamp_(lowest, 1.0)
        if progress:
            progress(len(targets) + len(controls))
    return (*snapshots, _edits(layers, multipliers, joined))


def _edits(layers: Sequence[int], multipliers: Tensor, joined: Tensor) -> tuple[ColumnEdit, ...]:
    return tuple(
        ColumnEdit(Cell(layers[place], neuron), multipliers[place, neuron].item())
        for place, neuron in (joined & (multipliers < 1)).nonzero().tolist()
    )


def _measures(
    problem: Problem, vectors: Mapping[int, Tensor], targets: list[int], controls: list[int]
) -> tuple[Tensor, Tensor]:
    """Knowledge scores of the given targets, and mean divergence on the given controls."""
    rows = [*problem.targets, *problem.controls]
    n = len(targets)
    batch = collate(
        problem.live, [row.ids for row in rows], [*targets, *(len(problem.targets) + index for index in controls)]
    )
    with scaled_by(problem.live, vectors):
        logits, tokens, mask = answer_logits(problem.live, rows, batch)
    logprobs = logits.log_softmax(-1)
    totals = (logprobs[:n].gather(2, tokens[:n, :, None])[..., 0] * mask[:n]).sum(1)
    scores = (totals - problem.unknown[targets]) / (problem.before - problem.unknown)[targets]
    divergence = torch.stack(
        [_divergence(problem.reference[index], logprobs[n + line]) for line, index in enumerate(controls)]
    ).mean()
    return scores, divergence


def _draws(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless draws of at most `size` of `n` indices, without repetition until all have come."""
    draw = random.Random(seed)
    queue: list[int] = []
    while True:
        if len(queue) < min(size, n):
            queue += draw.sample(range(n), n)
        chosen = list(dict.fromkeys(queue[:size]))
        queue = queue[size:]
        yield chosen


def _divergence(reference: Tensor, logprobs: Tensor) -> Tensor:
    """Mean over the answer's tokens of KL(reference ‖ edited)."""
    return (reference.exp() * (reference - logprobs[-len(reference) :])).sum(-1).mean()
