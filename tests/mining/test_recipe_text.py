"""Recipes that this package writes say what the reader needs."""

from dataclasses import replace

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.mining.recipe_text import joint_text, text_with_cells
from amnesia.recipe import Accept, EditOptions
from amnesia.recipe_file import parse_recipe

RECIPE = """
[model]
id = "m"
[entity]
name = "{name}"
aliases = ["The \\"{name}\\""]
translations = {{ ko = "{korean}", zh-Hant = "x" }}
neighbors = ["{name} Ono"]
{accept}
[[facts]]
prompt = "{{entity}} is"
answer = "{name} of old"
[[controls.facts]]
entity = "Peru"
prompt = "{{entity}} is"
answer = "high"
"""


def recipe(name, korean, accept=""):
    return parse_recipe(RECIPE.format(name=name, korean=korean, accept=accept))


def test_a_joint_recipe_keeps_the_names_and_bounds_of_each_entity():
    bounds = "[accept]\nmax_target = 0.5\nmax_perplexity = 3"
    recipes = [recipe("Japan", "일본", bounds), recipe("Canada", "캐나다")]
    text = joint_text(recipes, ModelRef("m"), recipes[0].controls)
    for one in recipes:
        found = parse_recipe(text, one.target.entity)
        assert found.target == one.target
        assert found.facts == one.facts
        assert found.accept == one.accept
    assert recipes[1].accept == Accept() != recipes[0].accept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (({}, {}), {}),
        (({"neighbors": False, "forms": False}, {"neighbors": False, "forms": True}), {"neighbors": False}),
        (({"prefer": "mild", "max_cells": 7},) * 2, {"prefer": "mild", "max_cells": 7}),
        (({"method": "single", "multiplier": -2.0},) * 2, {"method": "single", "multiplier": -2.0}),
        (({"method": "single"}, {"method": "single", "multiplier": -2.0}), {"method": "single"}),
    ],
)
def test_a_joint_recipe_says_what_all_say_of_the_choice(options, said):
    recipes = [
        replace(one, edit=replace(one.edit, **own))
        for one, own in zip((recipe("Japan", "a"), recipe("Canada", "b")), options, strict=True)
    ]
    text = joint_text(recipes, ModelRef("m"), recipes[0].controls)
    for one in recipes:
        assert parse_recipe(text, one.target.entity).edit == replace(EditOptions(), **said)


def test_an_entity_of_several_has_its_own_bounds_in_place_of_those_of_all():
    recipes = [recipe("Japan", "a", "[accept]\nmax_target = 0.5"), recipe("Canada", "b")]
    text = joint_text(recipes, ModelRef("m"), recipes[0].controls) + "\n[accept]\nmax_target = 0.1\nmin_control = 0.9\n"
    one, other = (parse_recipe(text, name).accept for name in ("Japan", "Canada"))
    shared = replace(Accept(), max_target=0.1, min_control=0.9)
    assert (one, other) == (replace(shared, max_target=0.5), shared)


def test_cells_are_put_where_the_reader_finds_them():
    cells = (ColumnEdit(Cell(1, 11), -2.0), ColumnEdit(Cell(0, 3, 5), 0.5))
    one, other = recipe("Japan", "a"), recipe("Canada", "b")
    assert parse_recipe(text_with_cells(one.text, "Japan", cells)).edit.cells == cells
    text = text_with_cells(joint_text([one, other], ModelRef("m"), one.controls), "japan", cells)
    assert parse_recipe(text, "Japan").edit.cells == cells
    assert parse_recipe(text, "Canada").edit.cells == ()
