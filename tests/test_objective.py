import math

import pytest
import torch

from amnesia.domain import Cell, ColumnEdit
from amnesia.model import edited
from amnesia.objective import Tangent, divergence, log_odds, parts
from test_search import problem_for
from tiny_text import tiny_live


def test_log_odds():
    probabilities = torch.tensor([0.5, 0.9, 0.01])
    expected = [0.0, math.log(9), math.log(0.01 / 0.99)]
    assert log_odds(probabilities.log()).tolist() == pytest.approx(expected, abs=1e-5)
    assert math.isfinite(log_odds(torch.tensor(0.0)).item())


def test_a_tangent_is_a_straight_line():
    row = Tangent(torch.tensor(0.5), torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0]))
    assert row.value_at(torch.tensor([0.0, 2.0])).item() == pytest.approx(0.5 - 1.0 - 2.0)


def test_divergence_is_the_mean_over_the_answer():
    reference = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    edited_to = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    expected = (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)) / 2
    assert divergence(reference, edited_to).item() == pytest.approx(expected, abs=1e-6)
    assert divergence(reference, reference).item() == 0.0


def test_references_are_the_original_models_and_are_asked_for_once(monkeypatch):
    live = tiny_live()
    problem = problem_for(live)
    with edited(live, [ColumnEdit(Cell(0, 5), -8.0)]):
        changed = problem.references([1])[0]
    again = problem_for(live)
    first = again.references([0, 1])
    row = again.kept[1]
    expected = live.model(input_ids=torch.tensor([row.ids])).logits[0, -row.n_answer - 1 : -1].log_softmax(-1)
    assert torch.allclose(first[1], expected, atol=1e-4)
    assert not torch.allclose(changed, expected, atol=1e-4)
    monkeypatch.setattr("amnesia.objective.answer_rows", None)
    assert again.references([1])[0] is first[1]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_tangents_are_slopes_of_the_measured_values(model_type):
    live = tiny_live(model_type)
    problem = problem_for(live)
    multipliers = torch.ones(2 * live.shape.d_mlp)
    multipliers[7] = -2.0
    targets, kept = [1, 0], [0, 6]
    found = problem.tangents(multipliers, targets, kept)
    values = torch.cat([problem.scores(multipliers, targets), problem.divergences(multipliers, kept)])
    assert [row.value.item() for row in found] == pytest.approx(values.tolist(), abs=1e-4)
    step = 0.05
    for cell in (7, live.shape.d_mlp + 3):
        ends = []
        for sign in (-1, 1):
            moved = multipliers.clone()
            moved[cell] += sign * step
            ends.append(torch.cat([problem.scores(moved, targets), problem.divergences(moved, kept)]))
        slopes = (ends[1] - ends[0]) / (2 * step)
        assert [row.gradient[cell].item() for row in found] == pytest.approx(slopes.tolist(), abs=2e-3)


def test_plain_scores_undo_the_log_odds():
    problem = problem_for(tiny_live())
    scores = problem.plain_scores(torch.tensor([1.0, 0.0]), [0, 1])
    assert scores.tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_parts_are_of_similar_length_and_have_every_row(monkeypatch):
    assert parts([]) == []
    assert parts([9, 9, 9]) == [[0, 1, 2]]
    assert parts([30, 5, 6, 29, 5]) == [[1, 2, 4], [0, 3]]
    monkeypatch.setattr("amnesia.objective.ROWS_PER_PASS", 2)
    assert parts([7, 5, 6, 7, 5]) == [[1, 4], [2], [0], [3]]


def test_rows_in_several_passes_have_the_tangents_that_they_have_in_one(monkeypatch):
    problem = problem_for(tiny_live())
    multipliers = torch.ones(2 * problem.live.shape.d_mlp)
    multipliers[5] = -8.0
    asked = multipliers, [1, 0], [0, 3, 6]
    whole = problem.tangents(*asked)
    scores, nats = problem.scores(multipliers, [1, 0]), problem.divergences(multipliers, [0, 3, 6])
    monkeypatch.setattr("amnesia.objective.ROWS_PER_PASS", 2)
    for one, other in zip(problem.tangents(*asked), whole, strict=True):
        assert one.value.item() == pytest.approx(other.value.item(), abs=1e-5)
        assert one.gradient.tolist() == pytest.approx(other.gradient.tolist(), abs=1e-4)
    assert problem.scores(multipliers, [1, 0]).tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    assert problem.divergences(multipliers, [0, 3, 6]).tolist() == pytest.approx(nats.tolist(), abs=1e-5)
