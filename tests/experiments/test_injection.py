"""Injection against log-probabilities of the test's own, one prompt at a time."""

import pytest

from amnesia.domain import Cell
from amnesia.errors import InputError
from amnesia.evaluation.scores import mean_interval
from amnesia.experiments.injection import CONDITIONS, inject, mean_activations
from amnesia.facts.names import entity_templates
from amnesia.live.tokens import place
from amnesia.recipe import parse_recipe
from oracles import plain
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live

CELLS = [Cell(0, 3), Cell(1, 11)]


@pytest.fixture(scope="module")
def live():
    return tiny_live()


@pytest.fixture(scope="module")
def recipe(live):
    return parse_recipe(recipe_text(live, "tiny"))


def direct_activation(live, template, name, cell):
    (row,) = place(live.tokenizer, [(template, name)])
    return plain.run(live.model, row.ids)[1][cell.layer, row.token, cell.neuron].item()


def direct_logprob(live, fact, placeholder, settings):
    (row,) = place(live.tokenizer, [(fact.prompt, placeholder)])
    ids = live.tokenizer(f"{fact.text(placeholder)} {fact.answer}")["input_ids"]

    def put(layer, values):
        for cell, value in settings:
            if cell.layer == layer:
                values[row.token, cell.neuron] = value

    n_prompt = len(live.tokenizer(fact.text(placeholder))["input_ids"])
    return plain.answer_logprob(plain.run(live.model, ids, put)[0], ids, len(ids) - n_prompt)


def test_values_are_the_entitys_own_times_the_best_factor(live, recipe):
    result = inject(live, recipe, CELLS)
    templates = entity_templates()[:20]
    own = [sum(direct_activation(live, t, "Japan", cell) for t in templates) / len(templates) for cell in CELLS]
    assert result.values == pytest.approx([result.factor * value for value in own], rel=1e-3)
    search = [fact for fact in recipe.facts if fact.split == "search"]
    for row in result.tried:
        settings = [(cell, row.factor * value) for cell, value in zip(CELLS, own, strict=True)]
        expected = sum(direct_logprob(live, fact, "XXX", settings) for fact in search) / len(search)
        assert row.mean_logprob == pytest.approx(expected, abs=1e-3)
    assert result.factor == max(result.tried, key=lambda row: row.mean_logprob).factor
    assert result.n_search == len(search)


def test_conditions_and_their_answers(live, recipe):
    result = inject(live, recipe, CELLS, value=30.0, placeholder="Nobody")
    assert [row.condition for row in result.conditions] == list(CONDITIONS)
    assert result.factor is None
    for condition, settings in (("entity cells", [(cell, 30.0) for cell in CELLS]), ("nothing", [])):
        rows = [row for row in result.answers if row.condition == condition]
        for row, fact in zip(rows, recipe.facts, strict=True):
            assert row.logprob == pytest.approx(direct_logprob(live, fact, "Nobody", settings), abs=1e-3)
            assert row.success == row.generated.strip().lower().startswith(fact.answer.lower())
    for row in result.conditions:
        gains = [
            one.logprob - base.logprob
            for one, base in zip(
                (answer for answer in result.answers if answer.condition == row.condition),
                (answer for answer in result.answers if answer.condition == "nothing"),
                strict=True,
            )
        ]
        assert row.gain == mean_interval(gains)
        successes = [float(answer.success) for answer in result.answers if answer.condition == row.condition]
        assert row.success == mean_interval(successes)


def test_mean_activations(live):
    pairs = [(template, "Peru") for template in entity_templates()[:3]]
    expected = sum(direct_activation(live, template, "Peru", CELLS[1]) for template, _ in pairs) / 3
    assert mean_activations(live, pairs, [1])[0, 11].item() == pytest.approx(expected, rel=1e-4)


def test_a_value_and_a_factor_exclude_each_other(live, recipe):
    with pytest.raises(InputError, match="either a value or a factor"):
        inject(live, recipe, CELLS, value=1.0, factor=2.0)
