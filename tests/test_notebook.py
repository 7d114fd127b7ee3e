"""The Python interface on a model in memory, and the example in README."""

import re
from pathlib import Path

import pytest
import torch

import amnesia
from amnesia.domain import Cell, ColumnEdit
from amnesia.errors import InputError
from amnesia.recipe import parse_recipe
from tiny_recipe import recipe_text
from tiny_text import tiny_live

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def live():
    return tiny_live()


@pytest.fixture
def recipe(live):
    return parse_recipe(recipe_text(live, "any"))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_four_steps(live, recipe):
    model, tokenizer = live.model, live.tokenizer
    before = state(model)
    found = amnesia.localize(model, tokenizer, "Japan", top=5, layers=(0, 1))
    assert len(found.entities[0].cells) == 5
    assert {cell.cell.layer for cell in found.entities[0].cells} <= {0, 1}
    result = amnesia.extract(model, tokenizer, recipe)
    assert result.edits == recipe.cells
    evaluation = amnesia.evaluate(model, tokenizer, recipe, result.edits)
    assert evaluation.mean("target") == pytest.approx(result.target, abs=1e-3)
    assert evaluation.mean("control") == pytest.approx(result.control, abs=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    ids = torch.tensor([tokenizer("the capital of Japan is")["input_ids"]])
    with torch.no_grad():
        with amnesia.edited(model, result.edits):
            hooked = model(ids).logits
        plain = model(ids).logits
        amnesia.edit(model, result.edits)
        edited = model(ids).logits
    assert torch.allclose(hooked, edited, atol=1e-4)
    assert not torch.allclose(plain, edited, atol=1e-3)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{edit.cell.layer}.mlp.down_proj.weight" for edit in result.edits}


def test_mistakes_change_nothing(live, recipe):
    before = state(live.model)
    with pytest.raises(InputError, match="layer 7 is out of range"):
        amnesia.edit(live.model, [ColumnEdit(Cell(0, 1)), ColumnEdit(Cell(7, 1))])
    with pytest.raises(InputError, match="neuron 99 is out of range"):
        amnesia.evaluate(live.model, live.tokenizer, recipe, [ColumnEdit(Cell(0, 99))])
    with pytest.raises(InputError, match="gives no character offsets"):
        amnesia.localize(live.model, object(), "Japan")
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.model.state_dict().items())


@pytest.mark.real
def test_the_example_in_readme_runs(tmp_path, monkeypatch, capsys):
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    found = re.search(r"<!-- example -->\s*```python\n(.*?)```", text, re.DOTALL)
    if found is None:
        pytest.skip("README.md has no python block after the line <!-- example -->")
    monkeypatch.chdir(README.parent)
    exec(compile(found[1], str(README), "exec"), {"__name__": "__main__"})
