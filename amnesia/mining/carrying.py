"""A recipe for another model than the one that it was written for."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tomli_w

from amnesia.domain import ModelRef
from amnesia.evaluation.measurement import KnownFact, plainly_asked
from amnesia.recipe import Recipe

# What a recipe sets with its own model in view, by section. Facts and formats are no matter of the model.
_FITTED = {"localize": ("layers",), "edit": ("max_cells", "multiplier"), "scoring": None, "accept": None}


def carried_over(recipe: Recipe, model: ModelRef, n_layers: int) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe for `model`, which has `n_layers`, and in one line each what was set for the model before.

    Facts are kept, and so is every setting but layers that the model lacks: then its early layers are searched. The
    text of the recipe names the new model, without comments.
    """
    if model == recipe.model:
        return recipe, ()
    document: dict[str, Any] = tomllib.loads(recipe.text)
    document["model"] = {key: value for key, value in model.to_json().items() if value is not None}
    notices = []
    layers = recipe.localization.layers
    if layers is not None and layers[1] >= n_layers:
        notices.append(
            f"the recipe searches layers {layers[0]}-{layers[1]} of {recipe.model}, but {model} has layers "
            f"0-{n_layers - 1}: its early layers are searched"
        )
        del document["localize"]["layers"]
        recipe = replace(recipe, localization=replace(recipe.localization, layers=None))
    if kept := _fitted(document):
        notices.append(f"what the recipe sets for {recipe.model} is kept for {model}: {', '.join(kept)}")
    if recipe.edit.cells:
        notices.append(f"the recipe fixes cells of {recipe.model}, which need not mean the same in {model}")
    return replace(recipe, model=model, text=tomli_w.dumps(document)), tuple(notices)


def _fitted(document: dict[str, Any]) -> list[str]:
    """The settings that were chosen for one model, as they stand in the recipe."""
    return [
        f"{section}.{key} = {value}"
        for section, keys in _FITTED.items()
        for key, value in document.get(section, {}).items()
        if (keys is None or key in keys) and value != "auto"
    ]


def known_notice(facts: Sequence[KnownFact], model: str, entity: str) -> str:
    """How many of a recipe's facts a model knows that they were not made for, in one line."""
    counts = []
    for role, name in (("target", entity), ("control", "others")):
        rows = [fact for fact in plainly_asked(facts) if fact.question.role == role]
        known = sum(not fact.excluded for fact in rows)
        counts.append(f"{known} of the recipe's {len(rows)} facts about {name}")
    return f"{model} knows {' and '.join(counts)}"
