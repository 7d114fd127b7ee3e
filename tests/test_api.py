"""The Python interface on a model in memory, and the example in README."""

import re
import shutil

import pytest
import torch

import amnesia
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.recipe import parse_recipe
from support.folders import ROOT
from support.smollm2 import BRIEF_RECIPE, brief_texts
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live

README = ROOT / "README.md"


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
    assert result.edits == EntityEdits("Japan", recipe.edit.cells)
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
    assert changed == {f"model.layers.{edit.cell.layer}.mlp.down_proj.weight" for edit in result.edits.edits}


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
@pytest.mark.parametrize("recipe", ["brief", pytest.param("shipped", marks=pytest.mark.exhaustive)])
def test_the_example_in_readme_runs(tmp_path, monkeypatch, capsys, recipe):
    found = re.search(r"<!-- example -->\s*```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "README.md has no python block after the line <!-- example -->"
    example = compile(found[1], str(README), "exec")
    if recipe == "shipped":
        monkeypatch.chdir(ROOT)
        exec(example, {"__name__": "__main__"})
    else:
        # In a folder with another recipe of the same name.
        (name,) = re.findall(r'"(recipes/.*?)"', found[1])
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(BRIEF_RECIPE, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        with brief_texts():
            exec(example, {"__name__": "__main__"})
    # Cells of the entity, then the verdict of the choice and what is left of the held-out facts.
    cell, outcome = capsys.readouterr().out.splitlines()
    assert cell.startswith("CellScore(")
    verdict, score = outcome.split()
    assert verdict == "strong"
    assert float(score) < 0.4
