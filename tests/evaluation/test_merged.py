"""Whether the merge of an adapter is the saved weights, where the parts of an edit nearly cancel."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from amnesia import evaluate
from amnesia.domain import DEFAULT_LOADING
from amnesia.edits import EntityEdits
from amnesia.evaluation.merged import same_weights
from amnesia.live.loading import load
from amnesia.outputs.write import save
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.vector import Vector
from support.tiny import tiny_direction
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live

pytestmark = pytest.mark.slow

LARGE = 300.0
"""Times the write of a direction: what its two parts leave of each other has their roundings, not its own."""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_roundings_of_parts_that_nearly_cancel_are_roundings(tmp_path, kind):
    folder = save_tiny_live(tmp_path / "m", kind)
    live, source = load(folder, "m"), resolve(str(folder))
    one = tiny_direction(1)
    parts = [
        replace(one, token=place, write=Vector.of(by * one.write.array)) for place, by in ((0, LARGE), (1, 1 - LARGE))
    ]
    edits = EntityEdits("Japan", tuple(parts))
    evaluation = evaluate(live.model, live.tokenizer, parse_recipe(recipe_text(live, folder)), edits)
    weights, adapter = tmp_path / "weights", tmp_path / "adapter"
    for name, output in (("safetensors", weights), ("adapter", adapter)):
        save(name, source, [edits], output)
    found = same_weights(source, adapter, weights, [1], evaluation, DEFAULT_LOADING)
    assert found is not None
    assert found.n_rounded > 0
    assert found.difference < 0.01
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor * (1 + 1e-3) for name, tensor in load_file(path).items()}, path)
    assert same_weights(source, adapter, weights, [1], evaluation, DEFAULT_LOADING) is None
