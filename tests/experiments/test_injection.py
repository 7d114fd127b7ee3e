"""Injection against log-probabilities of the test's own, one prompt at a time, and keys averaged by hand."""

import dataclasses
import functools
import math

import pytest
import torch

from amnesia.directions import keys
from amnesia.domain import Cell
from amnesia.errors import InputError
from amnesia.evaluation.scores import mean_interval
from amnesia.experiments import forms
from amnesia.experiments.forms import CellValues, cell_values, direction, known_targets, other_entity
from amnesia.experiments.injection import inject
from amnesia.facts.names import contrast_entities, unseen_names
from amnesia.recipe_file import parse_recipe
from oracles import plain
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live

CELLS = [Cell(0, 3), Cell(1, 11)]
NAME = "Michael Jordan"
WORDINGS = keys.wordings()[::8]  # Some of them begin with the name.
OTHERS = contrast_entities()[::4]


@pytest.fixture(scope="module", autouse=True)
def few_texts():
    """Keys are means over some of the wordings, and the mean entity is that of some names."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (keys, forms):
            patch.setattr(module, "wordings", lambda: WORDINGS)
        patch.setattr(forms, "contrast_entities", lambda: OTHERS)
        yield


@pytest.fixture(scope="module")
def live():
    return tiny_live()


def recipe_of(live, entity="Japan"):
    return parse_recipe(recipe_text(live, "tiny", entity=entity))


@pytest.fixture(scope="module")
def recipe(live):
    return recipe_of(live)


@pytest.fixture(scope="module")
def facts(live, recipe):
    return known_targets(live, recipe)


def last_token(live, text, start, name):
    """Token ids of a text and the index of the token that covers the last character of the name at `start`."""
    found = live.tokenizer(text, return_offsets_mapping=True)
    last = start + len(name) - 1
    (token,) = (n for n, (low, high) in enumerate(found["offset_mapping"]) if low <= last < high)
    return found["input_ids"], token


def plain_keys(live, name, n):
    """Mean activations (n_layers, d_mlp) at each of the last `n` tokens of a name in the middle of texts."""
    seen = {back: {} for back in range(n)}
    for text in (text for text in WORDINGS if not text.startswith("{entity}")):
        ids, token = last_token(live, text.replace("{entity}", name), text.index("{entity}"), name)
        activations = plain.run(live.model, ids)[1]
        for back in range(n):
            if token > back:
                seen[back][tuple(ids[: token - back + 1])] = activations[:, token - back]
    return {back: torch.stack(list(rows.values())).mean(0) for back, rows in seen.items()}


def weight(live, layer):
    own = plain.projection(live.model, layer).weight.detach()
    return own.T if live.shape.layout.model_type == "gpt2" else own


def logits_with(live, ids, added):
    """Logits with vectors added to what layers write: `added` are (layer, token, vector (d_model,))."""
    handles = []
    for layer, token, vector in added:

        def hook(_, __, output, token=token, vector=vector):
            output = output.clone()
            output[0, token] += vector
            return output

        handles.append(plain.projection(live.model, layer).register_forward_hook(hook))
    logits = plain.run(live.model, ids)[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=[] if name == "gemma2" else pytest.mark.exhaustive) for name in plain.FIVE],
)
def test_a_direction_is_what_layers_write_about_each_token_beyond_the_placeholder(model_type):
    # The longest wordings with so many placeholders need more positions than tiny models have else.
    live = tiny_live(model_type, **{"n_positions" if model_type == "gpt2" else "max_position_embeddings": 128})
    recipe = recipe_of(live, NAME)
    facts = known_targets(live, recipe)
    found = functools.cache(lambda name, n: plain_keys(live, name, n))
    for layers in ((0,), (0, 1)):
        form = direction(live, recipe, layers, strength=1.5, placeholder="garden")
        word, n = form.put.placeholder, form.n_tokens
        assert n == len(form.put.tokens) > 2
        assert "".join(reversed(form.put.tokens)).strip() == NAME
        assert set(word.split()) == {"garden"}
        check_answers(form, facts, layers, found(NAME, n), found(word, n))


def check_answers(form, facts, layers, own, there):
    """Every answer after an injection at strength 1.5, against what hooks of the test's own make of the keys."""
    live, word, n = form.live, form.put.placeholder, form.n_tokens
    result, moved = inject(form, facts), []
    for row, fact in zip(result.answers, (known.question.fact for known in facts), strict=False):
        assert row.condition == "entity"
        text = f"{fact.text(word)} {fact.answer}"
        ids, token = last_token(live, text, fact.prompt.index("{entity}"), word)
        added = [
            (layer, token - back, 1.5 * weight(live, layer) @ (own[back][layer] - there[back][layer]))
            for layer in layers
            for back in range(n)
        ]
        n_answer = len(ids) - len(live.tokenizer(fact.text(word))["input_ids"])
        logits = logits_with(live, ids, added)
        assert row.logprob == pytest.approx(plain.answer_logprob(logits, ids, n_answer), abs=1e-3)
        at = logits[-n_answer - 1]
        assert row.rank == (at > at[ids[-n_answer]]).sum()
        without = plain.answer_logprob(plain.run(live.model, ids)[0], ids, n_answer)
        moved.append(abs(row.logprob - without))
    assert len(moved) == len(facts) and max(moved) > 0.01


@pytest.mark.slow
def test_scores_lie_between_unknown_names_and_the_name_itself(live, recipe, facts):
    result = inject(direction(live, recipe, (0,)), facts)
    names = [row.condition for row in result.conditions]
    assert names == ["entity", "wrong entity", "random", "mean entity", "nothing"]
    assert {row.condition for row in result.answers} == set(names)
    word, questions = result.put.placeholder, [known.question.fact for known in facts]
    for row in result.answers:
        (fact,) = (fact for fact in questions if fact.text(word) == row.prompt)
        logprobs = []
        for prompt in (fact.text(name) for name in ("Japan", *unseen_names("Japan"))):
            ids = live.tokenizer(f"{prompt} {fact.answer}")["input_ids"]
            n_answer = len(ids) - len(live.tokenizer(prompt)["input_ids"])
            logprobs.append(plain.answer_logprob(plain.run(live.model, ids)[0], ids, n_answer))
        before, unknown = logprobs[0], sum(logprobs[1:]) / len(logprobs[1:])
        assert row.score == pytest.approx((row.logprob - unknown) / (before - unknown), abs=1e-2)
    for condition in result.conditions:
        rows = [row for row in result.answers if row.condition == condition.condition]
        assert condition.n == len(rows) == len(facts)
        assert condition.score == mean_interval([row.score for row in rows])
        assert condition.first == mean_interval([float(row.rank == 0) for row in rows])
        assert condition.success == mean_interval([float(row.success) for row in rows])


@pytest.mark.slow
def test_the_layer_is_the_early_one_that_moves_the_residual_stream_furthest():
    live = tiny_live("gemma2")
    form = direction(live, recipe_of(live))
    n, norms = form.n_tokens, [layer.post_feedforward_layernorm for layer in live.model.model.layers]
    own, there = plain_keys(live, "Japan", n), plain_keys(live, form.put.placeholder, n)
    moves = torch.tensor(
        [
            [
                (norm(weight(live, layer) @ own[back][layer]) - norm(weight(live, layer) @ there[back][layer]))
                .norm()
                .item()
                for back in range(n)
            ]
            for layer, norm in enumerate(norms)
        ]
    )
    assert form.layers == (moves.min(1).values.argmax().item(),)
    assert form.put.moves[0] == pytest.approx(moves[form.layers[0]].tolist(), rel=1e-3)


@pytest.mark.slow
def test_controls_are_another_name_a_random_direction_as_long_and_the_mean_of_names(live, recipe):
    form = direction(live, recipe, (1,))
    controls = form.controls(4)
    other = other_entity(recipe, 4)
    assert other in ("Peru", "Kenya", "Cuba")
    own_keys, base = plain_keys(live, other, 1), plain_keys(live, form.put.placeholder, 1)
    (last,) = (row for row in controls["wrong entity"] if row.back == 0)
    torch.testing.assert_close(last.value, own_keys[0][1] - base[0][1], atol=1e-4, rtol=1e-3)
    for own, chance in zip(form.own(), controls["random"], strict=True):
        assert (own.layer, own.back, own.add) == (chance.layer, chance.back, chance.add) == (1, own.back, True)
        lengths = [(weight(live, 1) @ row.value).norm().item() for row in (own, chance)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
        assert torch.cosine_similarity(own.value, chance.value, dim=0).abs() < 0.6
    means = {row.back: row.value for row in controls["mean entity"]}
    assert means.keys() == {row.back for row in form.own()}
    assert not torch.allclose(means[0], last.value)


def direct_logprob(live, fact, placeholder, settings):
    ids, token = last_token(live, f"{fact.text(placeholder)} {fact.answer}", fact.prompt.index("{entity}"), placeholder)

    def put(layer, values):
        for cell, value in settings:
            if cell.layer == layer:
                values[token, cell.neuron] = value

    n_prompt = len(live.tokenizer(fact.text(placeholder))["input_ids"])
    return plain.answer_logprob(plain.run(live.model, ids, put)[0], ids, len(ids) - n_prompt)


@pytest.mark.slow
def test_values_of_cells_are_the_entitys_own_times_the_best_factor(live, recipe, facts):
    put = cell_values(live, recipe, CELLS, facts).put
    key = plain_keys(live, "Japan", 1)[0]
    own = [key[cell.layer, cell.neuron].item() for cell in CELLS]
    assert put.values == pytest.approx([put.factor * value for value in own], rel=1e-3)
    search = [fact.question.fact for fact in facts if fact.question.split == "search"]
    for row in put.tried:
        settings = [(cell, row.factor * value) for cell, value in zip(CELLS, own, strict=True)]
        expected = sum(direct_logprob(live, fact, "XXX", settings) for fact in search) / len(search)
        assert row.mean_logprob == pytest.approx(expected, abs=1e-3)
    assert put.factor == max(put.tried, key=lambda row: row.mean_logprob).factor
    assert put.n_search == len(search)


@pytest.mark.slow
def test_cells_are_set_at_the_placeholder_and_controls_are_other_cells(live, recipe, facts):
    form = cell_values(live, recipe, CELLS, facts, value=30.0, placeholder="Nobody")
    assert form.put.factor is None
    result = inject(form, facts)
    for condition, settings in (("entity", [(cell, 30.0) for cell in CELLS]), ("nothing", [])):
        rows = [row for row in result.answers if row.condition == condition]
        for row, known in zip(rows, facts, strict=True):
            assert row.logprob == pytest.approx(direct_logprob(live, known.question.fact, "Nobody", settings), abs=1e-3)
    controls = form.controls(0)
    for name in ("wrong entity", "random"):
        assert [(row.layer, row.value, row.add) for row in controls[name]] == [(0, 30.0, False), (1, 30.0, False)]
    assert not {(row.layer, row.neuron) for row in controls["wrong entity"]} & {(0, 3), (1, 11)}


def test_what_cannot_be_injected_is_refused(live, recipe, facts):
    with pytest.raises(InputError, match="either a value or a factor"):
        cell_values(live, recipe, CELLS, facts, value=1.0, factor=2.0)
    with pytest.raises(InputError, match="nan is no amount to inject"):
        direction(live, recipe, strength=math.nan)
    with pytest.raises(InputError, match="placeholder is empty"):
        direction(live, recipe, placeholder=" ")
    with pytest.raises(InputError, match="no search fact to choose a factor by"):
        cell_values(live, recipe, CELLS, [fact for fact in facts if fact.question.split == "held_out"])
    strict = dataclasses.replace(recipe, scoring=dataclasses.replace(recipe.scoring, min_nats=1e3))
    with pytest.raises(InputError, match="knows none of the 5 target facts"):
        known_targets(live, strict)
    same = dataclasses.replace(
        recipe, controls=tuple(dataclasses.replace(row, entity="Japan") for row in recipe.controls)
    )
    with pytest.raises(InputError, match="every control of the recipe shares a word"):
        CellValues(live, same, cell_values(live, recipe, CELLS, facts, value=1.0).put).controls(0)


@pytest.mark.slow
def test_cells_for_comparison_are_cells_of_their_own_layer_where_layers_are_of_unequal_width():
    live = tiny_live("deepseek_v3", seed=3)
    widths = [live.shape.width(layer) for layer in range(live.shape.n_layers)]
    narrow = min((width, layer) for layer, width in enumerate(widths) if width)[1]
    assert 0 < widths[narrow] < max(widths)
    cells = tuple(Cell(narrow, neuron) for neuron in range(3))
    recipe = recipe_of(live)
    form = cell_values(live, recipe, cells, known_targets(live, recipe))
    for seed in range(8):
        controls = form.controls(seed)
        for name in ("wrong entity", "random"):
            assert all(0 <= one.neuron < widths[narrow] for one in controls[name]), name
