"""How often the choice finds an edit that holds, beside simpler ways to choose one, over many entities of many kinds.

    python tests/benchmarks/extraction.py --model smollm2-135m --per-type 10 --results smollm2.jsonl
    python tests/benchmarks/extraction.py --model gemma-3-270m --per-type 10 --results gemma.jsonl

Each entity of `entities.tsv` becomes a recipe, as `amnesia mine` makes it: facts that the model knows, controls from
all neighborhoods, both split. Each method chooses an edit from the search part alone. Then the held-out part is asked,
with the edit acting in memory, and neutral text is read. Null controls follow: the edit of the next entity, and random
directions on the same columns, with the same writes and the same mean square over what stays.

The table says for each method how many entities meet each bound and all of them, by type, and how the scores are
distributed. Lines are appended to the results file as they come, so that a run that was broken off goes on where it
stopped, and `--report` prints the table of what is there. Seconds are those of the choice, on `--threads` threads; the
moments of the model are read before, once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mined import TABLE, chosen_entities, lines, minable

from amnesia.choice.atoms import Name, change_by
from amnesia.choice.direction import MAX_TOKENS, DirectionChoice, Group, Trial
from amnesia.choice.extraction import choose
from amnesia.choice.forms import asked_as, forms_of
from amnesia.choice.known import KnownFacts, Scores, mean_score, reserved_names, select_known
from amnesia.choice.neighbors import neighbor_results
from amnesia.directions.moments import BystanderMoments, early_layers, moments_of
from amnesia.edits import Edit, directions_of
from amnesia.errors import InputError
from amnesia.evaluation.damage import Impression, impression
from amnesia.evaluation.labels import kind_of
from amnesia.evaluation.measurement import known_facts, measure
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.own_facts import own_facts
from amnesia.facts.names import share_words
from amnesia.facts.neutral import neutral_text
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import Question, questions_of
from amnesia.facts.relations import relation_templates
from amnesia.files.cache import cache_folder
from amnesia.files.strict_json import StrictJson
from amnesia.live.loading import load
from amnesia.live.model import LiveModel, edited
from amnesia.mining.own import from_model
from amnesia.recipe import Recipe, Scoring
from amnesia.sources.resolve import resolve
from amnesia.vector import Vector
from amnesia.weights.edit_rows import edit_json, read_edit

JSON = StrictJson("the results file", InputError, "remove it")
NEIGHBORS = Path(__file__).with_name("neighbors.tsv")
COLUMNS = (16, 32, 64, 128)
METHODS = (
    "auto",
    "name only",
    "no table",
    *(f"{size} columns" for size in COLUMNS),
    "all columns",
    "single, -1",
    "single, best",
)
NULLS = ("wrong entity", "random direction")
BOUNDS = {
    "target": lambda row: row["target"] <= 0.2,
    "held-out target": lambda row: row["held_out_target"] <= 0.4,
    "held-out controls": lambda row: row["held_out_control"] >= 0.97,
    "their tenth percentile": lambda row: row["control_p10"] >= 0.8,
    "perplexity": lambda row: row["perplexity_ratio"] is not None and row["perplexity_ratio"] <= 1.01,
}


def search_part(live: LiveModel, recipe: Recipe, cache: MeasurementCache) -> tuple[KnownFacts, KnownFacts]:
    """Targets and controls that a search may see."""
    questions = [row for row in questions_of(recipe) if row.split == "search"]
    return select_known(known_facts(live, questions, recipe.scoring, cache=cache, unlikely=True))


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


def group_size(atoms: Group) -> int:
    """How many columns the read-outs of atoms have together."""
    return sum(atom.size for atom in atoms)


@dataclass
class Chooser:
    """Chooses by each method; what one entity's methods share is computed once."""

    live: LiveModel
    moments: BystanderMoments
    _last: tuple[str, DirectionChoice, list[Trial], float] | None = None

    def choose(
        self, recipe: Recipe, method: str, targets: KnownFacts, controls: KnownFacts
    ) -> tuple[tuple[Edit, ...], float]:
        """The edit, and the seconds it took."""
        start = time.perf_counter()
        if method in ("auto", "name only", "no table") or method.startswith("single"):
            options = replace(recipe.edit, forms=method != "name only")
            if method.startswith("single"):
                options = replace(options, method="single", multiplier=-1.0 if method.endswith("-1") else None)
            found = choose(self.live, replace(recipe, edit=options), targets, controls, quiet, cache_folder())
            return found.edits.edits, time.perf_counter() - start
        if self._last is None or self._last[0] != recipe.target.entity:
            reserved = (*recipe.target.names, *reserved_names(recipe))
            name = Name(self.live, recipe.target.entity, self.moments, lambda other: share_words(other, reserved))
            choice = DirectionChoice(Scores(self.live), name, targets, controls)
            dense = choice.mildest(name.atoms(MAX_TOKENS))
            self._last = (recipe.target.entity, choice, dense, time.perf_counter() - start)
            start = time.perf_counter()
        _, choice, dense, seconds = self._last
        size = group_size(dense[0].atoms) if method == "all columns" else int(method.split()[0])
        fits = [
            (atoms, trial.multiplier) for trial in dense for atoms in choice.sizes(trial) if group_size(atoms) == size
        ]
        found = choice.fitted(*min(fits, key=lambda pair: change_by(*pair).harm))
        return found.edits, seconds + time.perf_counter() - start


def scored(
    live: LiveModel, questions: Sequence[Question], scoring: Scoring, cache: MeasurementCache, edits: Sequence[Edit]
) -> list[tuple[str, str, str, str, float]]:
    """Kind, entity, prompt, answer and knowledge score of each known fact, with an edit in memory."""
    facts = known_facts(live, questions, scoring, cache=cache, unlikely=True)
    with edited(live, edits):
        after = measure(live, [fact.pair for fact in facts])
    return [
        (kind_of(row.role, row.split), row.fact.entity, *fact.pair, fact.score(after[fact.pair].logprob))
        for fact, row in ((fact, fact.question) for fact in facts)
        if not fact.excluded
    ]


def perplexity_ratios(live: LiveModel, original: Impression, edits: Sequence[Edit]) -> dict[str, float]:
    """Perplexity per word with an edit in memory beside that of the original, by register and over all of them."""
    with edited(live, edits):
        after = impression(live, [])
    rows = []
    for text, old, new in zip(neutral_text(), original.neutral, after.neutral, strict=True):
        lost = sum(old.logprobs) - sum(new.logprobs)
        rows.append((f"{text.language}, {text.register}", lost, sum(len(part.split()) for part in text.passages)))
    found = {name: math.exp(lost / n_words) for name, lost, n_words in rows}
    return found | {"all": math.exp(sum(lost for _, lost, _ in rows) / sum(n for *_, n in rows))}


def neighbor_pairs() -> dict[str, tuple[str, ...]]:
    """Names that share a word with an entity, by entity; of `neighbors.tsv`."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in NEIGHBORS.read_text(encoding="utf-8").splitlines()[1:]:
        entity, neighbor = line.split("\t")
        found[entity].append(neighbor)
    return {entity: tuple(names) for entity, names in found.items()}


def tenth_percentile(values: Sequence[float]) -> float:
    """The value below which a tenth of them are."""
    return sorted(values)[round(0.1 * (len(values) - 1))]


class Judge:
    """Asks the original model once, then judges edits by everything that the search did not see, too."""

    def __init__(self, live: LiveModel, cache: MeasurementCache) -> None:
        self._live, self._cache = live, cache
        self._pairs = neighbor_pairs()
        self._neutral: Impression = impression(live, [])

    def judge(self, recipe: Recipe, edits: Sequence[Edit], *, all_bounds: bool) -> dict[str, Any]:
        """Mean knowledge scores, the tenth percentile of the held-out controls, and the ratio of perplexities.

        Unless `all_bounds`, neutral text, which takes longest, is only read where the target bound is met.
        """
        scores = scored(self._live, questions_of(recipe), recipe.scoring, self._cache, edits)
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
            "forms": self._forms(recipe, edits),
            "neighbors": self._neighbors(recipe, edits),
            "scores": scores,
        }

    def _forms(self, recipe: Recipe, edits: Sequence[Edit]) -> dict[str, float]:
        """Mean score of every form of the name that brings out half of what the name does, over all target facts."""
        questions = [row for row in questions_of(recipe) if row.role == "target"]
        facts = known_facts(self._live, questions, recipe.scoring, cache=self._cache, unlikely=True)
        facts = tuple(fact for fact in facts if not fact.excluded)
        asked = {form: asked_as(facts, form.name) for form in forms_of(recipe.target)}
        known = {form: own for form, own in asked.items() if mean_score(self._live, own) >= 0.5}
        with edited(self._live, edits):
            return {f"{form.kind}: {form.name}": mean_score(self._live, own) for form, own in known.items()}

    def _neighbors(self, recipe: Recipe, edits: Sequence[Edit]) -> dict[str, tuple[int, float]]:
        """Number of facts and mean score of what the model states about each neighbor in a held-out wording."""
        names = self._pairs.get(recipe.target.entity, ())
        asked = [(name, each.held_out[0]) for name in names for each in relation_templates().values()]
        facts = own_facts(self._live, asked, (), recipe.scoring, cache=self._cache)
        rows = neighbor_results(Scores(self._live), facts, tuple(edits))
        return {row.name: (row.n_facts, row.score) for row in rows}


@contextlib.contextmanager
def quiet(_: str) -> Iterator[Any]:
    """A task without a progress bar."""
    yield lambda _: None


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and method that is not in the results yet."""
    torch.set_num_threads(arguments.threads)
    results = arguments.results[0]
    done = {(row["entity"], row["method"]): row for row in lines(results)}
    live = load(resolve(arguments.model).folder, arguments.model)
    cache = MeasurementCache(results.with_suffix(".measured"), arguments.model)
    moments = moments_of(live, early_layers(live.shape.n_layers), cache_folder())
    chooser = Chooser(live, moments)
    rows = read_popqa(TABLE)
    judge = Judge(live, cache)
    recipes: list[tuple[str, Recipe]] = []
    counts: dict[str, int] = defaultdict(int)
    neighbors = neighbor_pairs()
    for kind, name in chosen_entities(rows, arguments.per_type, arguments.seed):
        if arguments.types and kind not in arguments.types:
            continue
        if arguments.entities and name not in arguments.entities:
            continue
        if counts[kind] < arguments.per_type and (recipe := minable(live, rows, name, cache)) is not None:
            recipe = replace(recipe, target=replace(recipe.target, neighbors=neighbors.get(name, ())))
            counts[kind] += 1
            recipes.append((kind, recipe))
            print(f"{kind}: {name}, {len(recipe.facts)} wordings, {len(recipe.controls)} controls", flush=True)

    def note(kind: str, recipe: Recipe, method: str, edits: Sequence[Edit], seconds: float | None) -> None:
        row = {
            "entity": recipe.target.entity,
            "type": kind,
            "method": method,
            "edits": [edit_json(edit) for edit in edits],
            "seconds": seconds,
            **judge.judge(recipe, edits, all_bounds=not method.startswith("single") and method not in NULLS),
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
            done.get((recipes[place % len(recipes)][1].target.entity, "auto")) for place in (index, index + 1)
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


def worst(scores: Iterable[float], by: Callable[[Iterable[float]], float]) -> str:
    """The worst of scores with two digits."""
    found = list(scores)
    return f"{by(found):.2f}" if found else "none"


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
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.report:
        run(arguments)
    print(report([row for path in arguments.results for row in lines(path)]))


if __name__ == "__main__":
    main()
