"""Neutral text in several registers and languages, on which damage is measured. It is read when it is first needed.

The text was written for this package and names nobody. No search ever sees it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from amnesia.facts.packaged import check_keys, distinct, read_data

_FILE = Path(__file__).with_name("neutral.toml")


@dataclass(frozen=True)
class NeutralText:
    """Passages of one register in one language (an IETF language tag, or "code")."""

    register: str
    language: str
    passages: tuple[str, ...]


@functools.cache
def neutral_text() -> tuple[NeutralText, ...]:
    """All neutral text of the package."""
    rows = read_data(_FILE, "texts")["texts"]
    for row in rows:
        check_keys(row, "a text of neutral.toml", "register language passages")
    distinct((passage for row in rows for passage in row["passages"]), "neutral.toml")
    return tuple(NeutralText(row["register"], row["language"], tuple(row["passages"])) for row in rows)
