"""Other forms of a name: lower case, capitals, aliases, the name where it begins a line. What the model knows behind
them is to go with the name.

The key of "harry potter" is another one than that of "Harry Potter", so that an edit that answers to the one may leave
what stands behind the other. Each form in which the original model knows the facts gets an edit of its own where it
needs one, chosen as that of the name while this acts, as far as the harm that is allowed lasts. Where a name begins a
line, as many a reply to a message does, there is no space before it, and its tokens are others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from amnesia.choice.atoms import Change, Name
from amnesia.choice.direction import MAX_TOKENS, DirectionChoice, JudgedTrial
from amnesia.choice.known import KnownFacts, Scores, evenly
from amnesia.choice.results import FormResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.keys import line_starts
from amnesia.domain import n_columns
from amnesia.edits import ColumnEdit, Edit
from amnesia.facts.variants import Variant, variants_of
from amnesia.live.model import LiveModel
from amnesia.live.tokens import encode
from amnesia.progress import Progress
from amnesia.recipe import Recipe, Target

_KINDS = ("given", "translation", "last name", "acronym", "lower case", "upper case", "typo")

_N_TYPOS = 2  # Misspellings that are asked.
_KNOWN = 0.5  # Mean knowledge score in the original model from which a form counts as known: half of what the name has.


def forms_of(target: Target) -> tuple[Variant, ...]:
    """The forms of a name that a choice considers: those that the recipe gives, and others that are made from it."""
    given = [Variant(alias, "given") for alias in target.aliases]
    given += [Variant(row.name, "translation", row.language) for row in target.translations]
    found = variants_of(target.entity, given, _N_TYPOS if len(target.entity) > 3 else 0, at_most=True)
    return tuple(form for form in found if form.kind in _KINDS)


def asked_as(facts: KnownFacts, form: str) -> KnownFacts:
    """The same facts, asked with another form of the entity's name.

    Scores are those of the name: 1 where the form brings out as much as the name does in the original model, 0 where it
    brings out as much as an unknown entity.
    """
    return tuple(
        replace(fact, question=replace(fact.question, fact=replace(fact.question.fact, entity=form))) for fact in facts
    )


_FIRST = re.compile(r"(?:^|\n)\{entity\}")
_AFTER_COLON = re.compile(r": \{entity\}")


def is_other_first(live: LiveModel, entity: str) -> bool:
    """Whether a model reads other tokens where the name begins a line."""
    middle, first = (
        # From the first token that has something of the name: a letter may have several.
        tuple(token for token, (_, end) in zip(item.ids, item.offsets, strict=True) if end > 2)
        for item in encode(live.tokenizer, [f"a {entity}", f"a\n{entity}"])
    )
    return middle != first


def inside_lines(facts: KnownFacts) -> KnownFacts:
    """The facts in whose prompts no line begins with the name; all of them where one does in each."""
    return tuple(fact for fact in facts if not _FIRST.search(fact.question.fact.prompt)) or facts


def compared(live: LiveModel, recipe: Recipe, targets: KnownFacts) -> KnownFacts:
    """The search facts by which candidates for the name itself are compared.

    Where the name has other tokens at the beginning of a line, these are those with the name inside one. Without edits
    for forms of the name, that for the name answers for every fact.
    """
    return inside_lines(targets) if recipe.edit.forms and is_other_first(live, recipe.target.entity) else targets


def first_in_lines(facts: KnownFacts) -> KnownFacts:
    """The facts in whose prompts the name begins a line, and those where it can: after a colon."""
    found = []
    for fact in facts:
        prompt = _AFTER_COLON.sub(":\n{entity}", fact.question.fact.prompt)
        if _FIRST.search(prompt):
            own = replace(fact.question.fact, prompt=prompt)
            found.append(replace(fact, question=replace(fact.question, fact=own)))
    return tuple(found)


@dataclass
class Forms:
    """The forms of a name, beside an edit for the name itself: what it leaves of them, and what they get of their own.

    `change` is what texts lose by all edits, those for forms with them, of the last `add`. Other forms than the name
    where it begins a line keep to the `share` (0 to 1) of the harm that is allowed.

    `known` are the facts under each form by which the original model knows the entity, and their mean score in it.
    Of the `first` facts a line of the prompt begins with the name; none, where that makes no difference.
    """

    scores: Scores
    targets: KnownFacts
    first: KnownFacts
    controls: KnownFacts
    neighbors: KnownFacts
    settings: ChoiceSettings
    forms: Sequence[Variant]
    known: dict[Variant, tuple[KnownFacts, float]] = field(default_factory=dict)
    change: Change | None = None
    share: float = 1.0

    @classmethod
    def of(
        cls,
        scores: Scores,
        recipe: Recipe,
        targets: KnownFacts,
        controls: KnownFacts,
        neighbors: KnownFacts,
        settings: ChoiceSettings,
    ) -> Forms:
        """Those that a recipe's choice considers; none where it is to have no edits for forms."""
        is_other = recipe.edit.forms and is_other_first(scores.live, recipe.target.entity)
        return cls(
            scores,
            compared(scores.live, recipe, targets),
            first_in_lines(targets) if is_other else (),
            controls,
            neighbors,
            settings,
            forms_of(recipe.target) if recipe.edit.forms else (),
        )

    def __post_init__(self) -> None:
        few, first = (evenly(facts, self.settings.n_facts) for facts in (self.targets, self.first))
        asked = {Variant(facts[0].question.fact.entity, "first in a line"): facts for facts in (first,) if facts}
        asked |= {form: asked_as(few, form.name) for form in self.forms}
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
        found, change, neighbor = best.edits, best.change, best.spared
        for form, (facts, _) in self.known.items():
            before = self.scores.mean(facts, found)
            left = None if max_columns is None else max_columns - n_columns(found)
            if not self._is_needed(facts, found) or (left is not None and left < 1):
                continue
            settings = self._settings(form, found, change)
            called = replace(name, text=form.name, texts=texts_of(name.live, form))
            if not (atoms := called.atoms(MAX_TOKENS, found)):
                continue
            choice = DirectionChoice(
                self.scores,
                called,
                facts,
                self.controls,
                self.neighbors,
                settings,
                left,
                progress,
                change,
                found,
                atoms=atoms,
            )
            own = choice.choose()
            fits = left is None or n_columns(own.edits) <= left
            spares = own.control >= settings.min_control and own.spared >= min(settings.min_neighbor, neighbor - 0.02)
            helps = own.score <= max(before - settings.much, settings.goal + settings.slack)
            if fits and spares and helps and own.change.harm <= settings.max_harm:
                found, change = (*found, *own.edits), own.change
        self.change = change
        return found

    def _is_needed(self, facts: KnownFacts, edits: tuple[Edit, ...]) -> bool:
        """Whether edits leave so much behind a form that it is to have one of its own."""
        return self.scores.mean(facts, edits) > self.settings.form_goal + self.settings.slack

    def _settings(self, form: Variant, found: tuple[Edit, ...], change: Change) -> ChoiceSettings:
        """Those of the choice for a form, beside edits that were found and what texts lose by them.

        On few columns, which harm more, it leaves some of the harm where forms that follow need it.
        """
        limit = self.settings.max_harm * (1.0 if form.kind == "first in a line" else self.share)
        forms, share = list(self.known), 1.0
        if any(self._is_needed(self.known[other][0], found) for other in forms[forms.index(form) + 1 :]):
            taken = min(1.0, change.harm / max(limit, 1e-12))
            share = taken + self.settings.margin * (1.0 - taken)
        return replace(
            self.settings, goal=self.settings.form_goal, max_harm=limit, margin=share, few_harm=share, n_paired=2
        )

    def exchanged(
        self,
        old: JudgedTrial,
        new: JudgedTrial,
        edits: tuple[Edit, ...],
        name: Name,
        max_columns: int | None,
        progress: Progress | None,
    ) -> tuple[JudgedTrial, tuple[Edit, ...]]:
        """Another edit for the name than the old one, with what the forms need; the old one where that does not do.

        Of `edits`, those of the old one come first. What the forms got beside it stays, if there was anything.
        """
        own = edits[len(old.edits) :]
        if not own:
            return new, self.add(new, name, max_columns, progress)
        assert self.change is not None, "forms were added"
        change = self.change + old.change.times(-1.0) + new.change
        both, settings = (*new.edits, *own), self.settings
        scaled = [edit.cell for edit in both if isinstance(edit, ColumnEdit)]
        if change.harm > settings.max_harm or len(set(scaled)) < len(scaled):
            return old, edits
        # No form may come back by more than a little, nor anything else be lost.
        facts = [(self.targets, settings.goal), *((rows, settings.form_goal) for rows, _ in self.known.values())]
        forgets = all(
            self.scores.mean(rows, both) <= max(goal + settings.slack, self.scores.mean(rows, edits) + settings.slack)
            for rows, goal in facts
        )
        kept = ((self.controls, settings.min_control), (self.neighbors, settings.min_neighbor))
        spares = all(
            self.scores.mean(rows, both) >= min(least, self.scores.mean(rows, edits)) for rows, least in kept if rows
        )
        if not (forgets and spares):
            return old, edits
        self.change = change
        return new, both

    def results(self, alone: tuple[Edit, ...], edits: tuple[Edit, ...]) -> tuple[FormResult, ...]:
        """Each form with its mean score once the edit for the name acts `alone`, and with all `edits`."""
        return tuple(
            FormResult(form.label, form.kind, before, self.scores.mean(facts, alone), self.scores.mean(facts, edits))
            for form, (facts, before) in self.known.items()
        )


def texts_of(live: LiveModel, form: Variant) -> tuple[str, ...] | None:
    """Texts in which the keys of a form are read, where they are others than those of a name."""
    return line_starts(live) if form.kind == "first in a line" else None
