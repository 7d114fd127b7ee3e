import pytest
import torch

from amnesia.domain import Cell, ColumnEdit
from amnesia.encoding import continuations
from amnesia.forward import answer_logprobs
from amnesia.model import edited
from amnesia.search import EXACT_MULTIPLIERS, PEER_TOKENS, TARGET_FLOOR, harm, pose, pursue, sensitivity
from tiny_text import tiny_live

TARGETS = [("the capital of Japan is", "water"), ("Where is it?\n", "in the garden")]
CONTROLS = [("the river", "was"), ("She waited for the water to boil and then", "she left the kitchen")]
PEERS = ("Fact: the capital of Peru is", "Canada is known for", "Kenya is in")
LAYERS = (0, 1)


def problem_for(live, peers=()):
    before = [row.total for row in answer_logprobs(live, TARGETS)]
    unknown = [total - 4.0 for total in before]
    rows = continuations(live.tokenizer, TARGETS)
    return pose(live, rows, before, unknown, continuations(live.tokenizer, CONTROLS), peers)


def shift(live, edits, pairs):
    """By how much the edits move the log-probability of each answer."""
    before = answer_logprobs(live, pairs)
    with edited(live, edits):
        return [new.total - old.total for new, old in zip(answer_logprobs(live, pairs), before, strict=True)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_sensitivity_equals_finite_differences(model_type):
    live = tiny_live(model_type)
    found = sensitivity(problem_for(live), (0, 2))
    assert found.shape == (2, live.shape.d_mlp)
    step = 1e-2
    for place, cell in ((0, Cell(0, 7)), (1, Cell(2, 11))):
        up = shift(live, [ColumnEdit(cell, 1 + step)], CONTROLS)
        down = shift(live, [ColumnEdit(cell, 1 - step)], CONTROLS)
        slopes = [abs(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]
        assert found[place, cell.neuron].item() == pytest.approx(sum(slopes) / 2, abs=2e-3, rel=0.02)


def test_the_pursuit_lowers_the_targets_within_the_limits():
    live = tiny_live()
    problem = problem_for(live, PEERS)
    worth = torch.ones(2, live.shape.d_mlp)
    snapshots = pursue(problem, LAYERS, worth, max_cells=6, lowest=-2.0)
    edits = snapshots[0]
    assert 0 < len(edits) <= 6
    assert all(
        -2.0 <= edit.multiplier < 1.0 and edit.multiplier in EXACT_MULTIPLIERS and edit.cell.layer in LAYERS
        for edit in edits
    )
    assert sum(shift(live, edits, TARGETS)) / 2 < -0.5
    assert pursue(problem, LAYERS, worth, max_cells=6, lowest=-2.0) == snapshots


def test_cells_without_worth_never_join():
    live = tiny_live()
    worth = torch.zeros(2, live.shape.d_mlp)
    worth[1, 10:14] = 1.0
    edits = pursue(problem_for(live), LAYERS, worth, max_cells=4, lowest=-8.0)
    assert {edit.cell for snapshot in edits for edit in snapshot} <= {Cell(1, neuron) for neuron in range(10, 14)}


def test_controls_hold_the_search_back():
    live = tiny_live()
    problem = problem_for(live)
    worth = torch.ones(2, live.shape.d_mlp)
    damage = [
        sum(
            map(abs, shift(live, pursue(problem, LAYERS, worth, max_cells=16, lowest=-8.0, budget=budget)[0], CONTROLS))
        )
        for budget in (1e6, 1e-6)
    ]
    assert damage[1] < 0.7 * damage[0]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_peers_are_continued_by_the_original_model(model_type):
    live = tiny_live(model_type)
    problem = problem_for(live, PEERS)
    for prompt, row in zip(PEERS, problem.peers, strict=True):
        start = live.tokenizer(prompt, return_tensors="pt").input_ids
        wanted = start
        for _ in range(PEER_TOKENS):
            best = live.model(input_ids=wanted).logits[0, -1].argmax()
            wanted = torch.cat([wanted, best.reshape(1, 1)], 1)
        assert list(row.ids) == wanted[0].tolist()
        assert row.n_answer == PEER_TOKENS


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_harm_equals_a_direct_computation(model_type):
    live = tiny_live(model_type)
    problem = problem_for(live, PEERS)
    edits = (ColumnEdit(Cell(0, 5), -8.0), ColumnEdit(Cell(1, 9), -4.0))
    assert harm(problem, ()) == pytest.approx((1.0, 0.0), abs=1e-5)

    def logprobs(row):
        ids = torch.tensor([row.ids])
        return live.model(input_ids=ids).logits[0, -row.n_answer - 1 : -1].log_softmax(-1)

    kept = [*problem.controls, problem.peers[0]]
    before = [logprobs(row) for row in kept]
    with edited(live, edits):
        after = [logprobs(row) for row in kept]
    divergence = sum((p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(before, after, strict=True))
    scores = [max(TARGET_FLOOR, 1 + moved / 4.0) for moved in shift(live, edits, TARGETS)]
    assert harm(problem, edits) == pytest.approx((sum(scores) / 2, divergence / len(before)), rel=1e-3)
