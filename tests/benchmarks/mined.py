"""What benchmarks over many entities share: which entities of `entities.tsv`, their recipes, a file of results, and the
arguments that they all take."""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from amnesia.domain import ModelRef
from amnesia.errors import InputError
from amnesia.evaluation.measurement import measure
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.popqa import PopqaRow
from amnesia.live.model import LiveModel
from amnesia.mining.table import from_table
from amnesia.recipe import Recipe, Scoring

TABLE = Path(__file__).with_name("entities.tsv")
NEIGHBORS = Path(__file__).with_name("neighbors.tsv")
SCORING = Scoring(min_nats=1.0, max_rank=3)
MIN_SEARCH, MIN_HELD_OUT = 3, 2


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


def minable(live: LiveModel, rows: Sequence[PopqaRow], name: str, cache: MeasurementCache) -> Recipe | None:
    """The entity's recipe, or None where the model knows too little: no first rank, or too few wordings."""
    try:
        recipe = from_table(live, rows, name, model=ModelRef(live.name), scoring=SCORING, cache=cache).recipe
    except InputError:
        return None
    counts = [sum(fact.split == split for fact in recipe.facts) for split in ("search", "held_out")]
    answers = measure(live, [fact.pair() for fact in recipe.facts], cache=cache)
    ranks = [answer.rank for answer in answers.values()]
    return recipe if counts[0] >= MIN_SEARCH and counts[1] >= MIN_HELD_OUT and 0 in ranks else None


def minable_entities(
    live: LiveModel,
    rows: Sequence[PopqaRow],
    per_type: int,
    seed: int,
    cache: MeasurementCache,
    is_wanted: Callable[[str, str], bool] = lambda kind, name: True,
) -> Iterator[tuple[str, Recipe]]:
    """Types and recipes of the first `per_type` of each type whose recipe can be made, in the order in which they are
    drawn."""
    counts: dict[str, int] = defaultdict(int)
    for kind, name in chosen_entities(rows, per_type, seed):
        if (
            is_wanted(kind, name)
            and counts[kind] < per_type
            and (found := minable(live, rows, name, cache)) is not None
        ):
            counts[kind] += 1
            yield kind, found


def neighbor_pairs() -> dict[str, tuple[str, ...]]:
    """Names that share a word with an entity, by entity; of `neighbors.tsv`."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in NEIGHBORS.read_text(encoding="utf-8").splitlines()[1:]:
        entity, neighbor = line.split("\t")
        found[entity].append(neighbor)
    return {entity: tuple(names) for entity, names in found.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """What the results file holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every study takes: `--results`, `--model`, `--seed`, `--threads`, `--report`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, which are appended to")
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model, a folder or a Hub id")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of entities")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print what the results come to")
    return parser


def conduct(
    arguments: argparse.Namespace,
    run: Callable[[argparse.Namespace], None],
    report: Callable[[Sequence[dict[str, Any]]], str],
) -> None:
    """Run what is missing in the results, unless only a report is wanted, then print what they come to."""
    if not arguments.report:
        run(arguments)
    print(report(lines(arguments.results)))
