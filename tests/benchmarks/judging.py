"""What the programs that compare ways to forget share: ways to choose an edit, and what all of them are judged by.

A model is judged while something acts in it, which is given as a context manager: an edit, an adapter, nothing.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from mined import neighbor_pairs

from amnesia.choice.atoms import Name, change_by
from amnesia.choice.direction import MAX_TOKENS, DirectionChoice, Group, Trial
from amnesia.choice.extraction import choose
from amnesia.choice.forms import asked_as, first_in_lines, forms_of, is_other_first
from amnesia.choice.known import KnownFacts, Scores, mean_score, reserved_names, select_known
from amnesia.choice.neighbors import neighbor_results
from amnesia.directions.moments import BystanderMoments
from amnesia.edits import Edit
from amnesia.evaluation.damage import Impression, impression
from amnesia.evaluation.labels import kind_of
from amnesia.evaluation.measurement import in_both_forms, known_facts, measure
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.own_facts import own_facts
from amnesia.facts.names import share_words
from amnesia.facts.neutral import neutral_text
from amnesia.facts.questions import Question, questions_of
from amnesia.facts.relations import relation_templates
from amnesia.files.cache import cache_folder
from amnesia.live.model import LiveModel
from amnesia.recipe import Recipe, Scoring

Acting = Callable[[], AbstractContextManager[Any]]
"""Lets something act in the model while the block runs."""


ASIDE = "name only, neighbors aside"

BOUNDS = {
    "target": lambda row: row["target"] <= 0.2,
    "held-out target": lambda row: row["held_out_target"] <= 0.4,
    "held-out controls": lambda row: row["held_out_control"] >= 0.97,
    "their tenth percentile": lambda row: row["control_p10"] >= 0.8,
    "perplexity": lambda row: row["perplexity_ratio"] is not None and row["perplexity_ratio"] <= 1.01,
}


def search_part(live: LiveModel, recipe: Recipe, cache: MeasurementCache) -> tuple[KnownFacts, KnownFacts]:
    """Targets and controls that a choice may see, as it sees them: asked as messages, too, where there is a template."""
    questions = in_both_forms(live, [row for row in questions_of(recipe) if row.split == "search"])
    return select_known(known_facts(live, questions, recipe.scoring, cache=cache, unlikely=True))


def group_size(atoms: Group) -> int:
    """How many columns the read-outs of atoms have together."""
    return sum(atom.size for atom in atoms)


@dataclass
class Chooser:
    """Chooses by each method; what one entity's methods share is computed once. `clock` counts the seconds."""

    live: LiveModel
    moments: BystanderMoments
    clock: Callable[[], float] = time.perf_counter
    _last: tuple[str, DirectionChoice, list[Trial], float] | None = None

    def choose(
        self, recipe: Recipe, method: str, targets: KnownFacts, controls: KnownFacts
    ) -> tuple[tuple[Edit, ...], float]:
        """The edit, and the seconds it took."""
        start = self.clock()
        if method in ("auto", "name only", ASIDE, "no table") or method.startswith("single"):
            options = replace(recipe.edit, forms=method not in ("name only", ASIDE), neighbors=method != ASIDE)
            if method.startswith("single"):
                options = replace(options, method="single", multiplier=-1.0 if method.endswith("-1") else None)
            found = choose(self.live, replace(recipe, edit=options), targets, controls, quiet, cache_folder())
            return found.edits.edits, self.clock() - start
        if self._last is None or self._last[0] != recipe.target.entity:
            reserved = (*recipe.target.names, *reserved_names(recipe))
            name = Name(self.live, recipe.target.entity, self.moments, lambda other: share_words(other, reserved))
            choice = DirectionChoice(Scores(self.live), name, targets, controls)
            dense = choice.mildest(name.atoms(MAX_TOKENS))
            self._last = (recipe.target.entity, choice, dense, self.clock() - start)
            start = self.clock()
        _, choice, dense, seconds = self._last
        size = group_size(dense[0].atoms) if method == "all columns" else int(method.split()[0])
        fits = [
            (atoms, trial.multiplier) for trial in dense for atoms in choice.sizes(trial) if group_size(atoms) == size
        ]
        found = choice.fitted(*min(fits, key=lambda pair: change_by(*pair).harm))
        return found.edits, seconds + self.clock() - start


def scored(
    live: LiveModel, questions: Sequence[Question], scoring: Scoring, cache: MeasurementCache, acting: Acting
) -> list[tuple[str, str, str, str, float]]:
    """Kind, entity, prompt, answer and knowledge score of each known fact, while something acts."""
    facts = known_facts(live, questions, scoring, cache=cache, unlikely=True)
    with acting():
        after = measure(live, [fact.pair for fact in facts])
    return [
        (kind_of(row.role, row.split), row.fact.entity, *fact.pair, fact.score(after[fact.pair].logprob))
        for fact, row in ((fact, fact.question) for fact in facts)
        if not fact.excluded
    ]


def perplexity_ratios(live: LiveModel, original: Impression, acting: Acting) -> dict[str, float]:
    """Perplexity per word while something acts beside that of the original, by register and over all of them."""
    with acting():
        after = impression(live, [])
    rows = []
    for text, old, new in zip(neutral_text(), original.neutral, after.neutral, strict=True):
        lost = sum(old.logprobs) - sum(new.logprobs)
        rows.append((f"{text.language}, {text.register}", lost, sum(len(part.split()) for part in text.passages)))
    found = {name: math.exp(lost / n_words) for name, lost, n_words in rows}
    return found | {"all": math.exp(sum(lost for _, lost, _ in rows) / sum(n for *_, n in rows))}


def _by_kind(scores: Sequence[tuple[str, str, str, str, float]]) -> dict[str, list[float]]:
    """Scores of facts by what these are in a recipe."""
    kinds = ("target", "held_out_target", "control", "held_out_control")
    return {kind: [score for found, *_, score in scores if found == kind] for kind in kinds}


def tenth_percentile(values: Sequence[float]) -> float:
    """The value below which a tenth of them are."""
    return sorted(values)[round(0.1 * (len(values) - 1))]


class Judge:
    """Asks the original model once, then judges what acts by everything that the search did not see, too."""

    def __init__(self, live: LiveModel, cache: MeasurementCache) -> None:
        self._live, self._cache = live, cache
        self._pairs = neighbor_pairs()
        self._neutral: Impression = impression(live, [])

    def judge(self, recipe: Recipe, acting: Acting, *, all_bounds: bool, bounds_only: bool = False) -> dict[str, Any]:
        """Mean knowledge scores, the tenth percentile of the held-out controls, and the ratio of perplexities.

        These are of completions; `messages` are the means of what is asked as a message, where the model knows it.
        Unless `all_bounds`, neutral text, which takes longest, is only read where the target bound is met. With
        `bounds_only`, nothing is asked that no bound is about: messages, forms, neighbors.
        """
        questions = questions_of(recipe)
        scores = scored(self._live, questions, recipe.scoring, self._cache, acting)
        asked = [row for row in in_both_forms(self._live, questions) if row.is_message]
        messages = [] if bounds_only else scored(self._live, asked, recipe.scoring, self._cache, acting)
        by_kind = _by_kind(scores)
        means = {kind: statistics.fmean(found) for kind, found in by_kind.items()}
        read = all_bounds or means["target"] <= 0.2
        ratios = perplexity_ratios(self._live, self._neutral, acting) if read else {}
        return {
            **means,
            "control_p10": tenth_percentile(by_kind["held_out_control"]),
            "perplexity_ratio": ratios.pop("all", None),
            "perplexity_by_register": ratios,
            "n": {kind: len(found) for kind, found in by_kind.items()},
            "forms": {} if bounds_only else self._forms(recipe, acting),
            "neighbors": {} if bounds_only else self._neighbors(recipe, acting),
            "messages": {kind: statistics.fmean(found) for kind, found in _by_kind(messages).items() if found},
            "scores": scores,
        }

    def _forms(self, recipe: Recipe, acting: Acting) -> dict[str, float]:
        """Mean score of every form of the name that brings out half of what the name does, over all target facts.

        Where it begins a line, over those in whose wordings it can."""
        questions = [row for row in questions_of(recipe) if row.role == "target"]
        facts = known_facts(self._live, questions, recipe.scoring, cache=self._cache, unlikely=True)
        facts = tuple(fact for fact in facts if not fact.excluded)
        asked = {f"{form.kind}: {form.name}": asked_as(facts, form.name) for form in forms_of(recipe.target)}
        if is_other_first(self._live, recipe.target.entity) and (first := first_in_lines(facts)):
            asked[f"first in a line: {recipe.target.entity}"] = first
        known = {form: own for form, own in asked.items() if mean_score(self._live, own) >= 0.5}
        with acting():
            return {form: mean_score(self._live, own) for form, own in known.items()}

    def _neighbors(self, recipe: Recipe, acting: Acting) -> dict[str, tuple[int, float]]:
        """Number of facts and mean score of what the model states about each neighbor in a held-out wording."""
        names = self._pairs.get(recipe.target.entity, ())
        asked = [(name, each.held_out[0]) for name in names for each in relation_templates().values()]
        facts = own_facts(self._live, asked, (), recipe.scoring, cache=self._cache)
        with acting():
            rows = neighbor_results(Scores(self._live), facts, ())
        return {row.name: (row.n_facts, row.score) for row in rows}


@contextlib.contextmanager
def quiet(_: str) -> Generator[Any]:
    """A task without a progress bar."""
    yield lambda _: None


def worst(scores: Iterable[float], by: Callable[[Iterable[float]], float]) -> str:
    """The worst of scores with two digits."""
    found = list(scores)
    return f"{by(found):.2f}" if found else "none"
