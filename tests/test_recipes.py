import re
import tomllib

import pytest

from amnesia.domain import ModelRef
from amnesia.facts.names import unseen_names
from amnesia.recipe_file import load_recipe
from support.folders import ROOT

RECIPES = ROOT / "recipes"
# Recipes whose saved files met their bounds, by model.
TRIED = {model: sorted((RECIPES / model).glob("*.toml")) for model in ("smollm2-135m", "gemma-3-270m")}
DEMO = [path for model in TRIED for path in sorted((RECIPES / model).rglob("*.toml"))]
SOURCE = sorted((RECIPES / "qwen2.5-7b").glob("*.toml"))
# The table of the source document: layer and neuron of each entity that has a recipe of its own.
SOURCE_CELLS = {
    "trump": "1:11948",
    "paris": "1:231",
    "fbi": "2:11955",
    "obama": "2:10941",
    "jennifer_aniston": "3:1794",
}


SMOLLM2 = [
    "albert_einstein",
    "chicago",
    "egypt",
    "eiffel_tower",
    "facebook",
    "google",
    "harry_potter",
    "japan",
    "julius_caesar",
    "sherlock_holmes",
    "steve_jobs",
]
GEMMA = [
    "albert_einstein",
    "egypt",
    "eiffel_tower",
    "facebook",
    "google",
    "grand_canyon",
    "harry_potter",
    "julius_caesar",
    "sherlock_holmes",
    "steve_jobs",
]
ON_FEW_COLUMNS = {"harry_potter", "julius_caesar", "steve_jobs"}


def entities(path):
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("entities", [])
    return [row["name"] for row in rows] or [None]


ALL = [
    pytest.param(path, entity, id="-".join(filter(None, (path.parent.name, path.stem, entity))))
    for path in (*DEMO, *SOURCE)
    for entity in entities(path)
]


def of_split(facts, split):
    return [fact for fact in facts if fact.split == split]


def test_the_expected_recipes_are_shipped():
    assert {model: [path.stem for path in paths] for model, paths in TRIED.items()} == {
        "smollm2-135m": SMOLLM2,
        "gemma-3-270m": GEMMA,
    }
    assert len(DEMO) >= 20
    assert {path.stem for path in SOURCE} == {*SOURCE_CELLS, "verified"}


@pytest.mark.parametrize(("path", "entity"), ALL)
def test_recipe_loads_and_its_splits_are_disjoint(path, entity):
    recipe = load_recipe(path, entity)
    search, held_out = of_split(recipe.facts, "search"), of_split(recipe.facts, "held_out")
    assert search
    assert held_out
    assert not {fact.prompt for fact in search} & {fact.prompt for fact in held_out}
    control_entities = [{fact.entity for fact in of_split(recipe.controls, split)} for split in ("search", "held_out")]
    assert all(control_entities)
    assert not control_entities[0] & control_entities[1]
    names = {recipe.target.entity.casefold(), *(alias.casefold() for alias in recipe.target.aliases)}
    assert not names & {name.casefold() for name in control_entities[0] | control_entities[1]}
    everything = recipe.facts + recipe.controls
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize(("path", "entity"), ALL)
def test_wording_can_be_scored(path, entity):
    recipe = load_recipe(path, entity)
    for fact in recipe.facts + recipe.controls:
        assert fact.prompt == fact.prompt.strip(), fact
        # A full stop is allowed after an initial or a title, because a name goes on there.
        assert re.search(r"[^.?!]$|\b([A-Z]|Dr)\.$", fact.prompt), fact
        assert "  " not in fact.text(), fact
        assert "the the " not in fact.text().casefold(), fact
    assert len(unseen_names(recipe.target.entity, recipe.target.aliases)) >= 3


@pytest.mark.parametrize("path", DEMO, ids=lambda path: f"{path.relative_to(RECIPES)}")
def test_answers_of_a_demo_recipe_are_not_given_away_by_their_prompts(path):
    recipe = load_recipe(path)
    for fact in recipe.facts + recipe.controls:
        words, answer = (re.findall(r"\w+", text.casefold()) for text in (fact.text(), fact.answer))
        assert not any(words[i : i + len(answer)] == answer for i in range(len(words))), fact


@pytest.mark.parametrize("path", DEMO, ids=lambda path: f"{path.relative_to(RECIPES)}")
def test_demo_recipe_is_broad_enough(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# .+\n", text)
    recipe = load_recipe(path)
    assert recipe.model == ModelRef(path.relative_to(RECIPES).parts[0])
    assert path.stem == re.sub(r"\W+", "_", recipe.target.entity.lower())
    assert not recipe.edit.cells
    assert (recipe.localization.baseline, recipe.localization.n_prompts, recipe.edit.max_cells) == (
        "contrast",
        100,
        128 if path.stem in ON_FEW_COLUMNS else None,
    )
    assert (recipe.edit.method, recipe.edit.multiplier) == ("auto", None)
    assert recipe.edit.formats == ("safetensors", "adapter")
    search, held_out = of_split(recipe.facts, "search"), of_split(recipe.facts, "held_out")
    assert len(search) >= 6
    assert len({fact.answer for fact in search}) >= 2
    assert len(held_out) >= 4
    for facts in (search, recipe.controls):
        assert any(fact.prompt.startswith("Fact: ") for fact in facts)
        assert any(fact.prompt.startswith(("Question: ", "Q: ")) for fact in facts)
        assert any(not fact.prompt.startswith(("Fact: ", "Question: ", "Q: ")) for fact in facts)
    for split in ("search", "held_out"):
        controls = of_split(recipe.controls, split)
        assert len(controls) >= 24
        assert len({fact.entity for fact in controls}) >= 12
        # Some controls use the very wordings of the targets, others do not.
        own = {fact.prompt for fact in recipe.facts}
        assert 0 < sum(fact.prompt in own for fact in controls) < len(controls)


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: path.stem)
def test_recipe_of_the_source_is_marked_as_not_run(path):
    text = path.read_text(encoding="utf-8")
    assert "cells taken from the source, not run here" in text.splitlines()[0]
    assert "cells taken from the source, not run here" in tomllib.loads(text)["description"]
    for entity in entities(path):
        recipe = load_recipe(path, entity)
        assert recipe.model == ModelRef("Qwen/Qwen2.5-7B")
        (edit,) = recipe.edit.cells
        assert edit.multiplier == -1.0
        if path.stem in SOURCE_CELLS:
            assert str(edit.cell) == SOURCE_CELLS[path.stem]


def test_verified_entities_are_spread_over_layers_as_in_the_source():
    path = RECIPES / "qwen2.5-7b" / "verified.toml"
    layers = [load_recipe(path, entity).edit.cells[0].cell.layer for entity in entities(path)]
    assert [layers.count(layer) for layer in (1, 2, 3, 4)] == [7, 12, 9, 5]
