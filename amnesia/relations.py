"""Wordings of relations between a subject and an answer, from the data file `relations.toml`.

Knows nothing of tables or models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

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


_DATA: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    (files("amnesia") / "relations.toml").read_text(encoding="utf-8")
)

RELATION_TEMPLATES: Mapping[str, RelationTemplates] = {
    relation: RelationTemplates(tuple(row["cloze"]), tuple(row["asked"])) for relation, row in _DATA.items()
}

SUBJECT_TYPES: Mapping[str, str] = {relation: row["type"] for relation, row in _DATA.items() if "type" in row}
"""What the subjects of a relation are. Those of others, like "country" and "genre", may be anything."""

_RELATION_OF = {prompt: relation for relation, each in RELATION_TEMPLATES.items() for prompt in each.wordings}


def relation_of(prompt: str) -> str | None:
    """The relation of which `prompt` (with `{entity}`) is a wording, or None."""
    return _RELATION_OF.get(prompt)
