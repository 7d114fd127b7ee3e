"""Wordings of relations between a subject and an answer, from the data file `relations.toml`.

Knows nothing of tables or models.
"""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.facts.packaged import check_keys, distinct

_FILE = Path(__file__).with_name("relations.toml")

N_HELD_OUT = 2
"""How many cloze wordings of each relation, the last ones, are held out from the search."""


@dataclass(frozen=True)
class RelationTemplates:
    """Wordings of one relation, each with `{entity}` and ending where the answer begins; `asked` are plain questions.

    The search may see `search`; `held_out` words the same relation otherwise, and mostly as questions.
    """

    cloze: tuple[str, ...]
    asked: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All of them, those of the search first."""
        return self.search + self.held_out

    @property
    def search(self) -> tuple[str, ...]:
        """Statements to complete, and a question whose answer is begun."""
        # Chat models tend to end the text after a bare `Answer:`.
        lead = self.cloze[0].removeprefix("Fact: ")
        return (
            *self.cloze[:-N_HELD_OUT],
            f"Question: {self.asked[0]}\nAnswer: {lead[0].upper()}{lead[1:]}",
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        """Other statements to complete, a bare question, and another question whose answer is begun."""
        return (
            *self.cloze[-N_HELD_OUT:],
            f"Question: {self.asked[0]}\nAnswer:",
            *(f"Q: {asked}\nA: {self.cloze[-1]}" for asked in self.asked[1:]),
        )


@functools.cache
def _data() -> Mapping[str, Mapping[str, Any]]:
    """`relations.toml`, checked: no wording of a relation comes twice, and each says where the entity stands."""
    document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    for relation, row in document.items():
        place = f"{_FILE.name}: {relation}"
        check_keys(row, place, "cloze asked", "type")
        if not all("{entity}" in text for text in distinct((*row["cloze"], *row["asked"]), place)):
            raise ValueError(f"{place} has a wording without {{entity}}")
        if len(row["cloze"]) <= N_HELD_OUT or len(row["asked"]) != 2:
            raise ValueError(f"{place} has too few statements, or not two questions")
    return document


@functools.cache
def relation_templates() -> Mapping[str, RelationTemplates]:
    """The wordings of every relation that has some, by its name."""
    return {name: RelationTemplates(tuple(row["cloze"]), tuple(row["asked"])) for name, row in _data().items()}


@functools.cache
def subject_types() -> Mapping[str, str]:
    """What the subjects of a relation are, by its name. Those of others, like "country", may be anything."""
    return {name: row["type"] for name, row in _data().items() if "type" in row}


def relations_of(kind: str | None) -> Mapping[str, RelationTemplates]:
    """The relations, by name, that a subject of a kind of `subject_types` can have; all of them for None."""
    own = subject_types()
    return {name: each for name, each in relation_templates().items() if kind is None or own.get(name, kind) == kind}


@functools.cache
def _relations_by_wording() -> Mapping[str, str]:
    return {prompt: relation for relation, each in relation_templates().items() for prompt in each.wordings}


def relation_of(prompt: str) -> str | None:
    """The relation of which `prompt` (with `{entity}`) is a wording, or None."""
    return _relations_by_wording().get(prompt)


def kind_asked(prompts: Iterable[str]) -> str | None:
    """The kind of subject that most of the prompts can be about, of those whose relation has one; None without any."""
    kinds = Counter(subject_types().get(relation_of(prompt) or "") for prompt in prompts)
    del kinds[None]
    return max(kinds, key=lambda kind: kinds[kind]) if kinds else None
