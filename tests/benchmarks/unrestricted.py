"""Whether the number of cells is what limits the search: small steps on all cells of the early layers at once.

    python tests/benchmarks/unrestricted.py Madrid Kyoto --kept answers.measured

The same facts, controls and texts as in a search of `amnesia extract`, but no limit on the number of cells and no
rounding: steps of all multipliers (Adam), with a price of damage that follows what is left of the targets. A step moves
a multiplier by about its length, `--rate` at first and ever less, so that none moves much farther than half the rate
times the steps. Then the held-out part is asked, as in `extraction.py`, with all cells acting, and with those alone that
changed most.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from extraction import TABLE, Judge, minable, search_part, summary
from torch import Tensor

from amnesia.domain import Cell, ColumnEdit
from amnesia.extraction import localized, pose
from amnesia.kept import Kept
from amnesia.loading import load
from amnesia.objective import Problem
from amnesia.popqa import read_popqa
from amnesia.search import PRICE, UNITS, repriced
from amnesia.sources import resolve
from amnesia.surrogate import SOFT

LEAST_RATE = 0.02
"""Length of the last steps, in that of the first."""

ROWS_PER_STEP = (6, 6, 4, 4)
"""Targets, search controls, other prompts and neutral texts that are drawn for each step."""

REMEMBERED_STEPS = 5
LARGEST = (None, 1000, 100, 16)
"""How many cells act, those that changed most; None for all."""


def optimized(problem: Problem, lowest: float, n_steps: int, rate: float) -> Tensor:
    """Multipliers (n_cells,) after the last step."""
    draw = random.Random(0)
    n_names = problem.bystanders.n_names
    groups = (
        range(len(problem.targets)),
        range(problem.n_controls),
        range(problem.n_controls, n_names),
        range(n_names, len(problem.kept)),
    )
    found = torch.ones(len(problem.bystanders.reach))
    adam = torch.optim.Adam([found], betas=(0.9, 0.99))
    price = PRICE
    left: list[float] = []
    for step in range(n_steps):
        chosen = [draw.sample(group, min(n, len(group))) for group, n in zip(groups, ROWS_PER_STEP, strict=True)]
        targets, others, texts = chosen[0], chosen[1] + chosen[2], chosen[3]
        rows = problem.tangents(found, targets, [*others, *texts])
        scores = torch.stack([row.value for row in rows[: len(targets)]])
        left.append(problem.plain_scores(scores, targets).clamp(min=0).mean().item())
        weights = [
            *((scores / SOFT).clamp(0, 1) / len(targets)).tolist(),
            *(price / UNITS[0] / len(others) for _ in others),
            *(price / UNITS[1] / len(texts) for _ in texts),
        ]
        found.grad = sum(
            (weight * row.gradient for weight, row in zip(weights, rows, strict=True)), torch.zeros_like(found)
        )
        adam.param_groups[0]["lr"] = rate * max(LEAST_RATE, (1 + math.cos(math.pi * step / n_steps)) / 2)
        adam.step()
        found.clamp_(lowest, 1.0)
        price = repriced(price, fmean(left[-REMEMBERED_STEPS:]))
    return found


def changed_most(multipliers: Tensor, n: int | None, layers: Sequence[int], d_mlp: int) -> tuple[ColumnEdit, ...]:
    """The edit of the `n` cells whose multipliers are farthest from 1."""
    changed = [index for index in (1 - multipliers).argsort(descending=True).tolist() if multipliers[index] < 1]
    return tuple(
        ColumnEdit(Cell(layers[index // d_mlp], index % d_mlp), multipliers[index].item()) for index in changed[:n]
    )


def main() -> None:
    """Optimize for each entity, ask, and print a line for each number of cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entities", nargs="+", help="subjects of entities.tsv")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rate", type=float, default=0.01, help="length of the first steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kept", type=Path, required=True, help="file for what the original model answers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    kept = Kept(arguments.kept, "smollm2-135m")
    rows = read_popqa(TABLE)
    judge = Judge(live, kept)
    for name in arguments.entities:
        recipe = minable(live, rows, name, kept)
        if recipe is None:
            parser.error(f"{name!r} is no subject of {TABLE.name} about which the model knows enough")
        targets, controls = search_part(live, recipe, kept)
        start = time.perf_counter()
        layers = localized(live, recipe).layers
        problem = pose(live, [recipe], layers, [targets], controls)
        multipliers = optimized(problem, recipe.min_multiplier, arguments.steps, arguments.rate)
        seconds = time.perf_counter() - start
        for n in LARGEST:
            edits = changed_most(multipliers, n, layers, live.shape.d_mlp)
            found = judge.judge(recipe, edits, all_bounds=True)
            print(f"{name}: {summary({**found, 'edits': edits, 'seconds': seconds})}", flush=True)
        print(f"{name}: the least multiplier is {multipliers.min().item():.2f}", flush=True)


if __name__ == "__main__":
    main()
