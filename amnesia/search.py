"""Choose cells and multipliers by gradient: targets fall to the unknown-entity level, controls keep their answers.

The only variables are multipliers of cells. Gradients are never taken of weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amnesia.domain import Cell, ColumnEdit
from amnesia.encoding import Continuation
from amnesia.forward import answer_logits, continued
from amnesia.model import LiveModel, Progress, edited, scaled_by
from amnesia.passes import batches, collate

EXACT_MULTIPLIERS = (-8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
"""Powers of two scale floating-point numbers without rounding, so that the edit is exact and inverts exactly."""

TARGET_FLOOR = -0.05
"""Knowledge score below which pushing a target fact further down earns nothing, and pays for no other fact."""

CONTROL_WEIGHT = 5.0
"""Weight at the start of one nat of mean divergence on the controls against one unit of target knowledge score."""

DIVERGENCE_BUDGET = 0.04
"""Mean divergence on the controls, in nats, up to which the weight falls, and above which it rises."""

STEPS = 44
SETTLING_STEPS = 16
"""The last steps: no cell joins, multipliers act rounded, and only the targets decide how much the controls weigh."""

TARGET_GOAL = 0.08
"""Mean knowledge score of the targets at which they have been pushed enough, and the controls gain weight."""

SNAPSHOT_STEPS = 4
"""Every how many of the later settling steps the multipliers are kept for the caller to judge."""

TRIAL_STEPS = 8
"""Steps after which a cell whose multiplier is still above `WEAK_MULTIPLIER` gives its place to another."""

WEAK_MULTIPLIER = 0.3

RATE = 0.8
SETTLING_RATE = 0.25
TARGETS_PER_STEP = 8
CONTROLS_PER_STEP = 12
PEERS_PER_STEP = 8
PEER_ROUNDS = 10
"""Draws of peers after which the harm done to them decides."""

PEER_STRIDE = 3
"""Every how many of the peers takes part when finished edits are compared."""

CELLS_PER_STEP = 2
PEER_TOKENS = 4
"""Tokens with which the original model continues a prompt about a peer."""


@dataclass(frozen=True)
class Problem:
    """What the search may see: search facts, search controls with neutral texts, peers, and the model's own answers.

    `before` and `unknown` are log-probabilities (n_targets,) in nats. Peers are other well-known entities in prompts
    that the original model itself has continued. `reference` holds the original model's log-probabilities
    (n_answer, vocabulary) over the answer of each control, then of each peer.
    """

    live: LiveModel
    targets: tuple[Continuation, ...]
    before: Tensor
    unknown: Tensor
    controls: tuple[Continuation, ...]
    peers: tuple[Continuation, ...]
    reference: tuple[Tensor, ...]

    @property
    def kept(self) -> tuple[Continuation, ...]:
        """Whatever should stay as it was: controls, then peers."""
        return self.controls + self.peers


def pose(
    live: LiveModel,
    targets: Sequence[Continuation],
    before: Sequence[float],
    unknown: Sequence[float],
    controls: Sequence[Continuation],
    peers: Sequence[str] = (),
) -> Problem:
    """A Problem: lets the original model continue the prompts `peers`, and notes its distributions over all answers."""
    rows = [Continuation(tuple(ids), PEER_TOKENS) for ids in continued(live, peers, PEER_TOKENS)]
    kept = [*controls, *rows]
    return Problem(
        live,
        tuple(targets),
        torch.tensor(before, device=live.device),
        torch.tensor(unknown, device=live.device),
        tuple(controls),
        tuple(rows),
        tuple(_distributions(live, kept)),
    )


@torch.no_grad()
def _distributions(live: LiveModel, rows: Sequence[Continuation]) -> list[Tensor]:
    """Log-probabilities (n_answer, vocabulary) over the answer of each row."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in batches(live, [row.ids for row in rows]):
        logits, _, _ = answer_logits(live, rows, batch)
        for line, index in enumerate(batch.indices):
            found[index] = logits[line, -rows[index].n_answer :].log_softmax(-1)
    return found


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
    """Edits of at most `max_cells` cells of `layers` with exact multipliers in [lowest, 1), found by gradient pursuit.

    Returns a few snapshots from the end of one search, in their order; a snapshot may be empty.

    At every step a few cells join: those whose gradient, smoothed over the steps and weighted by `worth`
    (n_layers, d_mlp), promises the largest fall of the loss. The joined ones follow Adam. Cells join while the others
    already act, so backups that take over from a negated cell show up in the gradient and are met in turn; cells that
    achieve little leave. In the end the multipliers act rounded to `EXACT_MULTIPLIERS`, while their unrounded values
    follow the gradient (a straight-through estimator: Bengio, Léonard, Courville, 2013).

    The loss, on a few targets, controls and peers at each step, is the mean target knowledge score above
    `TARGET_FLOOR` and the divergence KL(original ‖ edited) over the answers of the others. The weight of the
    divergence falls while it is within `budget` (nats) and the targets are above `TARGET_GOAL`, and rises otherwise.
    Peers that an edit harms most are drawn most often.
    """
    device = problem.live.device
    multipliers = torch.ones(len(layers), problem.live.shape.d_mlp, device=device, requires_grad=True)
    joined = torch.zeros_like(multipliers, dtype=torch.bool)
    age = torch.zeros_like(multipliers)
    failed = torch.zeros_like(joined)
    smoothed = torch.zeros_like(multipliers)
    worth = worth.to(device)
    grid = torch.tensor([item for item in EXACT_MULTIPLIERS if item >= lowest], device=device)
    weight, spent, left = CONTROL_WEIGHT, 0.0, 1.0
    snapshots = []
    adam = torch.optim.Adam([multipliers], lr=RATE, betas=(0.7, 0.95))
    draws = zip(
        _draws(len(problem.targets), TARGETS_PER_STEP, seed),
        _draws(len(problem.controls), CONTROLS_PER_STEP, seed + 1),
        strict=True,
    )
    peers = _Peers(len(problem.peers), len(problem.controls), seed)
    for step, (targets, controls) in zip(range(STEPS), draws, strict=False):
        settled = step - (STEPS - SETTLING_STEPS)
        acting = multipliers
        if settled >= 0:
            acting = multipliers + (_rounded(multipliers, grid) - multipliers).detach()
        kept = [*controls, *peers.draw()]
        with scaled_by(problem.live, dict(zip(layers, acting, strict=True))):
            scores, divergences = _measures(problem, targets, kept)
        above = (scores - TARGET_FLOOR).clamp(min=0).mean()
        divergence = divergences.mean()
        (gradient,) = torch.autograd.grad(above + weight * divergence, [multipliers])
        peers.note(kept, divergences.tolist())
        spent = 0.7 * spent + 0.3 * divergence.item()
        left = 0.7 * left + 0.3 * (above.item() + TARGET_FLOOR)
        smoothed = 0.5 * smoothed + 0.5 * gradient
        if settled >= 0:
            if settled >= SETTLING_STEPS // 2 and settled % SNAPSHOT_STEPS == 0:
                snapshots.append(_edits(layers, _rounded(multipliers, grid), joined))
            adam.param_groups[0]["lr"] = SETTLING_RATE
            weight *= 1.25 if left < TARGET_GOAL else 0.9
        else:
            weight *= 0.88 if spent < budget and left > TARGET_GOAL else 1.12
        with torch.no_grad():
            if step % 4 == 0:
                joined &= multipliers < 1  # A cell that went back to where it was makes room for another.
            if step % 4 == 3 and settled < -4:
                weak = joined & (age >= TRIAL_STEPS) & (multipliers > WEAK_MULTIPLIER)
                joined &= ~weak
                failed |= weak
                multipliers.masked_fill_(weak, 1.0)
            age += joined
            room = min(CELLS_PER_STEP, max_cells - int(joined.sum()))
            if room > 0 and settled < 0:
                promise = (smoothed.clamp(min=0) * worth).masked_fill(joined | failed, -1.0)
                best = promise.flatten().topk(room)
                joined.view(-1)[best.indices[best.values > 0]] = True
            multipliers.grad = gradient * joined
            adam.step()
            multipliers.clamp_(lowest, 1.0)
        if progress:
            progress(len(targets) + len(kept))
    return (*snapshots, _edits(layers, _rounded(multipliers, grid), joined))


@torch.no_grad()
def harm(problem: Problem, edits: Sequence[ColumnEdit]) -> tuple[float, float]:
    """What edits do: (mean target knowledge score, mean divergence in nats on the controls and a share of the peers).

    A target counts no less than `TARGET_FLOOR`, so that one pushed far down does not pay for one that is still known.
    """
    problem = replace(
        problem,
        peers=problem.peers[::PEER_STRIDE],
        reference=problem.reference[: len(problem.controls)] + problem.reference[len(problem.controls) :: PEER_STRIDE],
    )
    n = len(problem.targets)
    scores, divergences = [], []
    with edited(problem.live, edits):
        for batch in batches(problem.live, [row.ids for row in (*problem.targets, *problem.kept)]):
            targets = [index for index in batch.indices if index < n]
            kept = [index - n for index in batch.indices if index >= n]
            found = _measures(problem, targets, kept)
            scores += found[0].clamp(min=TARGET_FLOOR).tolist()
            divergences += found[1].tolist()
    return sum(scores) / len(scores), sum(divergences) / len(divergences)


def _rounded(multipliers: Tensor, grid: Tensor) -> Tensor:
    """Each multiplier's nearest value in `grid`."""
    return grid[(multipliers.detach()[..., None] - grid).abs().argmin(-1)]


def _edits(layers: Sequence[int], multipliers: Tensor, joined: Tensor) -> tuple[ColumnEdit, ...]:
    return tuple(
        ColumnEdit(Cell(layers[place], neuron), multipliers[place, neuron].item())
        for place, neuron in (joined & (multipliers < 1)).nonzero().tolist()
    )


def _measures(problem: Problem, targets: Sequence[int], kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Knowledge scores of the given targets, and KL(original ‖ model as it acts now) on the given others, in nats."""
    rows = [*problem.targets, *problem.kept]
    n = len(targets)
    chosen = [*targets, *(len(problem.targets) + index for index in kept)]
    batch = collate(problem.live, [row.ids for row in rows], chosen)
    logits, tokens, mask = answer_logits(problem.live, rows, batch)
    logprobs = logits.log_softmax(-1)
    totals = (logprobs[:n].gather(2, tokens[:n, :, None])[..., 0] * mask[:n]).sum(1)
    scores = (totals - problem.unknown[targets]) / (problem.before - problem.unknown)[targets]
    divergences = [_divergence(problem.reference[index], logprobs[n + line]) for line, index in enumerate(kept)]
    return scores, torch.stack(divergences) if divergences else scores[:0]


class _Peers:
    """Draws peers: each once at first, then those more often on which the divergence was large when last seen."""

    def __init__(self, n: int, first: int, seed: int) -> None:
        self._first = first  # Index of the first peer among what is kept.
        self._divergence = torch.full((n,), math.nan)
        self._unseen = _draws(n, PEERS_PER_STEP, seed + 2)
        self._generator = torch.Generator().manual_seed(seed)
        self._n_draws = 0

    def draw(self) -> list[int]:
        n = len(self._divergence)
        if not n:
            return []
        self._n_draws += 1
        if self._n_draws <= PEER_ROUNDS or n <= PEERS_PER_STEP:
            chosen = next(self._unseen)
        else:
            mean = self._divergence.nanmean()
            chance = self._divergence.nan_to_num(mean.item()) + 0.2 * mean
            chosen = torch.multinomial(chance, PEERS_PER_STEP, generator=self._generator).tolist()
        return [self._first + index for index in chosen]

    def note(self, kept: Sequence[int], divergences: Sequence[float]) -> None:
        for index, divergence in zip(kept, divergences, strict=True):
            if index >= self._first:
                self._divergence[index - self._first] = max(divergence, 1e-9)


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
