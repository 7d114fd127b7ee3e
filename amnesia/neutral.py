"""Neutral text in several registers and languages, on which damage is measured. It is read when it is first needed.

The text was written for this package and names nobody. No search ever sees it.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

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
    rows = tomllib.loads(_FILE.read_text(encoding="utf-8"))["texts"]
    return tuple(NeutralText(row["register"], row["language"], tuple(row["passages"])) for row in rows)
