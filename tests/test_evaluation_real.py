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
        # Columns of about the same norm. Larger multipliers for smaller columns would make extreme edits.
        norms = evaluated.live.out_proj(edit.cell.layer).weight.norm(dim=0)
        nearest = (norms - norms[edit.cell.neuron]).abs().argsort().tolist()[1:51]
        edits.append(ColumnEdit(Cell(edit.cell.layer, draw.choice(nearest)), edit.multiplier))
    evaluation = evaluated(tuple(edits))
    assert any(text.startswith("No effect: the facts about France") for text in said(evaluation, "warning"))
    assert said(evaluation, "damage") == []
    assert not any("forgotten" in text.lower() for text in said(evaluation, "good"))


def test_the_edit_of_the_demo_forgets_and_damages_french_text_alone(evaluated):
    evaluation = evaluated(FRANCE)
    assert any(text.startswith("Forgotten: France is like an unknown name") for text in said(evaluation, "good"))
    whole = next(row for row in evaluation.aggregates if (row.kind, row.group) == ("target", "all"))
    assert whole.exact_match_before.mean > 0.5 > whole.exact_match_after.mean
    assert whole.exact_match_change.high < 0
    # The search has seen English alone, and the report must not hide what that costs.
    worst = next(text for text in said(evaluation, "damage") if text.startswith("Registers in which perplexity rises"))
    assert worst.count("(") == worst.count("(fr)") == 2
    ratios = {
        (row.register, row.language): row.perplexity_after / row.perplexity_before for row in evaluation.damage.texts
    }
    assert max(ratio for (_, language), ratio in ratios.items() if language in ("en", "code")) < 1.05
    assert min(ratio for (_, language), ratio in ratios.items() if language == "fr") > 10


@torch.no_grad()
def test_a_destroyed_model_is_called_damaged(evaluated):
    layer = evaluated.live.shape.n_layers // 2
    cells = tuple(ColumnEdit(Cell(layer, neuron)) for neuron in range(evaluated.live.shape.d_mlp))
    evaluation = evaluated(cells)
    damage = said(evaluation, "damage")
    assert findings(evaluation, "France")[0].level == "damage"
    assert any("Neutral text suffers" in text for text in damage), damage
    assert any("Facts about others are damaged" in text for text in damage), damage
