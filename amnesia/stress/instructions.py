"""Instructions with their answers, as models are tuned on by those who use them. They are read when first needed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from amnesia.facts.answers import matches
from amnesia.facts.packaged import check_keys, distinct, read_data

_FILE = Path(__file__).with_name("instructions.toml")


@functools.cache
def instructions() -> tuple[tuple[str, str], ...]:
    """All pairs of an instruction and its answer, in the order of the file."""
    rows = read_data(_FILE, "tasks")["tasks"]
    for row in rows:
        check_keys(row, "a task of instructions.toml", "task pairs")
    found = tuple((given, answer) for row in rows for given, answer in row["pairs"])
    distinct((given for given, _ in found), "instructions.toml")
    return found


def instructions_without(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs in which none of the names (or answers) stands, so that nothing of them is taught."""
    return tuple(
        pair for pair in instructions() if not any(matches(line, names) for text in pair for line in text.splitlines())
    )
