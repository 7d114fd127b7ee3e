"""Role and split joined to one word, as JSON documents have them, and to words for displays; nowhere else are they."""

from __future__ import annotations

from collections.abc import Mapping

from amnesia.domain import ROLES, SPLITS, Role, Split


def kind_of(role: Role, split: Split) -> str:
    """Role and split in one word, `kind` in JSON documents: target, held_out_target, control or held_out_control."""
    return role if split == "search" else f"held_out_{role}"


_PARTS: Mapping[str, tuple[Role, Split]] = {kind_of(role, split): (role, split) for role in ROLES for split in SPLITS}
KINDS = tuple(_PARTS)


def parts_of(kind: str) -> tuple[Role, Split]:
    """The role and the split in a `kind`; raises KeyError for another word."""
    return _PARTS[kind]


def facts_label(role: Role, split: Split, target: str = "target", others: str = "others") -> str:
    """Whose facts these are, in words; `target` and `others` name the two roles."""
    part = "search" if split == "search" else "held-out"
    return f"{target}, {part} wordings" if role == "target" else f"{others}, {part} facts"


def words(name: str) -> str:
    """A neighborhood, a relation or another name of documents in words."""
    return name.replace("_", " ")
