"""How much of what a model knows of an entity comes back at a placeholder into which the entity is injected.

    python tests/benchmarks/injection.py --model smollm2-135m --results smollm2.jsonl
    python tests/benchmarks/injection.py --model gemma-3-270m --results gemma.jsonl

Each entity of `entities.tsv` becomes a recipe, as `amnesia mine` makes it. All its facts that the model knows are asked
about placeholders ("XXX", as many as the name has tokens) under conditions: what the early layer that moves the residual
stream most writes about the entity, as `amnesia inject` takes it; the same at the name's last token alone; the same of
all early layers together; the best cell by stability under the best of seven factors, chosen on the search facts; and
the controls: what the layer writes about the next entity of another type and about the mean of many names, a random
direction of the same length, nothing.

The table gives the mean over entities of their mean knowledge score, (log p − unknown) / (original − unknown), and the
share of answers at first rank, for names of one token and of several. Lines are appended to the results file as they
come, so that a run that was broken off goes on where it stopped; `--report` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mined import TABLE, chosen_entities, conduct, lines, minable, study_parser

from amnesia.choice.extraction import localized
from amnesia.directions.moments import early_layers
from amnesia.evaluation.measurement import KnownFact
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.experiments.forms import Direction, answers_with, cell_values, direction, known_targets
from amnesia.facts.popqa import read_popqa
from amnesia.live.interventions import Injection
from amnesia.live.loading import load
from amnesia.live.model import LiveModel
from amnesia.recipe import Recipe
from amnesia.sources.resolve import resolve

CONTROLS = {"random direction": "random", "mean name": "mean entity"}
CONDITIONS = (
    "direction",
    "at the last token alone",
    "of all early layers",
    "best cell",
    "wrong entity",
    *CONTROLS,
    "nothing",
)
Put = tuple[str, Sequence[Injection]]
"""The placeholder, and what is injected there."""


def prepared(condition: str, form: Direction, facts: Sequence[KnownFact], other: str, seed: int) -> Put:
    """What to put where under a condition, by the name's direction `form`."""
    live, recipe, word = form.live, form.recipe, form.put.placeholder
    if condition == "of all early layers":
        together = direction(live, recipe, early_layers(live.shape.n_layers))
        return together.put.placeholder, together.own()
    if condition == "best cell":
        (best,) = localized(live, recipe, first=1).top(1)
        cell = cell_values(live, recipe, [best.cell], facts)
        return cell.put.placeholder, cell.own()
    if condition == "wrong entity":
        return word, form.of(other)
    if condition == "nothing":
        return word, []
    if condition in CONTROLS:
        return word, form.controls(seed)[CONTROLS[condition]]
    return word, [row for row in form.own() if row.back == 0 or condition == "direction"]


def chosen(
    live: LiveModel, n: int, seed: int, cache: MeasurementCache
) -> Iterator[tuple[str, str, Recipe, tuple[str, ...]]]:
    """Type, name and recipe of `n` entities of the table, and who else is of another type, the next one first."""
    rows = read_popqa(TABLE)
    drawn = chosen_entities(rows, n, seed)
    for place, (kind, name) in enumerate(drawn):
        if n and (recipe := minable(live, rows, name, cache)) is not None:
            n -= 1
            after = [*drawn[place + 1 :], *drawn[:place]]
            yield kind, name, recipe, tuple(other for other_kind, other in after if other_kind != kind)


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and condition that is not in the results yet."""
    torch.set_num_threads(arguments.threads)
    done = {(row["entity"], row["condition"]) for row in lines(arguments.results)}
    live = load(resolve(arguments.model).folder, arguments.model)
    cache = MeasurementCache(arguments.results.with_suffix(".measured"), arguments.model)
    for seed, (kind, name, recipe, others) in enumerate(chosen(live, arguments.n, arguments.seed, cache)):
        missing = [condition for condition in CONDITIONS if (name, condition) not in done]
        if not missing:
            continue
        facts, form = known_targets(live, recipe), direction(live, recipe)
        for condition in missing:
            word, put = prepared(condition, form, facts, others[0], seed)
            answers = answers_with(live, facts, word, put)
            row = {
                "entity": name,
                "type": kind,
                "condition": condition,
                "other": others[0],
                "n_tokens": form.n_tokens,
                "layers": sorted({one.layer for one in put}),
                "scores": [fact.score(answer.logprob) for fact, answer in zip(facts, answers, strict=True)],
                "first": [answer.rank == 0 for answer in answers],
                "first_of_the_name": [fact.before.rank == 0 for fact in facts],
                "begins": [fact.question.fact.prompt.startswith("{entity}") for fact in facts],
            }
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            mean, n = statistics.fmean(row["scores"]), len(facts)
            print(f"{name}, {condition}: {mean:.2f}, first rank {sum(row['first'])} of {n}", flush=True)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Tables in Markdown: scores and first ranks by condition, then each entity's own."""
    kinds = {"one token": [row for row in rows if row["n_tokens"] == 1]}
    kinds["several tokens"] = [row for row in rows if row["n_tokens"] > 1]
    heads = [f"{name}: {head}" for name in kinds for head in ("score", "first rank")]
    text = ["| injected | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for condition in CONDITIONS:
        cells = []
        for own in kinds.values():
            found = [row for row in own if row["condition"] == condition]
            cells += [f"{mean_score(found):.2f}", f"{share(found, 'first'):.0%}"] if found else ["", ""]
        text.append(f"| {condition} | " + " | ".join(cells) + " |")
    own = [row for row in rows if row["condition"] == "direction"]
    text += ["", "| entity | tokens | layers | score | first rank | with its name |", "|---" * 6 + "|"]
    for row in sorted(own, key=lambda row: (row["n_tokens"], row["entity"])):
        ranks = [f"{sum(row[key])} of {len(row[key])}" for key in ("first", "first_of_the_name")]
        layers = ", ".join(map(str, row["layers"]))
        text.append(
            f"| {row['entity']} | {row['n_tokens']} | {layers} | {statistics.fmean(row['scores']):.2f} | "
            + " | ".join(ranks)
            + " |"
        )
    inside, begins = (
        [score for row in own for score, first in zip(row["scores"], row["begins"], strict=True) if first == wanted]
        for wanted in (False, True)
    )
    text.append("")
    for name, scores in (("begin with the name", begins), ("do not", inside)):
        if scores:
            text.append(f"mean score of the {len(scores)} facts whose prompts {name}: {statistics.fmean(scores):.2f}")
    return "\n".join(text)


def mean_score(rows: Sequence[dict[str, Any]]) -> float:
    """Mean over entities of the mean over facts."""
    return statistics.fmean(statistics.fmean(row["scores"]) for row in rows)


def share(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Share of facts, over all entities."""
    return statistics.fmean(value for row in rows for value in row[key])


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = study_parser(__doc__)
    parser.add_argument("-n", type=int, default=20, help="how many entities")
    conduct(parser.parse_args(), run, report)


if __name__ == "__main__":
    main()
