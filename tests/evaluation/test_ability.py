"""General ability against plain log-probabilities, one option at a time."""

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.evaluation import ability
from amnesia.evaluation.results import AbilityField, Estimate
from amnesia.facts.ability import ChoiceQuestion, ability_questions
from amnesia.live.model import edited
from support.tiny import D_MLP, N_LAYERS
from support.tiny_text import tiny_live

FEW = tuple(ability_questions()[::45])


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr(ability, "ability_questions", lambda: FEW)


@torch.no_grad()
def plain_total(live, prompt, option):
    ids = live.tokenizer(f"{prompt} {option}")["input_ids"]
    start = len(live.tokenizer(prompt)["input_ids"])
    logprobs = live.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_the_likeliest_option_is_chosen():
    live = tiny_live()
    expected = [
        max(row.options, key=lambda option: plain_total(live, row.prompt, option)) == row.options[0] for row in FEW
    ]
    assert list(ability.right_choices(live)) == expected


def test_options_that_are_equally_likely_are_not_right():
    live = tiny_live()
    with torch.no_grad():
        live.model.lm_head.weight.zero_()
    row = ChoiceQuestion("x", "It is", ("a", "b", "c", "d"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ability, "ability_questions", lambda: (row,))
        assert ability.right_choices(live) == (False,)


def test_shares_by_hand(monkeypatch):
    options = ("a", "b", "c", "d")
    rows = tuple(ChoiceQuestion(field, f"{field}{n}", options) for field in "xy" for n in range(2))
    monkeypatch.setattr(ability, "ability_questions", lambda: rows)
    found = ability.ability((True, True, True, False), (True, False, False, False))
    assert (found.n, found.chance) == (4, 0.25)
    assert (found.before.mean, found.after.mean, found.change.mean) == (0.75, 0.25, -0.5)
    assert found.fields == (AbilityField("x", 2, 2, 1), AbilityField("y", 2, 1, 0))


def test_the_same_model_twice_changes_nothing_and_one_model_alone_is_both():
    live = tiny_live()
    before = ability.right_choices(live)
    assert ability.ability(before, ability.right_choices(live)).change == Estimate(0.0, 0.0, 0.0)
    assert ability.ability(before, None) == ability.ability(before, before)
    with edited(live, [ColumnEdit(Cell(layer, neuron), -9.0) for layer in range(N_LAYERS) for neuron in range(D_MLP)]):
        assert ability.right_choices(live) != before
