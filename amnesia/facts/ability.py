"""Multiple choice on common words, things and numbers: general ability, without a network. Read when first needed.

The questions were written for this package and name nobody. No search ever sees them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from amnesia.facts.packaged import check_keys, distinct, read_data

_FILE = Path(__file__).with_name("ability.toml")

N_OPTIONS = 4


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt that ends where the answer begins, and its `N_OPTIONS` options, of which the first one is right."""

    field: str
    prompt: str
    options: tuple[str, ...]


@functools.cache
def ability_questions() -> tuple[ChoiceQuestion, ...]:
    """All questions of the package, field by field."""
    rows = read_data(_FILE, "fields")["fields"]
    for row in rows:
        check_keys(row, "a field of ability.toml", "field questions")
    distinct((question[0] for row in rows for question in row["questions"]), "ability.toml")
    for options in (question[1:] for row in rows for question in row["questions"]):
        if len(distinct(options, "ability.toml")) != N_OPTIONS:
            raise ValueError(f"ability.toml: {options!r} are not {N_OPTIONS} options")
    return tuple(
        ChoiceQuestion(row["field"], prompt, tuple(options)) for row in rows for prompt, *options in row["questions"]
    )
