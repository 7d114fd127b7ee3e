"""Data files of this package: TOML, read when it is first needed.

What is checked is what would change a measurement without a word: a key that is misspelled, a text that comes twice.
Raises ValueError, because no user can mend these files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_data(path: Path, needed: str) -> dict[str, Any]:
    """The tables of a file, which are exactly the space-separated `needed`."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    check_keys(document, path.name, needed)
    return document


def check_keys(row: Mapping[str, Any], place: str, needed: str, optional: str = "") -> None:
    """Raises ValueError unless `row`, which stands at `place`, has all keys of `needed` and none beside `optional`."""
    expected = set(needed.split())
    if different := (row.keys() - set(optional.split())) ^ expected:
        state = "lacks" if different & expected else "has the unknown key"
        raise ValueError(f"{place} {state} {sorted(different & expected or different)[0]!r}")


def distinct(texts: Iterable[str], place: str) -> tuple[str, ...]:
    """The texts, in their order; raises ValueError for one that comes twice, is empty, or has space around it."""
    found: dict[str, None] = {}
    for text in texts:
        if text in found or not text or text != text.strip():
            raise ValueError(f"{place} has {text!r} twice, or with space around it")
        found[text] = None
    return tuple(found)
