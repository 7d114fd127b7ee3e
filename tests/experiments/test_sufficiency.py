"""Frozen runs against plain transformers with hooks of the test's own, one prompt at a time."""

import pytest
import torch

from amnesia.domain import Cell, Fact
from amnesia.experiments.forms import cell_values, direction, known_targets
from amnesia.experiments.sufficiency import Component, clean_run, patched, sufficiency
from amnesia.live.interventions import Injection
from amnesia.live.tokens import place
from amnesia.recipe_file import parse_recipe
from oracles import plain
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live

FACT = Fact("Japan", "the capital of {entity} is in", "Tokyo")
NAMES = ["Peru", "the Nile", "Michael Jordan"]
CELL, VALUE = Cell(0, 5), 40.0
OPEN = frozenset({Component(1, "attention"), Component(2, "attention"), Component(2, "mlp")})
OPEN_ENTITY = frozenset({*OPEN, Component(1, "attention", "entity"), Component(2, "mlp", "entity")})
ATTENTION = {"llama": "self_attn", "qwen2": "self_attn", "gemma2": "self_attn", "gpt2": "attn", "gpt_neox": "attention"}


def modules(live):
    """The attention and MLP blocks themselves, whose outputs are what their projections write."""
    name = live.shape.layout.model_type
    layers = live.model.base_model.h if name == "gpt2" else live.model.base_model.layers
    return {
        (kind, n): getattr(layer, ATTENTION[name] if kind == "attention" else "mlp")
        for n, layer in enumerate(layers)
        for kind in ("attention", "mlp")
    }


def run(live, ids, change):
    """Logits of the last token, with `change(kind, layer, output)` giving each block's output (tokens, d_model)."""

    def hook(key):
        def function(_, __, output):
            rest = output[1:] if isinstance(output, tuple) else ()
            new = change(*key, (output[0] if isinstance(output, tuple) else output)[0])[None]
            return (new, *rest) if isinstance(output, tuple) else new

        return function

    handles = [module.register_forward_hook(hook(key)) for key, module in modules(live).items()]
    with torch.no_grad():
        logits = live.model(torch.tensor([ids])).logits[0, -1].float()
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("model_type", list(ATTENTION))
@pytest.mark.parametrize(
    "unfrozen", [frozenset(), OPEN, OPEN_ENTITY], ids=["all frozen", "some open", "some of the entity's open"]
)
def test_frozen_logits_equal_a_direct_computation(model_type, unfrozen):
    live = tiny_live(model_type, bos=True)
    n_tail = 3  # The name's last token, " is" and " in".
    outputs, inner = {}, []
    for row in place(live.tokenizer, [(FACT.prompt, name) for name in NAMES]):
        assert len(row.ids) - row.token == n_tail, "choose a prompt that ends in two tokens"

        def keep(kind, layer, output):
            outputs.setdefault((kind, layer), []).append(output[-n_tail:])
            return output

        handle = plain.projection(live.model, 0).register_forward_pre_hook(
            lambda _, args: inner.append(args[0][0, -n_tail])
        )
        run(live, row.ids, keep)
        handle.remove()
    means = {key: torch.stack(rows).mean(0) for key, rows in outputs.items()}
    activation = torch.stack(inner).mean(0)
    activation[CELL.neuron] = VALUE
    with torch.no_grad():
        written = plain.projection(live.model, 0)(activation)

    def freeze(kind, layer, output):
        output = output.clone()
        last, name = output[-1].clone(), output[-n_tail].clone()
        output[-n_tail:] = means[kind, layer]
        if (kind, layer) == ("mlp", 0):
            output[-n_tail] = written
        if Component(layer, kind) in unfrozen:
            output[-1] = last
        if Component(layer, kind, "entity") in unfrozen:
            output[-n_tail] = name
        return output

    (own,) = place(live.tokenizer, [(FACT.prompt, "XXX")])
    expected = run(live, own.ids, freeze).log_softmax(-1)
    clean = clean_run(live, FACT, [0], NAMES, "XXX")
    put = [Injection(0, None, clean.activations[0][0]), Injection(0, 5, VALUE)]
    logprobs, ranks = patched(live, clean, put, [frozenset(), unfrozen])
    assert logprobs[1].item() == pytest.approx(expected[clean.answer].item(), abs=1e-4)
    assert ranks[1] == (expected > expected[clean.answer]).sum()
    assert clean.answer == live.tokenizer(f"{FACT.text('XXX')} Tokyo")["input_ids"][len(own.ids)]


@pytest.mark.slow
def test_a_direction_is_added_to_the_clean_means_at_every_token_of_the_name():
    live = tiny_live(max_position_embeddings=128)
    form = direction(live, parse_recipe(recipe_text(live, "tiny", entity="Michael Jordan")), (0,), 0.5)
    n, word = form.n_tokens, form.put.placeholder
    n_tail = n + 2
    outputs, inner = {}, []
    for name in NAMES:
        (row,) = place(live.tokenizer, [(FACT.prompt, name)])
        before = len(live.tokenizer(FACT.prompt.partition("{entity}")[0].rstrip())["input_ids"])
        if row.token - before + 1 < n:  # This name is shorter.
            continue

        def keep(kind, layer, output):
            outputs.setdefault((kind, layer), []).append(output[-n_tail:])
            return output

        handle = plain.projection(live.model, 0).register_forward_pre_hook(
            lambda _, args: inner.append(args[0][0, -n_tail:-2])
        )
        run(live, row.ids, keep)
        handle.remove()
    assert 0 < len(inner) < len(NAMES)
    means = {key: torch.stack(rows).mean(0) for key, rows in outputs.items()}
    activations = torch.stack(inner).mean(0)
    own = torch.stack([form.keys[back][0] for back in reversed(range(n))])
    with torch.no_grad():
        written = plain.projection(live.model, 0)(activations + 0.5 * (own - activations))

    def freeze(kind, layer, output):
        output, last, name = output.clone(), output[-1].clone(), output[-n_tail:-2].clone()
        output[-n_tail:] = means[kind, layer]
        if (kind, layer) == ("mlp", 0):
            output[-n_tail:-2] = written
        if Component(layer, kind) in OPEN_ENTITY:
            output[-1] = last
        if Component(layer, kind, "entity") in OPEN_ENTITY:
            output[-n_tail:-2] = name
        return output

    (placed,) = place(live.tokenizer, [(FACT.prompt, word)])
    expected = run(live, placed.ids, freeze).log_softmax(-1)
    clean = clean_run(live, FACT, [0], NAMES, word, n)
    logprobs, _ = patched(live, clean, form.onto(clean.activations), [OPEN_ENTITY])
    assert logprobs[0].item() == pytest.approx(expected[clean.answer].item(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cells", "direction"])
def test_the_search_ends_with_what_it_reports(kind):
    live = tiny_live()
    recipe = parse_recipe(recipe_text(live, "tiny"))
    facts = known_targets(live, recipe)
    form = cell_values(live, recipe, [CELL], facts, value=VALUE) if kind == "cells" else direction(live, recipe, (0,))
    result = sufficiency(form, facts, max_unfrozen=3)
    assert result.put.form == kind
    goal = min(
        result.references.injected, result.references.last_token, key=lambda row: (row.n_rank_0, row.mean_logprob)
    )
    reached = (
        result.outcome.n_rank_0 >= goal.n_rank_0 if goal.n_rank_0 else result.outcome.mean_logprob >= goal.mean_logprob
    )
    assert reached or len(result.steps) == 3
    assert result.n_facts + result.n_left_out == len(facts)
    assert set(result.unfrozen) <= {Component(row.layer, row.component) for row in result.steps}
    assert all(row.layer > 0 and row.token == "last" for row in result.unfrozen)
    assert [row.layer for row in result.enrichment] == [1, 2]
    assert [row.n_unfrozen for row in result.steps] == list(range(1, len(result.steps) + 1))
    assert len(result.outcome.ranks) == result.n_facts
    assert result.outcome.n_rank_0 == result.outcome.ranks.count(0)


def test_nothing_frozen_is_the_plain_injection():
    live = tiny_live()
    clean = clean_run(live, FACT, [0], NAMES, "XXX")
    logprobs, _ = patched(live, clean, [], [frozenset()], freeze=False)
    expected = run(live, clean.placed.ids, lambda kind, layer, output: output).log_softmax(-1)
    assert logprobs[0].item() == pytest.approx(expected[clean.answer].item(), abs=1e-4)
