"""Other forms of a name: lower case, capitals, aliases. What the model knows behind them is to go with the name.

The key of "harry potter" is another one than that of "Harry Potter", so that an edit that answers to the one may leave
what stands behind the other. Each form in which the original model knows the facts gets an edit of its own where it
needs one, chosen as that of the name while this acts, as far as the harm that is allowed lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from amnesia.choice.atoms import Change, Name
from amnesia.choice.direction import DirectionChoice, JudgedTrial
from amnesia.choice.known import KnownFacts, Scores, some
from amnesia.choice.results import FormResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import n_columns
from amnesia.edits import Edit
from amnesia.facts.variants import Variant, variants_of
from amnesia.progress import Progress
from amnesia.recipe import Target

_KINDS = ("given", "translation", "last name", "acronym", "lower case", "upper case", "typo")

_N_TYPOS = 2  # Misspellings that are asked.
_KNOWN = 0.5  # Mean knowledge score in the original model from which a form counts as known: half of what the name has.


def forms_of(target: Target) -> tuple[Variant, ...]:
    """The forms of a name that a choice considers: those that the recipe gives, and others that are made from it."""
    given = [Variant(alias, "given") for alias in target.aliases]
    given += [Variant(row.name, "translation", row.language) for row in target.translations]
    found = variants_of(target.entity, given, _N_TYPOS if len(target.entity) > 3 else 0)
    return tuple(form for form in found if form.kind in _KINDS)


def asked_as(facts: KnownFacts, form: str) -> KnownFacts:
    """The same facts, asked with another form of the entity's name.

    Scores are those of the name: 1 where the form brings out as much as the name does in the original model, 0 where it
    brings out as much as an unknown entity.
    """
    return tuple(
        replace(fact, question=replace(fact.question, fact=replace(fact.question.fact, entity=form))) for fact in facts
    )


@dataclass
class Forms:
    """The forms of a name, beside an edit for the name itself: what it leaves of them, and what they get of their own.

    `change` is what texts lose by all edits, those for forms with them, of the last `add`.

    `known` are the facts under each form by which the original model knows the entity, and their mean score in it.
    """

    scores: Scores
    targets: KnownFacts
    controls: KnownFacts
    neighbors: KnownFacts
    settings: ChoiceSettings
    forms: Sequence[Variant]
    known: dict[Variant, tuple[KnownFacts, float]] = field(default_factory=dict)
    change: Change | None = None

    def __post_init__(self) -> None:
        few = some(self.targets, self.settings.n_facts)
        asked = {form: asked_as(few, form.name) for form in self.forms}
        self.scores.ask(tuple(fact for facts in asked.values() for fact in facts), [()])
        for form, facts in asked.items():
            score = self.scores.mean(facts)
            if score >= _KNOWN:
                self.known[form] = facts, score

    def add(
        self, best: JudgedTrial, name: Name, max_columns: int | None, progress: Progress | None
    ) -> tuple[Edit, ...]:
        """The edit that was chosen for the name, with what the forms need beside it.

        Nothing is added that would go beyond the harm that is allowed, or does not help.
        """
        found, change, neighbor = best.edits, best.change, best.neighbor
        settings = replace(self.settings, goal=self.settings.form_goal, margin=1.0, n_paired=2)
        for form, (facts, _) in self.known.items():
            before = self.scores.mean(facts, found)
            left = None if max_columns is None else max_columns - n_columns(found)
            if before <= settings.goal + settings.slack or (left is not None and left < 1):
                continue
            choice = DirectionChoice(
                self.scores,
                replace(name, text=form.name),
                facts,
                self.controls,
                self.neighbors,
                settings,
                left,
                progress,
                change,
                found,
            )
            own = choice.choose()
            fits = left is None or n_columns(own.edits) <= left
            spares = own.control >= settings.min_control and own.neighbor >= min(settings.min_neighbor, neighbor - 0.02)
            if fits and spares and own.change.harm <= settings.max_harm and own.score <= before - settings.form_gain:
                found, change = (*found, *own.edits), own.change
        self.change = change
        return found

    def results(self, alone: tuple[Edit, ...], edits: tuple[Edit, ...]) -> tuple[FormResult, ...]:
        """Each form with its mean score once the edit for the name acts `alone`, and with all `edits`."""
        return tuple(
            FormResult(form.name, form.kind, before, self.scores.mean(facts, alone), self.scores.mean(facts, edits))
            for form, (facts, before) in self.known.items()
        )
