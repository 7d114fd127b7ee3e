"""Recipes that are run on another model than their own: facts stay, and what does not fit is said."""

import shutil

import pytest

from amnesia.domain import ModelRef
from amnesia.live.loading import load
from amnesia.mining.carrying import carried_over
from amnesia.pipeline import run
from amnesia.recipe_file import parse_recipe
from amnesia.weights.manifest_file import read_manifest
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live
from support.tracker import Silent

OTHER = ModelRef("org/other", "v1")
RECIPE = """
[model]  # The first that it was tried on.
id = "org/own"
[entity]
name = "Japan"
[localize]
baseline = "generic"
layers = "2-9"
[edit]
max_cells = 12
[[facts]]
prompt = "{entity} is"
answer = "big"
[controls]
facts = [{ entity = "Peru", prompt = "{entity} is", answer = "high" }]
[accept]
min_control = 0.9
"""


@pytest.mark.parametrize("n_layers, layers", [(10, (2, 9)), (9, None)])
def test_all_but_the_model_and_layers_that_it_lacks_is_kept(n_layers, layers):
    own = parse_recipe(RECIPE)
    carried, notices = carried_over(own, OTHER, n_layers)
    assert (carried.model, carried.localization.layers) == (OTHER, layers)
    assert carried.localization.baseline == "generic"
    for key in ("target", "facts", "controls", "edit", "scoring", "accept"):
        assert getattr(carried, key) == getattr(own, key)
    assert parse_recipe(carried.text) == carried
    kept = "edit.max_cells = 12, accept.min_control = 0.9"
    if layers:
        assert notices == (f"what the recipe sets for org/own is kept for org/other@v1: localize.layers = 2-9, {kept}",)
    else:
        assert notices == (
            "the recipe searches layers 2-9 of org/own, but org/other@v1 has layers 0-8: its early layers are searched",
            f"what the recipe sets for org/own is kept for org/other@v1: {kept}",
        )


def test_a_recipe_for_its_own_model_stays_as_it_is():
    own = parse_recipe(RECIPE)
    assert carried_over(own, own.model, 3) == (own, ())


@pytest.mark.slow
def test_a_run_with_another_model_edits_that_one_and_says_what_it_knows(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    shutil.copytree(model, tmp_path / "relative")
    own = parse_recipe(recipe_text(load(model, "m"), model))
    tracker = Silent()
    result = run(own, tmp_path / "out", tracker, model=str(tmp_path / "relative"))
    manifest = read_manifest(tmp_path / "out")
    assert manifest.base.ref == ModelRef("relative")
    assert parse_recipe(manifest.recipe).model == manifest.base.ref
    assert [row.prompt for row in result.evaluations["safetensors"].prompts if not row.excluded]
    told = "\n".join(tracker.lines)
    assert f"the recipe fixes cells of {model}, which need not mean the same in {tmp_path / 'relative'}" in told
    assert "of the recipe's" in told and "facts about Japan and" in told
