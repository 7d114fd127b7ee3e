"""Recipes of a queue's entities on a tiny model, each with one cell."""

from __future__ import annotations

from pathlib import Path

from amnesia.live.model import LiveModel
from support.tiny_recipe import recipe_text

CELLS = {"Japan": (0, 3), "Canada": (1, 11), "Norway": (0, 3)}


def text_of(live: LiveModel, model: Path, entity: str, **options) -> str:
    """A recipe that multiplies the cell of an entity by −2; `options` as of `recipe_text`."""
    layer, neuron = CELLS[entity]
    edit = f"cells = [{{ layer = {layer}, neuron = {neuron}, multiplier = -2.0 }}]"
    text = recipe_text(live, model, entity=entity, edit=edit, **options)
    # Others who share a word with it, of whom such a model says something.
    return text.replace("[entity]\n", f'[entity]\nneighbors = ["Bank of {entity}"]\n', 1)
