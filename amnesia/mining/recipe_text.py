"""A mined recipe: an ordinary recipe as text, which people can read, mend and run again."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tomli_w

from amnesia.domain import Fact, ModelRef, name_key
from amnesia.edits import ColumnEdit
from amnesia.recipe import Accept, EditOptions, Recipe, Scoring

N_CONTROLS = 36
"""Controls that each split gets, as far as the model knows so many."""


@dataclass(frozen=True)
class Mined:
    """A recipe made from a table, and how many facts were tried for it.

    `n_targets` and `n_controls` count wordings that the model was asked; what it does not know is in no recipe.
    """

    recipe: Recipe
    n_targets: int
    n_controls: int


def recipe_text(
    model: ModelRef,
    entity: str,
    aliases: Sequence[str],
    facts: Sequence[Fact],
    controls: Sequence[Fact],
    scoring: Scoring,
) -> str:
    """A recipe as TOML, whose edit is found by method "auto"; each control has a line of its own."""
    head = {
        "description": f"{model.portable.name} forgets {entity}",
        "model": {"id": model.name, **({"revision": model.revision} if model.revision else {})},
        "entity": {"name": entity, "aliases": list(aliases)},
        "edit": {"format": ["safetensors", "adapter"]},
        "scoring": {"min_nats": scoring.min_nats, "max_rank": scoring.max_rank},
    }
    parts = [tomli_w.dumps(head), *("[[facts]]\n" + tomli_w.dumps(_fact_row(fact)) for fact in facts)]
    return "\n".join([*parts, *_control_lines(controls)])


def joint_text(recipes: Sequence[Recipe], model: ModelRef, controls: Sequence[Fact]) -> str:
    """One recipe as TOML of what several make a model forget, with the bounds of scoring of the first.

    Each entity has its facts, its names and its bounds; `controls` are those of all of them. How an edit is chosen is
    said where all recipes agree.
    """
    first = recipes[0].scoring
    head = {
        "description": f"{model.portable.name} forgets {', '.join(recipe.target.entity for recipe in recipes)}",
        "model": {"id": model.name, **({"revision": model.revision} if model.revision else {})},
        **({"edit": edit} if (edit := _edit_row(recipes)) else {}),
        "scoring": {"min_nats": first.min_nats, "max_rank": first.max_rank},
    }
    parts = [tomli_w.dumps(head)]
    for recipe in recipes:
        # In lines, because a table of its own would end that of the entity.
        lines = "".join(f"{key} = {in_line(value)}\n" for key, value in _entity_row(recipe).items())
        parts.append(f"[[entities]]\n{lines}")
        parts += ["[[entities.facts]]\n" + tomli_w.dumps(_fact_row(fact)) for fact in recipe.facts]
    return "\n".join([*parts, *_control_lines(controls)])


def text_with_cells(text: str, entity: str, cells: Sequence[ColumnEdit]) -> str:
    """The text of a recipe in which these cells alone fix the edit of `entity`.

    A recipe of several entities loses its comments, and so does one that has had other cells.
    """
    rows = [
        {
            **{key: value for key, value in asdict(edit.cell).items() if value is not None},
            "multiplier": float(edit.multiplier),
        }
        for edit in cells
    ]
    document = tomllib.loads(text)
    for own in document.get("entities", ()):
        if name_key(own["name"]) == name_key(entity):
            own["cells"] = rows
            return tomli_w.dumps(document)
    if "cells" in document:
        return tomli_w.dumps(document | {"cells": rows})
    return "\n".join([text.rstrip() + "\n", *("[[cells]]\n" + tomli_w.dumps(row) for row in rows)])


def _edit_row(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """What all recipes say of the choice, other than by default."""
    keys = ("method", "max_cells", "prefer", "forms", "neighbors", "multiplier")
    said = {key: {getattr(recipe.edit, key) for recipe in recipes} for key in keys}
    return {key: value for key, (value, *others) in said.items() if not others and value != getattr(EditOptions, key)}


def _entity_row(recipe: Recipe) -> dict[str, Any]:
    target = recipe.target
    row = {
        "aliases": list(target.aliases),
        "translations": {one.language: one.name for one in target.translations},
        "neighbors": list(target.neighbors),
        "accept": {key: value for key, value in asdict(recipe.accept).items() if value != getattr(Accept, key)},
    }
    return {"name": target.entity, **{key: value for key, value in row.items() if value}}


def _fact_row(fact: Fact) -> dict[str, str | list[str]]:
    row: dict[str, str | list[str]] = {"prompt": fact.prompt, "answer": fact.answer}
    if fact.answer_aliases:
        row["answer_aliases"] = list(fact.answer_aliases)
    if fact.split == "held_out":
        row["split"] = fact.split
    return row


def _control_lines(controls: Sequence[Fact]) -> list[str]:
    lines = (", ".join(f"{key} = {in_line(value)}" for key, value in _control_row(fact).items()) for fact in controls)
    return ["[controls]", "facts = [", *(f"  {{ {line} }}," for line in lines), "]", ""]


def _control_row(fact: Fact) -> dict[str, str | list[str]]:
    near = {} if fact.neighborhood is None else {"neighborhood": fact.neighborhood}
    return {
        "entity": fact.entity,
        "prompt": fact.prompt,
        "answer": fact.answer,
        "answer_aliases": list(fact.answer_aliases),
        "split": fact.split,
        **near,
    }


def in_line(value: Any) -> str:
    """A value as TOML without line breaks, which the library puts into every list and table."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {in_line(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_line, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")
