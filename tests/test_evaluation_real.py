"""What is said of edits of the real demo model whose effect is known beforehand."""

import random
from pathlib import Path

import pytest
import torch

from amnesia.domain import Cell, ColumnEdit, Estimate
from amnesia.examination import conclude, examine, examine_after
from amnesia.findings import findings
from amnesia.loading import load
from amnesia.model import edited
from amnesia.questions import facts_of_recipe
from amnesia.recipe import load_recipe
from amnesia.sources import resolve

pytestmark = pytest.mark.real

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2-135m" / "france.toml"
# As the search chose them in one run of the demo.
FRANCE = tuple(
    ColumnEdit(Cell(layer, neuron), multiplier)
    for layer, neuron, multiplier in (
        (0, 165, -0.25), (0, 278, -1.0), (0, 792, 0.5), (0, 1176, -2.0), (1, 1304, -2.0), (2, 273, -1.0),
        (4, 1025, -4.0), (5, 466, -2.0), (7, 117, -0.25), (7, 605, -0.5), (10, 464, -1.0), (10, 1360, -0.5),
        (13, 1033, -4.0),
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluated():
    """Evaluates edits against the original model, which is asked once."""
    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    facts = facts_of_recipe(load_recipe(RECIPE))
    before = examine(live, facts.questions, facts.scoring)

    def evaluate(edits):
        if edits:
            with edited(live, edits):
                after = examine_after(live, facts.questions, before)
        else:
            after = examine_after(live, facts.questions, before)
        return conclude(facts.questions, before, after, facts.scoring)

    evaluate.live = live
    return evaluate


def said(evaluation, level):
    return [item.text for item in findings(evaluation, "France") if item.level == level]


def test_no_edit_scores_one_on_everything(evaluated):
    evaluation = evaluated(())
    one, zero = Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
    for row in evaluation.aggregates:
        assert (row.knowledge_score, row.knowledge_score_first, row.exact_match_change) == (one, one, zero)
    assert (evaluation.damage.kl_controls, {row.kl for row in evaluation.damage.texts}) == (zero, {0.0})
    assert any(text.startswith("No effect") for text in said(evaluation, "warning"))


def test_random_cells_of_the_same_norm_have_no_effect(evaluated):
    draw = random.Random(0)
    edits = []
    for edit in FRANCE:
        weight = evaluated.live.out_proj(edit.cell.layer).weight
        neuron = draw.randrange(evaluated.live.shape.d_mlp)
        norm = abs(edit.multiplier - 1) * (weight[:, edit.cell.neuron].norm() / weight[:, neuron].norm()).item()
        edits.append(ColumnEdit(Cell(edit.cell.layer, neuron), 1 - norm))
    evaluation = evaluated(tuple(edits))
    assert any(text.startswith("No effect: the facts about France") for text in said(evaluation, "warning"))
    assert said(evaluation, "damage") == []
    assert not any("forgotten" in text.lower() for text in said(evaluation, "good"))


def test_the_edit_of_the_demo_is_good_and_does_no_damage(evaluated):
    evaluation = evaluated(FRANCE)
    assert any(text.startswith("Forgotten: France is like an unknown name") for text in said(evaluation, "good"))
    assert said(evaluation, "damage") == []
    whole = next(row for row in evaluation.aggregates if (row.kind, row.group) == ("target", "all"))
    assert whole.exact_match_before.mean > 0.5 > whole.exact_match_after.mean
    assert whole.exact_match_change.high < 0


@torch.no_grad()
def test_a_destroyed_model_is_called_damaged(evaluated):
    layer = evaluated.live.shape.n_layers // 2
    cells = tuple(ColumnEdit(Cell(layer, neuron)) for neuron in range(evaluated.live.shape.d_mlp))
    evaluation = evaluated(cells)
    damage = said(evaluation, "damage")
    assert findings(evaluation, "France")[0].level == "damage"
    assert any("Neutral text suffers" in text for text in damage), damage
    assert any("Facts about others are damaged" in text for text in damage), damage
