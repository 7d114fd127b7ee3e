import pytest
import torch

from amnesia.bystanders import observe
from amnesia.domain import Cell, ColumnEdit
from amnesia.encoding import Continuation, Placed, continuations, encode
from amnesia.forward import answer_logprobs
from amnesia.model import edited
from amnesia.objective import Problem
from amnesia.search import (
    BUDGETS,
    EXACT_MULTIPLIERS,
    MAX_WEIGHTS,
    MIN_WEIGHTS,
    NEAR_GOAL,
    PRICES,
    REFINED_GOAL,
    TARGET_GOAL,
    _Search,
    pursue,
    repriced,
    reweighted,
)
from tiny_text import tiny_live

TARGETS = [("the capital of Japan is", "water"), ("Where is it?\n", "in the garden")]
CONTROLS = [("the river", "was"), ("She waited for the water to boil and then", "she left the kitchen")]
PEERS = ("Fact: the capital of Peru is", "Canada is known for", "Kenya is in")
TEXTS = ("the old door was open", "nobody heard the rain in the morning", "two boats lay in the harbour")
LAYERS = (0, 1)


def problem_for(live):
    before = [row.total for row in answer_logprobs(live, TARGETS)]
    names = [
        *continuations(live.tokenizer, CONTROLS),
        *(Continuation((*row.ids, 0), 1) for row in encode(live.tokenizer, PEERS)),
    ]
    texts = [Continuation(row.ids, 2) for row in encode(live.tokenizer, TEXTS)]
    tokens = [Placed((280, token), 1) for token in range(300, 320)]
    return Problem(
        live,
        tuple(continuations(live.tokenizer, TARGETS)),
        torch.tensor(before),
        torch.tensor([total - 4.0 for total in before]),
        torch.zeros(len(before), dtype=torch.long),
        (*names, *texts),
        len(CONTROLS),
        observe(live, LAYERS, names, texts, tokens),
    )


def shift(live, edits, pairs=TARGETS):
    """By how much the edits move the log-probability of each answer."""
    before = answer_logprobs(live, pairs)
    with edited(live, edits):
        return [new.total - old.total for new, old in zip(answer_logprobs(live, pairs), before, strict=True)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_pursuit_lowers_the_targets_within_the_limits(model_type):
    live = tiny_live(model_type)
    worth = torch.ones(2 * live.shape.d_mlp)
    edits = pursue(problem_for(live), worth, max_cells=6, lowest=-2.0)
    assert 0 < len(edits) <= 6
    assert all(
        -2.0 <= edit.multiplier < 1.0 and edit.multiplier in EXACT_MULTIPLIERS and edit.cell.layer in LAYERS
        for edit in edits
    )
    assert sum(shift(live, edits)) / 2 < -0.5
    assert pursue(problem_for(live), worth, max_cells=6, lowest=-2.0) == edits


def test_cells_without_worth_never_join():
    live = tiny_live()
    worth = torch.zeros(2, live.shape.d_mlp)
    worth[1, 10:14] = 1.0
    edits = pursue(problem_for(live), worth.flatten(), max_cells=4, lowest=-8.0)
    assert {edit.cell for edit in edits} <= {Cell(1, neuron) for neuron in range(10, 14)}


def test_the_search_goes_on_from_an_edit():
    live = tiny_live()
    start = [ColumnEdit(Cell(0, 5), -2.0), ColumnEdit(Cell(1, 9), -1.0), ColumnEdit(Cell(1, 11), -1.0)]
    # Without worth no cell joins, so that all there is was there.
    edits = pursue(problem_for(live), torch.zeros(2 * live.shape.d_mlp), max_cells=6, lowest=-8.0, start=start)
    assert edits
    assert {edit.cell for edit in edits} <= {edit.cell for edit in start}


def test_bystanders_hold_the_search_back(monkeypatch):
    live = tiny_live()
    worth = torch.ones(2 * live.shape.d_mlp)
    damage = []
    for weight in (1e-4, 30.0):
        for name in ("WEIGHTS", "MIN_WEIGHTS", "MAX_WEIGHTS"):
            monkeypatch.setattr(f"amnesia.search.{name}", (weight, weight))
        monkeypatch.setattr("amnesia.search.PRICE", weight * BUDGETS[0])
        monkeypatch.setattr("amnesia.search.PRICES", (weight * BUDGETS[0],) * 2)
        edits = pursue(problem_for(live), worth, max_cells=16, lowest=-8.0)
        damage.append(sum(map(abs, shift(live, edits, CONTROLS))))
    assert damage[1] < 0.7 * damage[0]


def test_refining_makes_an_edit_cheaper_that_has_reached_the_targets(monkeypatch):
    live = tiny_live()
    problem = problem_for(live)
    # Everything may go for less, so that nothing is left but to make it cheaper.
    monkeypatch.setattr("amnesia.search.REFINED_GOAL", 2.0)
    start = [ColumnEdit(Cell(layer, neuron), -4.0) for layer in LAYERS for neuron in range(20, 28)]
    damage = []
    for n_steps in (0, 8, 32):
        monkeypatch.setattr("amnesia.search.REFINING_STEPS", n_steps)
        search = _Search(problem, torch.ones(2 * live.shape.d_mlp), 16, -8.0, 0)
        search.begin(start)
        search._refine(None)
        assert len(search._joined) == 16
        damage.append(problem.divergences(search._multipliers, range(len(problem.kept))).mean())
    assert damage[2] < damage[1] < damage[0]


def test_the_price_holds_the_targets_at_the_goal():
    assert [repriced(1.0, REFINED_GOAL + above) for above in (0.5, 0.05, 0.01, -0.01, -0.05)] == [
        0.85, 0.93, 1.0, 1.05, 1.15,
    ]  # fmt: skip
    assert repriced(PRICES[0], 1.0) == PRICES[0]
    assert repriced(PRICES[1], 0.0) == PRICES[1]


def test_weights_follow_what_is_left_and_spent():
    weights, thrifty, lavish = (0.5, 1.5), [nats / 10 for nats in BUDGETS], [nats * 10 for nats in BUDGETS]
    assert reweighted(weights, 0.9, thrifty, gently=False) == pytest.approx((0.3, 0.9))
    assert reweighted(weights, 0.9, thrifty, gently=True) == pytest.approx((0.4, 1.2))
    assert reweighted(weights, 0.9, lavish, gently=False) == weights
    assert reweighted(weights, (TARGET_GOAL + NEAR_GOAL) / 2, thrifty, gently=False) == weights
    assert reweighted(weights, 0.0, lavish, gently=False) == pytest.approx((0.75, 2.25))
    assert reweighted(weights, 0.0, thrifty, gently=False) == weights
    assert reweighted(MAX_WEIGHTS, 0.0, lavish, gently=False) == MAX_WEIGHTS
    assert reweighted(MIN_WEIGHTS, 0.9, thrifty, gently=False) == MIN_WEIGHTS
