"""Interventions against plain transformers with hooks of the test's own, one prompt at a time."""

import copy

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, DirectionEdit, directions_of
from amnesia.live.batches import collate
from amnesia.live.forward import answer_logprobs, generate
from amnesia.live.interventions import (
    Asked,
    Injection,
    edited_logprobs,
    injected,
    place_asked,
    replaced_outputs,
    varied_logprobs,
)
from amnesia.vector import Vector
from oracles import plain
from support.tiny_text import tiny_live

ASKED = [
    Asked("the capital of {entity} is", "Japan", "the garden"),
    Asked("{entity} was born in", "Michael Jordan", "Tokyo"),
    Asked("{entity} was born in", "Michael", "Tokyo"),
    Asked("the capital of {entity} is", "Japan", "Tokyo"),
    Asked("the people of {entity} like the river of {entity} and", "Paris", "summer bread"),
]
CELLS = [Cell(1, 5), Cell(0, 7), Cell(1, 30)]
MULTIPLIERS = [1.0, 0.0, -2.0, -8.0]


@pytest.fixture(scope="module", params=[*plain.FIVE, "qwen3_5_text", "lfm2"])
def live(request):
    return tiny_live(request.param, bos=request.param == "gemma2")


def answer_logprob(live, row, logits, ids):
    return plain.answer_logprob(logits, ids, len(ids) - len(live.tokenizer(row.pair[0])["input_ids"]))


@pytest.mark.slow
@pytest.mark.parametrize("entity_only", [False, True])
@pytest.mark.parametrize("cells", [CELLS, [*CELLS, Cell(2, 9)]], ids=["early layers", "the last layer too"])
def test_varied_logprobs_equal_single_prompts(live, entity_only, cells):
    found = varied_logprobs(live, ASKED, cells, MULTIPLIERS, entity_only=entity_only)
    for n, (row, placed) in enumerate(zip(ASKED, place_asked(live, ASKED), strict=True)):
        for m, multiplier in enumerate(MULTIPLIERS):

            def scale(layer, values, multiplier=multiplier, token=placed.token):
                for cell in cells:
                    if cell.layer == layer:
                        values[token if entity_only else slice(None), cell.neuron] *= multiplier

            logits = plain.run(live.model, placed.ids, scale)[0]
            assert found[m, n].item() == pytest.approx(answer_logprob(live, row, logits, placed.ids), abs=1e-4)
    assert (found[0] - found[3]).abs().max() > 1e-3


def direction(live, layer, multiplier, seed):
    """A random direction on a third of the columns of a layer, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    columns = tuple(range(seed % 3, live.shape.width(layer), 3))
    read, key, spread = (Vector.of(torch.randn(len(columns), generator=generator)) for _ in range(3))
    write = Vector.of(0.2 * torch.randn(live.shape.d_model, generator=generator))
    return DirectionEdit(layer, 0, multiplier, columns, read, write, key, spread)


@pytest.mark.slow
def test_variants_in_one_pass_equal_each_written_into_the_weights(live):
    variants = [
        (),
        (direction(live, 1, -1.0, 1),),
        (direction(live, 0, 0.5, 2), direction(live, 0, -0.5, 3), direction(live, 2, 0.0, 4)),
        (ColumnEdit(Cell(0, 3), -2.0), direction(live, 0, -1.0, 5)),
        (ColumnEdit(Cell(2, 9), -8.0), ColumnEdit(Cell(1, 5), 0.0)),
    ]
    found = edited_logprobs(live, [row.pair for row in ASKED], variants)
    for line, edits in enumerate(variants):
        model = copy.deepcopy(live.model)
        for edit in edits:
            weight = plain.projection(
                model, edit.layer if edit in directions_of(edits) else edit.cell.layer
            ).weight.data
            by_neuron = weight.T if live.shape.layout.neuron_axis else weight
            if isinstance(edit, ColumnEdit):
                by_neuron[edit.cell.neuron] *= edit.multiplier
            else:
                read, write = (torch.tensor(part.array.copy()) for part in (edit.read, edit.write))
                by_neuron[list(edit.columns)] -= (1.0 - edit.multiplier) * torch.outer(read, write)
        for place, (row, placed) in enumerate(zip(ASKED, place_asked(live, ASKED), strict=True)):
            logits = plain.run(model, placed.ids)[0]
            assert found[line, place].item() == pytest.approx(answer_logprob(live, row, logits, placed.ids), abs=1e-4)
    assert (found[1:] - found[0]).abs().amax(1).min() > 1e-3


def test_models_without_trees_give_the_same(monkeypatch):
    live = tiny_live()
    expected = varied_logprobs(live, ASKED, CELLS, MULTIPLIERS)
    monkeypatch.setattr("amnesia.live.batches.takes_trees", lambda live, longest: False)
    torch.testing.assert_close(varied_logprobs(live, ASKED, CELLS, MULTIPLIERS), expected, atol=1e-4, rtol=0)


def test_injected_logits_equal_single_prompts(live):
    placed = place_asked(live, ASKED)
    vector = torch.linspace(-1, 1, live.shape.d_mlp)
    # One at a token before the name's last one, one on top of another, and one that would lie before the text.
    injections = [
        [Injection(1, 5, 30.0), Injection(0, 2, -4.0), Injection(0, None, vector, add=True, back=1)],
        [Injection(2, None, vector), Injection(2, None, vector, add=True), Injection(2, 7, 2.0, add=True)],
        [],
        [Injection(0, None, vector, back=placed[3].token + 1)],
        [],
    ]
    batch = collate(live, [row.ids for row in placed], [3, 1, 0])
    with torch.no_grad(), injected(live, batch, [row.token for row in placed], injections):
        logits = live.model(**batch.inputs).logits.float()
    for line, index in enumerate(batch.indices):

        def put(layer, values, index=index):
            for one in injections[index]:
                token = placed[index].token - one.back
                if one.layer == layer and token >= 0:
                    cells = slice(None) if one.neuron is None else one.neuron
                    values[token, cells] = one.value + (values[token, cells] if one.add else 0.0)

        expected = plain.run(live.model, placed[index].ids, put)[0]
        torch.testing.assert_close(logits[line, batch.padding[line] :], expected, atol=1e-4, rtol=0)


def test_an_injection_acts_once_while_generating():
    live = tiny_live()
    prompts = [row.pair[0] for row in ASKED[:2]]
    tokens = [row.token for row in place_asked(live, ASKED)]
    injections = [[Injection(0, 5, 500.0)], []]
    texts = generate(live, prompts, max_new_tokens=3, around=lambda batch: injected(live, batch, tokens, injections))
    ids = list(live.tokenizer(prompts[0])["input_ids"])
    n = len(ids)
    for _ in range(3):  # The whole text anew for each token, with the injection at its one place.

        def put(layer, values):
            if layer == 0:
                values[tokens[0], 5] = 500.0

        ids.append(plain.run(live.model, ids, put)[0][-1].argmax().item())
    assert texts == [live.tokenizer.decode(ids[n:], skip_special_tokens=True), generate(live, prompts[1:], 3)[0]]
    assert texts[0] != generate(live, prompts[:1], 3)[0]


def test_outputs_are_replaced_and_hooks_removed(live):
    pairs = [row.pair for row in ASKED[:2]]
    before = answer_logprobs(live, pairs)
    nothing = {(kind, n): torch.zeros_like for kind in ("attention", "mlp") for n in range(live.shape.n_layers)}
    prompts = [live.tokenizer(text)["input_ids"] for text in ("Japan is", "Paris is")]
    with torch.no_grad(), replaced_outputs(live, nothing):
        one, other = (live.model(torch.tensor([ids])).logits[0, -1] for ids in prompts)
    torch.testing.assert_close(one, other)  # Without its layers the model sees but the last token.
    assert answer_logprobs(live, pairs) == before
