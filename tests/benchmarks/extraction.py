"""How often the search finds an edit that holds, beside simpler ways to choose one, over many entities of many kinds.

    python tests/benchmarks/extraction.py --per-type 12 --results results.jsonl

Each entity of `entities.tsv` becomes a recipe, as `amnesia mine` makes it: facts that the demo model knows, controls
from all neighborhoods, both split. Each method chooses an edit from the search part alone. Then the held-out part is
asked, with the edit acting in memory, and neutral text is read. Null controls follow: the edit of the next entity, and
as many random cells of the same layers, with the same multipliers and columns of about the same norm.

The table says for each method how many entities meet each bound and all of them, by type, and how the scores are
distributed. Lines are appended to the results file as they come, so that a run that was broken off goes on where it
stopped, and `--report` prints the table of what is there. Seconds are those of the search, on `--threads` threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amnesia.damage import Impression, impression
from amnesia.domain import Cell, ColumnEdit
from amnesia.errors import InputError
from amnesia.extraction import Known, choose, select_known
from amnesia.kept import Kept
from amnesia.loading import load
from amnesia.measurement import measure, measure_unknown, why_excluded
from amnesia.mining import mine
from amnesia.model import LiveModel, edited
from amnesia.neutral import neutral_text
from amnesia.popqa import PopqaRow, read_popqa
from amnesia.questions import Question, questions_of
from amnesia.recipe import Recipe, Scoring
from amnesia.scores import knowledge_score
from amnesia.sources import resolve

TABLE = Path(__file__).with_name("entities.tsv")
SCORING = Scoring(min_nats=1.0, max_rank=3)
# What each method changes in a recipe.
METHODS: dict[str, dict[str, Any]] = {
    "pursuit": {"method": "pursuit", "multiplier": None},
    "pursuit, 48 cells": {"method": "pursuit", "multiplier": None, "max_cells": 48},
    "single, -1": {"method": "single", "multiplier": -1.0},
    "single, best": {"method": "single", "multiplier": None},
    "greedy, best": {"method": "greedy", "multiplier": None},
}
NULLS = ("wrong entity", "random cells")
BOUNDS = {
    "target": lambda row: row["target"] <= 0.2,
    "held-out target": lambda row: row["held_out_target"] <= 0.4,
    "held-out controls": lambda row: row["held_out_control"] >= 0.97,
    "their tenth percentile": lambda row: row["control_p10"] >= 0.8,
    "perplexity": lambda row: row["perplexity_ratio"] is not None and row["perplexity_ratio"] <= 1.01,
}
MIN_SEARCH, MIN_HELD_OUT = 3, 2
N_NEAR = 50


def chosen_entities(rows: Sequence[PopqaRow], per_type: int, seed: int) -> list[tuple[str, str]]:
    """(type, subject), the same number of each type as far as there are so many, drawn with a fixed seed."""
    by_type: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        by_type[row.type or "?"][row.subject] = None
    drawn = []
    for kind, subjects in sorted(by_type.items()):
        names = list(subjects)
        random.Random(seed).shuffle(names)
        # Some have too few wordings that are known; others take their place.
        drawn += [(place, kind, name) for place, name in enumerate(names[: 2 * per_type])]
    # In turn, so that a run that was broken off has some of every type.
    return [(kind, name) for _, kind, name in sorted(drawn, key=lambda row: row[:2])]


def minable(live: LiveModel, rows: Sequence[PopqaRow], name: str, kept: Kept) -> Recipe | None:
    """The entity's recipe, or None where the model knows too little: no first rank, or too few wordings."""
    try:
        recipe = mine(live, rows, name, model="smollm2-135m", scoring=SCORING, kept=kept).recipe
    except InputError:
        return None
    counts = [sum(fact.split == split for fact in recipe.facts) for split in ("search", "held_out")]
    targets = [row for row in questions_of(recipe) if "target" in row.kind]
    ranks = [answer.rank for answer in measure(live, targets, generated=False, kept=kept).answers]
    return recipe if counts[0] >= MIN_SEARCH and counts[1] >= MIN_HELD_OUT and 0 in ranks else None


def search_part(live: LiveModel, recipe: Recipe, kept: Kept) -> tuple[Known, Known]:
    """Targets and controls that a search may see."""
    questions = [row for row in questions_of(recipe) if row.fact.split == "search"]
    known = measure(live, questions, generated=False, kept=kept).answers
    return select_known(questions, known, measure_unknown(live, questions, kept=kept), recipe.scoring)


def random_cells(live: LiveModel, edits: Sequence[ColumnEdit], seed: int) -> tuple[ColumnEdit, ...]:
    """Other cells of the same layers: for each one of the `N_NEAR` whose columns have the nearest norms."""
    draw = random.Random(seed)
    taken = {edit.cell for edit in edits}
    found = []
    for edit in edits:
        weight = live.out_proj(edit.cell.layer).weight
        norms = weight.norm(dim=1 - live.shape.layout.neuron_axis)
        order = (norms - norms[edit.cell.neuron]).abs().argsort().tolist()
        near = [Cell(edit.cell.layer, neuron) for neuron in order if Cell(edit.cell.layer, neuron) not in taken]
        cell = draw.choice(near[:N_NEAR])
        taken.add(cell)
        found.append(ColumnEdit(cell, edit.multiplier))
    return tuple(found)


def scored(
    live: LiveModel, questions: Sequence[Question], scoring: Scoring, kept: Kept, edits: Sequence[ColumnEdit]
) -> list[tuple[str, str, str, str, float]]:
    """Kind, entity, prompt, answer and knowledge score of each known fact, with an edit in memory."""
    unknown = measure_unknown(live, questions, kept=kept)
    before = measure(live, questions, generated=False, kept=kept).answers
    with edited(live, edits):
        after = measure(live, questions, generated=False).answers
    return [
        (row.kind, row.fact.entity, row.fact.text(), row.fact.answer, knowledge_score(new.total, old.total, base.total))
        for row, old, new, base in zip(questions, before, after, unknown, strict=True)
        if why_excluded(old, base, scoring) is None
    ]


def perplexity_ratios(live: LiveModel, original: Impression, edits: Sequence[ColumnEdit]) -> dict[str, float]:
    """Perplexity per word with an edit in memory beside that of the original, by register and over all of them."""
    with edited(live, edits):
        after = impression(live, [])
    rows = []
    for text, old, new in zip(neutral_text(), original.neutral, after.neutral, strict=True):
        lost = sum(old.logprobs) - sum(new.logprobs)
        rows.append((f"{text.language}, {text.register}", lost, sum(len(part.split()) for part in text.passages)))
    found = {name: math.exp(lost / n_words) for name, lost, n_words in rows}
    return found | {"all": math.exp(sum(lost for _, lost, _ in rows) / sum(n for *_, n in rows))}


def tenth_percentile(values: Sequence[float]) -> float:
    """The value below which a tenth of them are."""
    return sorted(values)[round(0.1 * (len(values) - 1))]


class Judge:
    """Asks the original model once, then judges edits by everything that the search did not see, too."""

    def __init__(self, live: LiveModel, kept: Kept) -> None:
        self._live, self._kept = live, kept
        self._neutral: Impression = impression(live, [])

    def judge(self, recipe: Recipe, edits: Sequence[ColumnEdit], *, all_bounds: bool) -> dict[str, Any]:
        """Mean knowledge scores, the tenth percentile of the held-out controls, and the ratio of perplexities.

        Unless `all_bounds`, neutral text, which takes longest, is only read where the target bound is met.
        """
        scores = scored(self._live, questions_of(recipe), recipe.scoring, self._kept, edits)
        kinds = ("target", "held_out_target", "control", "held_out_control")
        by_kind = {kind: [score for found, *_, score in scores if found == kind] for kind in kinds}
        means = {kind: statistics.fmean(found) for kind, found in by_kind.items()}
        read = all_bounds or means["target"] <= 0.2
        ratios = perplexity_ratios(self._live, self._neutral, edits) if read else {}
        return {
            **means,
            "control_p10": tenth_percentile(by_kind["held_out_control"]),
            "perplexity_ratio": ratios.pop("all", None),
            "perplexity_by_register": ratios,
            "n": {kind: len(found) for kind, found in by_kind.items()},
            "scores": scores,
        }


@contextlib.contextmanager
def quiet(_: str) -> Iterator[Any]:
    """A task without a progress bar."""
    yield lambda _: None


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and method that is not in the results yet."""
    torch.set_num_threads(arguments.threads)
    results = arguments.results[0]
    done = {(row["entity"], row["method"]): row for row in lines(results)}
    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    kept = Kept(results.with_suffix(".measured"), "smollm2-135m")
    rows = read_popqa(TABLE)
    judge = Judge(live, kept)
    recipes: list[tuple[str, Recipe]] = []
    counts: dict[str, int] = defaultdict(int)
    for kind, name in chosen_entities(rows, arguments.per_type, arguments.seed):
        if arguments.types and kind not in arguments.types:
            continue
        if counts[kind] < arguments.per_type and (recipe := minable(live, rows, name, kept)) is not None:
            counts[kind] += 1
            recipes.append((kind, recipe))
            print(f"{kind}: {name}, {len(recipe.facts)} wordings, {len(recipe.controls)} controls", flush=True)

    def note(kind: str, recipe: Recipe, method: str, edits: Sequence[ColumnEdit], seconds: float | None) -> None:
        row = {
            "entity": recipe.entity,
            "type": kind,
            "method": method,
            "edits": [[edit.cell.layer, edit.cell.neuron, edit.multiplier] for edit in edits],
            "seconds": seconds,
            **judge.judge(recipe, edits, all_bounds=method.startswith("pursuit")),
        }
        done[recipe.entity, method] = row
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {recipe.entity}, {method}: {summary(row)}", flush=True)

    for method in arguments.methods:
        for kind, recipe in recipes:
            if (recipe.entity, method) in done:
                continue
            targets, controls = search_part(live, recipe, kept)
            start = time.perf_counter()
            chosen = choose(live, replace(recipe, **METHODS[method]), targets, controls, quiet)
            note(kind, recipe, method, chosen.edits, time.perf_counter() - start)
    for index, (kind, recipe) in enumerate(recipes):
        own, other = (done.get((recipes[place % len(recipes)][1].entity, "pursuit")) for place in (index, index + 1))
        for method, source in (("wrong entity", other), ("random cells", own)):
            if source is not None and (recipe.entity, method) not in done:
                edits = tuple(ColumnEdit(Cell(layer, neuron), value) for layer, neuron, value in source["edits"])
                note(kind, recipe, method, random_cells(live, edits, index) if method == NULLS[1] else edits, None)


def lines(path: Path) -> list[dict[str, Any]]:
    """What the results file holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summary(row: dict[str, Any]) -> str:
    """One result in one line."""
    missed = [name for name, holds in BOUNDS.items() if not holds(row)]
    seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
    perplexity = "not read" if row["perplexity_ratio"] is None else f"{row['perplexity_ratio'] - 1:+.2%}"
    return (
        f"{row['target']:.2f} / {row['held_out_target']:.2f}, controls {row['held_out_control']:.3f} "
        f"(tenth percentile {row['control_p10']:.2f}), perplexity {perplexity}, "
        f"{len(row['edits'])} cells{seconds}; " + ("all bounds met" if not missed else f"missed: {', '.join(missed)}")
    )


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Tables in Markdown: shares by bound, shares by type, and distributions."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    types = sorted({row["type"] for row in rows})
    text = ["| method | entities | all bounds | " + " | ".join([*BOUNDS, *types]) + " | seconds, median |"]
    text.append("|---" * (len(BOUNDS) + len(types) + 4) + "|")
    for method, found in by_method.items():
        passed = [row for row in found if all(holds(row) for holds in BOUNDS.values())]
        cells = [f"{sum(map(holds, found))}" for holds in BOUNDS.values()]
        for kind in types:
            cells.append(f"{sum(row['type'] == kind for row in passed)} of {sum(row['type'] == kind for row in found)}")
        seconds = [row["seconds"] for row in found if row["seconds"] is not None]
        cells.append(f"{statistics.median(seconds):.0f}" if seconds else "")
        text.append(f"| {method} | {len(found)} | {len(passed) / len(found):.0%} | " + " | ".join(cells) + " |")
    text += ["", "| method | score | min | 10 % | 25 % | median | 75 % | 90 % | max |", "|---" * 9 + "|"]
    for method, found in by_method.items():
        for key in ("target", "held_out_target", "held_out_control", "control_p10", "perplexity_ratio"):
            values = sorted(row[key] for row in found if row[key] is not None)
            if not values:
                continue
            cuts = [values[round(share * (len(values) - 1))] for share in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)]
            text.append(f"| {method} | {key} | " + " | ".join(f"{value:.3f}" for value in cuts) + " |")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, required=True, nargs="+", help="JSON lines: the first is appended to, all are reported"
    )
    parser.add_argument("--per-type", type=int, default=12)
    parser.add_argument("--types", nargs="*", help="only entities of these types")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of entities")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.report:
        run(arguments)
    print(report([row for path in arguments.results for row in lines(path)]))


if __name__ == "__main__":
    main()
