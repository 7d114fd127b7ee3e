"""How often the choice finds an edit that holds, beside simpler ways to choose one, over many entities of many kinds.

    python tests/benchmarks/extraction.py --model smollm2-135m --per-type 10 --results smollm2.jsonl
    python tests/benchmarks/extraction.py --model gemma-3-270m --per-type 10 --results gemma.jsonl

Each entity of `entities.tsv` becomes a recipe, as `amnesia mine` makes it: facts that the model knows, controls from
all neighborhoods, both split. Each method chooses an edit from the search part alone. Then the held-out part is asked,
with the edit acting in memory, and neutral text is read. Null controls follow: the edit of the next entity, and random
directions on the same columns, with the same writes and the same mean square over what stays.

The table says for each method how many entities meet each bound and all of them, by type, and how the scores are
distributed. Lines are appended to the results file as they come, so that a run that was broken off goes on where it
stopped, and `--report` prints the table of what is there. Seconds are those that processors spend on the choice, so
that other work on the machine does not count; the moments of the model are read before, once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from judging import ASIDE, BOUNDS, Chooser, Judge, search_part, worst
from mined import TABLE, lines, minable_entities

from amnesia.directions.moments import BystanderMoments, early_layers, moments_of
from amnesia.edits import Edit, directions_of
from amnesia.errors import InputError
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.popqa import read_popqa
from amnesia.files.cache import cache_folder
from amnesia.files.strict_json import StrictJson
from amnesia.live.loading import load
from amnesia.live.model import LiveModel, edited
from amnesia.mining.own import from_model
from amnesia.recipe import Recipe
from amnesia.sources.resolve import resolve
from amnesia.vector import Vector
from amnesia.weights.edit_rows import edit_json, read_edit

JSON = StrictJson("the results file", InputError, "remove it")
COLUMNS = (16, 32, 64, 128)
METHODS = (
    "auto",
    "name only",
    ASIDE,
    "no table",
    *(f"{size} columns" for size in COLUMNS),
    "all columns",
    "single, -1",
    "single, best",
)
NULLS = ("wrong entity", "random direction")
CHOSEN = ("auto", "name only", ASIDE)  # Methods whose edits null controls take from another entity, and draw anew.


def random_direction(live: LiveModel, edits: Sequence[Edit], moments: BystanderMoments, seed: int) -> tuple[Edit, ...]:
    """Random read-outs on the same columns with the same mean square over everything that stays."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for edit in directions_of(edits):
        second = moments.without(live, edit.layer, lambda _: False, frozenset())[0].cpu()
        columns = torch.tensor(edit.columns)
        part = second[columns][:, columns]
        own = torch.from_numpy(edit.read.array.copy()).double()
        other = torch.randn(len(columns), generator=generator, dtype=torch.float64)
        other *= ((own @ part @ own) / (other @ part @ other)).sqrt()
        found.append(replace(edit, read=Vector.of(other)))
    return tuple(found)


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and method that is not in the results yet."""
    torch.set_num_threads(arguments.threads)
    results = arguments.results[0]
    done = {(row["entity"], row["method"]): row for row in lines(results)}
    live = load(resolve(arguments.model).folder, arguments.model)
    cache = MeasurementCache(results.with_suffix(".measured"), arguments.model)
    moments = moments_of(live, early_layers(live.shape.n_layers), cache_folder())
    chooser = Chooser(live, moments, time.process_time)
    rows = read_popqa(TABLE)
    judge = Judge(live, cache)
    recipes: list[tuple[str, Recipe]] = []
    for kind, recipe in minable_entities(
        live,
        rows,
        arguments.per_type,
        arguments.seed,
        cache,
        lambda kind, name: kind in (arguments.types or [kind]) and name in (arguments.entities or [name]),
    ):
        recipes.append((kind, recipe))
        print(
            f"{kind}: {recipe.target.entity}, {len(recipe.facts)} wordings, {len(recipe.controls)} controls", flush=True
        )

    def note(kind: str, recipe: Recipe, method: str, edits: Sequence[Edit], seconds: float | None) -> None:
        row = {
            "entity": recipe.target.entity,
            "type": kind,
            "method": method,
            "edits": [edit_json(edit) for edit in edits],
            "seconds": seconds,
            **judge.judge(
                recipe,
                lambda: edited(live, edits),
                all_bounds=not method.startswith("single") and method not in NULLS,
                bounds_only=arguments.bounds_only,
            ),
        }
        done[recipe.target.entity, method] = row
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {recipe.target.entity}, {method}: {summary(row)}", flush=True)

    for kind, recipe in recipes:
        for method in arguments.methods:
            if (recipe.target.entity, method) in done or method in NULLS:
                continue
            seen = recipe
            if method == "no table":
                # Chosen by what the model says; judged by the table, of which the choice sees nothing.
                try:
                    seen = from_model(live, recipe.target.entity, model=recipe.model, cache=cache).recipe
                except InputError as error:
                    print(f"  {recipe.target.entity}: {error}", flush=True)
                    continue
            targets, controls = search_part(live, seen, cache)
            edits, seconds = chooser.choose(seen, method, targets, controls)
            note(kind, recipe, method, edits, seconds)
    for index, (kind, recipe) in enumerate(recipes):
        own, other = (
            next(
                filter(None, (done.get((recipes[place % len(recipes)][1].target.entity, name)) for name in CHOSEN)),
                None,
            )
            for place in (index, index + 1)
        )
        for method, source in (("wrong entity", other), ("random direction", own)):
            if source is not None and method in arguments.methods and (recipe.target.entity, method) not in done:
                edits = tuple(read_edit(JSON, row) for row in source["edits"])
                if method == "random direction":
                    edits = random_direction(live, edits, moments, index)
                note(kind, recipe, method, edits, None)


def summary(row: dict[str, Any]) -> str:
    """One result in one line."""
    missed = [name for name, holds in BOUNDS.items() if not holds(row)]
    seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
    perplexity = "not read" if row["perplexity_ratio"] is None else f"{row['perplexity_ratio'] - 1:+.2%}"
    return (
        f"{row['target']:.2f} / {row['held_out_target']:.2f}, controls {row['held_out_control']:.3f} "
        f"(tenth percentile {row['control_p10']:.2f}), perplexity {perplexity}, "
        f"{columns_in(row)} columns{seconds}; forms {worst(row['forms'].values(), max)}, neighbors "
        f"{worst((score for _, score in row['neighbors'].values()), min)}; "
        + ("all bounds met" if not missed else f"missed: {', '.join(missed)}")
    )


def columns_in(row: dict[str, Any]) -> int:
    """How many columns of the model a result changes."""
    return len(
        {(edit["layer"], column) for edit in row["edits"] for column in edit.get("columns", [edit.get("neuron")])}
    )


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Tables in Markdown: shares by bound, shares by type, and distributions."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    types = sorted({row["type"] for row in rows})
    text = [
        "| method | entities | all bounds | " + " | ".join([*BOUNDS, *types]) + " | columns, median | seconds, median |"
    ]
    text.append("|---" * (len(BOUNDS) + len(types) + 5) + "|")
    for method, found in by_method.items():
        passed = [row for row in found if all(holds(row) for holds in BOUNDS.values())]
        cells = [f"{sum(map(holds, found))}" for holds in BOUNDS.values()]
        for kind in types:
            cells.append(f"{sum(row['type'] == kind for row in passed)} of {sum(row['type'] == kind for row in found)}")
        cells.append(f"{statistics.median(map(columns_in, found)):.0f}")
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
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model, a folder or a Hub id")
    parser.add_argument("--per-type", type=int, default=12)
    parser.add_argument("--types", nargs="*", help="only entities of these types")
    parser.add_argument("--entities", nargs="*", help="only these entities")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of entities")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", choices=(*METHODS, *NULLS), default=["auto", *NULLS])
    parser.add_argument("--bounds-only", action="store_true", help="ask no messages, forms and neighbors")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.report:
        run(arguments)
    print(report([row for path in arguments.results for row in lines(path)]))


if __name__ == "__main__":
    main()
