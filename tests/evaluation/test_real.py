"""What is said of edits of the real demo model whose effect is known beforehand."""

import contextlib
import random

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.evaluation.findings import findings
from amnesia.evaluation.results import Estimate
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.model import edited
from amnesia.recipe_file import load_recipe
from support.folders import ROOT

pytestmark = [pytest.mark.real, pytest.mark.exhaustive]

RECIPE = ROOT / "recipes" / "smollm2-135m" / "harry_potter.toml"
# As the search chose them in one run.
HARRY_POTTER = tuple(
    ColumnEdit(Cell(layer, neuron), multiplier)
    for layer, neuron, multiplier in (
        (0, 460, 0.5), (0, 1225, -0.25), (1, 616, 0.5), (1, 1236, -0.25), (2, 245, -1.0), (3, 336, 0.25),
        (3, 1049, 0.5), (3, 1373, -1.0), (4, 954, -2.0), (5, 944, -1.0), (5, 1497, -4.0), (6, 414, 0.5),
        (6, 1130, -1.0),
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(smollm2_live):
    """Evaluates edits against the original model, which is asked once."""
    facts = facts_of_recipe(load_recipe(RECIPE))
    before = examine(smollm2_live, facts.questions, facts.scoring)

    def evaluate(edits):
        with edited(smollm2_live, edits) if edits else contextlib.nullcontext():
            after = examine_after(smollm2_live, before)
        return conclude(before, after)

    evaluate.live = smollm2_live
    return evaluate


def said(evaluation, level):
    return [item.text for item in findings(evaluation, "Harry Potter") if item.level == level]


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
    for edit in HARRY_POTTER:
        # Columns of about the same norm. Larger multipliers for smaller columns would make extreme edits.
        norms = evaluated.live.out_proj(edit.cell.layer).weight.norm(dim=0)
        nearest = (norms - norms[edit.cell.neuron]).abs().argsort().tolist()[1:51]
        edits.append(ColumnEdit(Cell(edit.cell.layer, draw.choice(nearest)), edit.multiplier))
    evaluation = evaluated(tuple(edits))
    assert any(text.startswith("No effect: the facts about Harry Potter") for text in said(evaluation, "warning"))
    assert said(evaluation, "damage") == []
    assert not any("forgotten" in text.lower() for text in said(evaluation, "good"))


def test_an_edit_that_forgets_and_harms_no_text(evaluated):
    evaluation = evaluated(HARRY_POTTER)
    assert any(text.startswith("Forgotten: Harry Potter is like an unknown name") for text in said(evaluation, "good"))
    whole = evaluation.whole("target", "search")
    assert whole.before.exact_match.mean > 0.5 > whole.after.exact_match.mean
    assert whole.exact_match_change.high < 0
    assert said(evaluation, "damage") == []
    ratios = [row.perplexity_after / row.perplexity_before for row in evaluation.damage.texts]
    assert max(ratios) < 1.1
    assert evaluation.damage.perplexity_after / evaluation.damage.perplexity_before < 1.01


@torch.no_grad()
def test_a_destroyed_model_is_called_damaged(evaluated):
    layer = evaluated.live.shape.n_layers // 2
    cells = tuple(ColumnEdit(Cell(layer, neuron)) for neuron in range(evaluated.live.shape.d_mlp))
    evaluation = evaluated(cells)
    damage = said(evaluation, "damage")
    assert findings(evaluation, "Harry Potter")[0].level == "damage"
    assert any("Neutral text suffers" in text for text in damage), damage
    assert any("Facts about others are damaged" in text for text in damage), damage
