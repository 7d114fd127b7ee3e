import dataclasses

import pytest
import torch

from amnesia.domain import Cell, ColumnEdit
from amnesia.observations import EMPHASIS, MOST, Observations
from test_search import problem_for, shift
from tiny_text import tiny_live

EDITS = (ColumnEdit(Cell(0, 5), -8.0), ColumnEdit(Cell(1, 9), -4.0))


def multipliers_of(problem, edits):
    d_mlp = problem.live.shape.d_mlp
    found = torch.ones(len(problem.bystanders.layers) * d_mlp)
    for edit in edits:
        found[problem.bystanders.layers.index(edit.cell.layer) * d_mlp + edit.cell.neuron] = edit.multiplier
    return found


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_what_is_left_of_the_targets_equals_the_scores_of_edited_models(model_type):
    live = tiny_live(model_type)
    problem = problem_for(live)
    observed = Observations(problem, seed=0)
    multipliers = multipliers_of(problem, EDITS)
    observed.measure(multipliers, torch.ones(len(problem.kept)))
    # An unknown name is worth four nats less.
    scores = [max(0.0, 1 + moved / 4.0) for moved in shift(live, EDITS)]
    assert observed.left(multipliers) == pytest.approx(sum(scores) / len(scores), rel=1e-3)


def test_measured_bystanders_count_as_measured_and_the_others_by_their_leakage():
    live = tiny_live()
    problem = problem_for(live)
    multipliers = multipliers_of(problem, EDITS)
    n, n_names = len(problem.kept), problem.bystanders.n_names
    leakage = torch.linspace(0.1, 1.0, n)
    observed = Observations(problem, seed=0)
    before = observed.spent(multipliers, leakage)
    scales = observed.scales
    assert before[0] == pytest.approx(scales[0] * leakage[:n_names].mean().item(), rel=1e-4)
    assert before[1] == pytest.approx(scales[1] * leakage[n_names:].mean().item(), rel=1e-4)
    for _ in range(12):  # Until all have been drawn.
        observed.measure(multipliers, leakage)
    nats = problem.divergences(multipliers, range(n))
    assert set(observed.harms) == {index for index in range(n) if nats[index] > 0.02}
    for index, row in observed.harms.items():
        assert row.value.item() == pytest.approx(nats[index].item(), rel=1e-3)
        assert observed.is_text(index) is (index >= n_names)
    others, texts = observed.spent(multipliers, leakage)
    estimates = [
        nats[index].item()
        if index in observed.harms
        else 0.5 * nats[index].item() + 0.5 * leakage[index].item() * observed.scales[index >= n_names]
        for index in range(n)
    ]
    capped = [min(MOST, value) for value in estimates]
    assert others == pytest.approx(sum(capped[:n_names]) / n_names, rel=1e-2)
    assert texts == pytest.approx(sum(capped[n_names:]) / (n - n_names), rel=1e-2)


def test_evenly_measured_bystanders_are_search_controls_and_are_forgotten_in_time(monkeypatch):
    live = tiny_live()
    problem = problem_for(live)
    multipliers = multipliers_of(problem, EDITS)
    observed = Observations(problem, seed=0)
    observed.measure(multipliers, torch.ones(len(problem.kept)), evenly=True)
    assert set(observed.harms) == set(range(problem.n_controls))
    monkeypatch.setattr("amnesia.observations.CONTROLS_PER_STEP", 1)
    monkeypatch.setattr("amnesia.observations.CONTROLS_REMEMBERED_STEPS", 1)
    observed.measure(multipliers, torch.ones(len(problem.kept)), evenly=True)
    assert len(observed.harms) == 1
    # With all targets, those that were remembered are measured again.
    elsewhere = multipliers_of(problem, EDITS[:1])
    observed.measure(elsewhere, torch.ones(len(problem.kept)), evenly=True)
    monkeypatch.setattr("amnesia.observations.CONTROLS_REMEMBERED_STEPS", 9)
    observed.measure(multipliers, torch.ones(len(problem.kept)), evenly=True, thorough=True)
    assert all(row.at.equal(multipliers) for row in observed.harms.values())


def test_what_is_measured_again_keeps_its_slopes():
    live = tiny_live()
    problem = problem_for(live)
    observed = Observations(problem, seed=0)
    observed.measure(multipliers_of(problem, EDITS), torch.ones(len(problem.kept)))
    elsewhere = multipliers_of(problem, EDITS[:1])
    targets, harms = observed.remeasure(elsewhere)
    assert (set(targets), set(harms)) == (set(observed.targets), set(observed.harms))
    for found, before in ((targets, observed.targets), (harms, observed.harms)):
        for index, row in found.items():
            assert row.gradient is before[index].gradient
            assert row.at.equal(elsewhere)
    expected = problem.scores(elsewhere, list(targets))
    assert [row.value.item() for row in targets.values()] == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_entity_of_which_more_is_left_counts_more():
    problem = dataclasses.replace(problem_for(tiny_live()), entities=torch.tensor([0, 1]))
    observed = Observations(problem, seed=0)
    multipliers = multipliers_of(problem, EDITS)
    observed.measure(multipliers, torch.ones(len(problem.kept)))
    assert observed.shares.tolist() == pytest.approx([0.5, 0.5])
    left = [max(0.0, min(1.0, 1 + moved / 4.0)) for moved in shift(problem.live, EDITS)]
    assert left[0] != pytest.approx(left[1], abs=0.01)
    observed.emphasize(multipliers)
    weights = [1 + EMPHASIS * value for value in left]
    assert observed.shares.tolist() == pytest.approx([value / sum(weights) for value in weights], rel=1e-3)
