"""Ways to make a model forget an entity, side by side, over two entities of each of six kinds.

    python tests/benchmarks/methods.py --model smollm2-135m --results methods.jsonl
    python tests/benchmarks/methods.py --results methods.jsonl --report

The entities are the first of `entities.tsv` that can be made into recipes, as in `extraction.py`. The source's best cell
is negated ("cell, -1") or multiplied as serves best; one direction acts on all columns of its layer, or on 64; an adapter
of rank 8 on all linear layers is trained by NPO or by gradient ascent, each with a KL term on texts and facts that are to
stay (`amnesia.stress.unlearning`). All see the search part of the recipe alone, and are judged with the weights really
changed: by the five bounds, by questions and chat messages of their own, by other forms of the name and its neighbors
(the worst of each), by the chance that one of 20 drawn answers is right, and by what comes back after
`--relearning-steps` steps of LoRA fine-tuning on instructions about other things (0: not asked).

Scores are knowledge scores of the target, medians over entities: 1 as before, 0 as for an unknown name. Seconds are those
of the processor on `--threads` threads, without the moments, which are read once a model. Lines are appended to the
results file as they come, so that a run that was broken off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from judging import BOUNDS, Acting, Chooser, Judge, scored, search_part
from mined import TABLE, conduct, lines, minable_entities, study_parser

from amnesia.api import edit
from amnesia.choice.known import KnownFacts, mean_score
from amnesia.directions.moments import early_layers, moments_of
from amnesia.edits import ColumnEdit, Edit
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.answers import matches
from amnesia.facts.forms import ASKED, with_messages
from amnesia.facts.names import neutral_texts
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.live.chat_form import chat_format
from amnesia.live.forward import sampled
from amnesia.live.loading import load
from amnesia.live.model import LiveModel
from amnesia.live.tokens import join
from amnesia.probes.conclusion import leak_at
from amnesia.probes.settings import ProbeSettings
from amnesia.recipe import Recipe
from amnesia.sources.resolve import resolve
from amnesia.stress.instructions import instructions_without
from amnesia.stress.settings import LORA, RelearningSettings, Unlearning
from amnesia.stress.training import Delta, Lesson, add, fine_tune, kept, rows_of
from amnesia.stress.trial import taking_turns
from amnesia.stress.unlearning import unlearn

CHOSEN = {"cell, -1": "single, -1", "best cell": "single, best", "direction": "all columns", "64 columns": "64 columns"}
"""Methods that change columns, by what `judging.Chooser` calls them."""

TRAINED = {"NPO": Unlearning.beta, "gradient ascent": 0.0}
"""Methods that train an adapter, with their beta."""

METHODS = (*CHOSEN, *TRAINED)


@dataclass(frozen=True)
class Changed:
    """A change of the weights: what makes it, its seconds, the numbers in the weights that it changes, and more to
    note."""

    make: Callable[[], None]
    seconds: float
    n_changed: int
    note: dict[str, Any]


@dataclass
class Study:
    """One model, by each method."""

    live: LiveModel
    chooser: Chooser
    judge: Judge
    cache: MeasurementCache
    n_facts: int
    relearning_steps: int

    def row(self, recipe: Recipe, method: str) -> dict[str, Any]:
        """What a method makes of an entity."""
        targets, controls = search_part(self.live, recipe, self.cache)
        by = self._chosen if method in CHOSEN else self._trained
        changed = by(recipe, method, targets, controls)

        @contextlib.contextmanager
        def acting() -> Generator[None]:
            with kept(self.live):
                changed.make()
                yield

        return {
            "seconds": changed.seconds,
            "n_changed": changed.n_changed,
            **changed.note,
            **self.judge.judge(recipe, acting, all_bounds=True),
            **self._by_form(recipe, acting),
            "leak": self._leak(targets, acting),
            "relearning_steps": self.relearning_steps,
            "relearned": self._relearned(recipe, targets, changed.make) if self.relearning_steps else None,
        }

    def _chosen(self, recipe: Recipe, method: str, targets: KnownFacts, controls: KnownFacts) -> Changed:
        edits, seconds = self.chooser.choose(recipe, CHOSEN[method], targets, controls)
        columns = {place for each in edits for place in _columns(each)}
        return Changed(
            lambda: edit(self.live.model, edits) if edits else None,
            seconds,
            len(columns) * self.live.shape.d_model,
            {"n_columns": len(columns)},
        )

    def _trained(self, recipe: Recipe, method: str, targets: KnownFacts, controls: KnownFacts) -> Changed:
        start = self.chooser.clock()
        retain = (*(join(*fact.pair) for fact in controls), *neutral_texts("search"))
        settings = replace(Unlearning(), beta=TRAINED[method])
        found = unlearn(
            self.live, [fact.pair for fact in targets], retain, settings, lambda: mean_score(self.live, targets)
        )
        adapter = found.adapter
        return Changed(
            lambda: add(self.live, adapter),
            self.chooser.clock() - start,
            sum(map(_n_weights, adapter)),
            {"unlearning_steps": found.steps},
        )

    def _by_form(self, recipe: Recipe, acting: Acting) -> dict[str, float | None]:
        """Mean scores of the target's questions, and of its facts as messages to a chat model; None without any."""
        targets = [row for row in questions_of(recipe) if row.role == "target"]
        asked = [row for row in targets if ASKED.fullmatch(row.fact.prompt)]
        messages = [row for row in with_messages(targets, chat_format(self.live.tokenizer)) if row.is_message]
        found: dict[str, float | None] = {}
        for name, questions in (("questions", asked), ("chat", messages)):
            rows = scored(self.live, questions, recipe.scoring, self.cache, acting) if questions else []
            found[name] = statistics.fmean(score for *_, score in rows) if rows else None
        return found

    def _leak(self, targets: KnownFacts, acting: Acting) -> float:
        """The mean chance that one of the drawn answers is right."""
        settings = ProbeSettings()
        facts = taking_turns((fact.question.fact for fact in targets), lambda fact: fact.answer, self.n_facts)
        n = settings.n_samples
        with acting():
            drawn = sampled(self.live, [fact.text() for fact in facts], n, settings.n_tokens, settings.seed)
        right = [sum(matches(text, fact.right_answers) for text in own) for fact, own in zip(facts, drawn, strict=True)]
        return statistics.fmean(leak_at(n, one, n) for one in right)

    def _relearned(self, recipe: Recipe, targets: KnownFacts, make: Callable[[], None]) -> float:
        """The mean score of the search facts after training on instructions that name nothing of them."""
        settings = RelearningSettings()
        answers = {answer for fact in targets for answer in fact.question.fact.right_answers}
        lessons: list[Lesson] = [
            (f"Instruction: {given}\nAnswer:", answer)
            for given, answer in instructions_without((*recipe.target.names, *sorted(answers)))
        ]
        rows = rows_of(self.live, lessons, settings.max_learned)
        (last,) = fine_tune(
            self.live,
            rows,
            LORA,
            (self.relearning_steps,),
            lambda: mean_score(self.live, targets),
            batch=settings.batch,
            start=make,
        )
        return last.seen


def _columns(each: Edit) -> list[tuple[int, int]]:
    """Layer and neuron of each column that an edit changes."""
    if isinstance(each, ColumnEdit):
        return [(each.cell.layer, each.cell.neuron)]
    return [(each.layer, column) for column in each.columns]


def _n_weights(delta: Delta) -> int:
    """How many weights an adapter changes in one layer."""
    return delta.b.shape[0] * delta.a.shape[1]


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and method that is not in the results yet, all methods of an entity in a row."""
    torch.set_num_threads(arguments.threads)
    results = arguments.results
    done = {(row["model"], row["entity"], row["method"]) for row in lines(results)}
    live = load(resolve(arguments.model).folder, arguments.model)
    cache = MeasurementCache(results.with_suffix(f".{arguments.model.replace('/', '-')}.measured"), arguments.model)
    moments = moments_of(live, early_layers(live.shape.n_layers), cache_folder())
    chooser = Chooser(live, moments, time.process_time)
    study = Study(live, chooser, Judge(live, cache), cache, arguments.facts, arguments.relearning_steps)
    rows = read_popqa(TABLE)
    for kind, recipe in minable_entities(live, rows, arguments.per_type, arguments.seed, cache):
        for method in arguments.methods:
            name = recipe.target.entity
            if (arguments.model, name, method) in done:
                continue
            row = {"model": arguments.model, "entity": name, "type": kind, "method": method}
            row |= study.row(recipe, method)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: value for key, value in row.items() if key != "scores"}), flush=True)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """One table in Markdown: a line for each model and method, medians over its entities."""
    by_method: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_method[row["model"], row["method"]].append(row)
    heads = [
        "model, method", "entities", "all five bounds", "target", "held out", "questions", "chat", "other forms, worst",
        "neighbors, worst", "others, held out", "their tenth percentile", "perplexity", "leak@20", "after relearning",
        "seconds", "numbers changed",
    ]  # fmt: skip
    text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (model, method), found in by_method.items():
        passed = sum(all(holds(row) for holds in BOUNDS.values()) for row in found)
        forms = [max(row["forms"].values()) for row in found if row["forms"]]
        near = [min(score for _, score in row["neighbors"].values()) for row in found if row["neighbors"]]
        keys = ("target", "held_out_target", "questions", "chat")
        cells = [_median([row[key] for row in found]) for key in keys]
        cells += [_median(forms), _median(near)]
        cells += [_median([row[key] for row in found], ".3f") for key in ("held_out_control", "control_p10")]
        cells.append(_median([row["perplexity_ratio"] - 1 for row in found], "+.1%"))
        cells.append(_median([row["leak"] for row in found], ".0%"))
        steps = sorted({row["relearning_steps"] for row in found if row["relearning_steps"]})
        relearned = _median([row["relearned"] for row in found])
        cells.append(relearned + f" ({' or '.join(map(str, steps))} steps)" * bool(steps))
        cells += [
            _median([row["seconds"] for row in found], ".0f"),
            _median([row["n_changed"] for row in found], ",.0f"),
        ]
        text.append(f"| {model}, {method} | {len(found)} | {passed} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def _median(values: Sequence[float | None], form: str = ".2f") -> str:
    found = [value for value in values if value is not None]
    return format(statistics.median(found), form) if found else "–"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--per-type", type=int, default=2, help="entities of each of the six kinds")
    parser.add_argument("--facts", type=int, default=8, help="search facts to which answers are drawn")
    parser.add_argument("--relearning-steps", type=int, default=100, help="of fine-tuning; 0 leaves it out")
    conduct(parser.parse_args(), run, report)


if __name__ == "__main__":
    main()
