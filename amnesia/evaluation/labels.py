"""Role and split joined to one word, as JSON documents have them, and to words for displays; nowhere else are they."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amnesia.domain import ROLES, SPLITS, Role, Split

Row = Mapping[str, Any]
"""An object of a JSON document."""


def kind_of(role: Role, split: Split) -> str:
    """Role and split in one word, `kind` in JSON documents: target, held_out_target, control or held_out_control."""
    return role if split == "search" else f"held_out_{role}"


_PARTS: Mapping[str, tuple[Role, Split]] = {kind_of(role, split): (role, split) for role in ROLES for split in SPLITS}


def role_of(row: Row) -> Role:
    """The role of a prompt or an aggregate of a report."""
    return _PARTS[row["kind"]][0]


def split_of(row: Row) -> Split:
    """The split of a prompt or an aggregate of a report."""
    return _PARTS[row["kind"]][1]


def is_target(row: Row) -> bool:
    """Whether a prompt or an aggregate of a report is about the target."""
    return role_of(row) == "target"


def is_held_out(row: Row) -> bool:
    """Whether a prompt or an aggregate of a report is of facts that the search did not see."""
    return split_of(row) == "held_out"


def facts_label(role: Role, split: Split, target: str = "target", others: str = "others") -> str:
    """Whose facts these are, in words; `target` and `others` name the two roles."""
    part = "search" if split == "search" else "held-out"
    return f"{target}, {part} wordings" if role == "target" else f"{others}, {part} facts"


def words(name: str) -> str:
    """A neighborhood, a relation or another name of documents in words."""
    return name.replace("_", " ")
