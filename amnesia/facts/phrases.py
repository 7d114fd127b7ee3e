"""How common relations are asked backwards, described in passing, and worded in other languages.

The rules for choosing among the wordings, which stand in `phrases.toml`. Knows nothing of models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amnesia.domain import Fact
from amnesia.facts.packaged import check_keys, distinct, read_data
from amnesia.facts.relations import relation_of

_FILE = Path(__file__).with_name("phrases.toml")

LANGUAGES: Mapping[str, str] = {"de": "German", "fr": "French", "es": "Spanish"}


@dataclass(frozen=True)
class Relation:
    """One relation between an entity and an answer, by the wordings that it has; `name` is that of `relations`.

    `reverse` contains `{answer}` and ends where the entity's name begins; `described` names the entity by the answer
    alone. Either is None where the answer does not lead back to one entity. `foreign` has a wording with `{entity}` by
    language code, ending where the answer begins. `pattern` is searched in the prompt, without regard to case;
    `answers`, where it is not empty, must contain the answer.
    """

    name: str
    pattern: str
    reverse: str | None = None
    described: str | None = None
    foreign: Mapping[str, str] = field(default_factory=dict)
    answers: frozenset[str] = frozenset()

    def states(self, prompt: str, answer: str) -> bool:
        """Whether a prompt with its answer states this relation."""
        return self.allows(answer) and re.search(self.pattern, prompt, re.IGNORECASE) is not None

    def allows(self, answer: str) -> bool:
        """Whether the relation can have this answer."""
        return not self.answers or answer.casefold() in self.answers


@functools.cache
def _data() -> dict[str, Any]:
    """`phrases.toml`, checked: every wording has its place to fill, and what it refers to is there."""
    document = read_data(_FILE, "relations answers")
    for row in document["relations"]:
        place = f"{_FILE.name}: {row.get('name')}"
        check_keys(row, place, "name pattern", "reverse described foreign answers")
        if row.get("answers", "languages") not in document["answers"]:
            raise ValueError(f"{place} refers to the answers {row['answers']!r}")
        if "foreign" in row:
            check_keys(row["foreign"], place, " ".join(LANGUAGES))
        _check_places(row.get("foreign", {}).values(), place, "{entity}")
        _check_places((row[key] for key in ("reverse", "described") if key in row), place, "{answer}")
        re.compile(row["pattern"])
    for table in document["answers"].values():
        for english, forms in table.items():
            check_keys(forms, f"{_FILE.name}: {english}", " ".join(LANGUAGES))
    distinct((name.casefold() for table in document["answers"].values() for name in table), f"{_FILE.name}: answers")
    distinct((row["name"] for row in document["relations"]), f"{_FILE.name}: relations")
    return document


def _check_places(texts: Iterable[str], place: str, field: str) -> None:
    """Raises ValueError unless each text has one `field` to fill, and no space around it."""
    if any(text.count(field) != 1 or text != text.strip() for text in texts):
        raise ValueError(f"{place} has a wording without one {field}, or with space around it")


@functools.cache
def relations() -> tuple[Relation, ...]:
    """All relations, of which the first that a fact states is taken."""
    data = _data()
    return tuple(
        Relation(
            row["name"],
            row["pattern"],
            row.get("reverse"),
            row.get("described"),
            row.get("foreign", {}),
            frozenset(map(str.casefold, data["answers"][row["answers"]] if "answers" in row else ())),
        )
        for row in data["relations"]
    )


@functools.cache
def _answers() -> Mapping[str, Mapping[str, str]]:
    """Forms in other languages by the English one, in lower case."""
    return {english.casefold(): forms for table in _data()["answers"].values() for english, forms in table.items()}


def relation_stated(fact: Fact) -> Relation | None:
    """The relation that a fact states, or None for one that is not in the table; no relation here leads to numbers."""
    if any(map(str.isdigit, fact.answer)):
        return None
    stated = (relation for relation in relations() if relation.states(fact.prompt, fact.answer))
    name = relation_of(fact.prompt)
    if name is not None:
        # A known wording is of its own relation, whatever words it has; what its answer tells may be another one.
        named = [relation for relation in relations() if relation.name == name]
        listed = (relation for relation in stated if relation.answers)
        return next((relation for relation in named if relation.allows(fact.answer)), next(listed, None))
    return next(stated, None)


def translated(answer: str, language: str) -> str | None:
    """An answer in another language, or None where its form there is not known.

    Proper names that the table does not list keep their form; words in lower case do not.
    """
    forms = _answers().get(answer.casefold())
    if forms is not None:
        return forms.get(language)
    return answer if answer != answer.lower() or not any(map(str.isalpha, answer)) else None
