"""The list of entities: a text file with a name, or the path of a recipe, on each line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.domain import ModelRef, entity_name, name_key
from amnesia.errors import InputError, os_errors_as
from amnesia.files.disk import read_small
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe

_MAX_LIST = 2**24
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Listed:
    """An entity of a list: its name, and its recipe where the list names one."""

    name: str
    recipe: Recipe | None = None


def read_list(path: Path) -> tuple[Listed, ...]:
    """The entities of a list, in its order.

    A line is a name, or, if it ends in ".toml", the path of a recipe, from the folder of the list. Raises what
    `lines_in` raises, InputError for somebody who is listed twice, and RecipeError for a recipe that cannot be used.
    """
    found: dict[str, Listed] = {}
    for line in lines_in(path):
        recipe = load_recipe(path.parent / line) if line.endswith(".toml") else None
        listed = Listed(entity_name(line) if recipe is None else recipe.target.entity, recipe)
        if name_key(listed.name) in found:
            raise InputError(f"{path} lists {listed.name!r} twice: list each entity once")
        found[name_key(listed.name)] = listed
    return tuple(found.values())


def lines_in(path: Path) -> tuple[str, ...]:
    """What stands on the lines of a list; a `#` at the beginning of a line or after a space begins a comment.

    Raises InputError for a file that cannot be read or lists nobody.
    """
    remedy = "give a text file with an entity on each line"
    with os_errors_as(InputError, f"list {path} cannot be read", remedy):
        content = read_small(path, _MAX_LIST)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"list {path} is not UTF-8 text: save it as UTF-8") from error
    found = tuple(filter(None, (_COMMENT.sub("", line).strip() for line in lines)))
    if not found:
        raise InputError(f"{path} lists no entity: {remedy}")
    return found


def model_of(listed: Sequence[Listed], model: str | None) -> ModelRef | str:
    """The model that a list is for: the one given, or that of its recipes.

    Raises InputError when a name needs one and none is given, and when the recipes are for several.
    """
    if model is not None:
        return model
    names = [row.name for row in listed if row.recipe is None]
    if names:
        raise InputError(f"{names[0]!r} is listed without a recipe, and no model is given: add --model")
    refs = {str(row.recipe.model): row.recipe.model for row in listed if row.recipe is not None}
    if len(refs) > 1:
        raise InputError(f"the recipes are for {', '.join(sorted(refs))}: give the one to take with --model")
    return next(iter(refs.values()))
