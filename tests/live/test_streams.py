"""What layers give to the next, and how what an MLP writes arrives there."""

import pytest
import torch

from amnesia.choice.atoms import Name
from amnesia.directions.bystanders import other_names
from amnesia.directions.keys import name_rows
from amnesia.directions.moments import moments_of
from amnesia.live.model import edited
from amnesia.live.streams import mean_stream, share_arriving, streams
from amnesia.live.tokens import place
from support.tiny import MODEL_TYPES
from support.tiny_text import tiny_live

TEXTS = ("Once upon a time {entity} was", "{entity} lies in", "a king of {entity}")
LAYERS = (0, 1, 2)
INNER = (0, 1)  # Behind the last layer transformers gives what the last norm makes of it.


def states_at(live, row):
    """What transformers calls hidden states, behind each inner layer at the token of a row."""
    with torch.no_grad():
        states = live.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
    return torch.stack([states[layer + 1][0, row.token] for layer in INNER])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_streams_are_what_transformers_calls_hidden_states(model_type):
    live = tiny_live(model_type)
    rows = place(live.tokenizer, [(text, name) for text in TEXTS for name in ("Japan", "the Eiffel Tower")])
    found = torch.zeros(len(rows), len(INNER), live.shape.d_model)
    for indices, batch in streams(live, rows, INNER):
        found[list(indices)] = batch
    wanted = torch.stack([states_at(live, row) for row in rows])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean_stream(live, rows, INNER), wanted.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "granite", "cohere", "lfm2"])
def test_a_write_arrives_whole_or_scaled_or_behind_a_norm_not_as_it_is(model_type):
    live = tiny_live(model_type)
    rows = place(live.tokenizer, [(text, "Japan") for text in TEXTS])
    write = torch.randn(live.shape.d_model, generator=torch.Generator().manual_seed(0))
    (layer,) = live.watchable(INNER)[-1:]
    wanted = {"granite": 0.5}.get(model_type, 1.0) if live.norm_after(layer) is None else None
    assert share_arriving(live, rows, layer, write) == (None if wanted is None else pytest.approx(wanted, rel=1e-3))


@pytest.mark.parametrize("model_type", ["llama", "granite", "gpt_neox"])
def test_an_atom_of_the_stream_leaves_what_the_stream_carries_of_any_name(model_type):
    live = tiny_live(model_type)
    name = Name(live, "Japan", moments_of(live, LAYERS), lambda other: other == "Japan", of="stream")
    named, rows = other_names(live)
    others = [row for row, its in zip(rows, named, strict=True) if its.is_last and its.name != "Japan"]
    any_name = mean_stream(live, others, LAYERS)
    own = name_rows(live, "Japan")
    before = mean_stream(live, own[0], LAYERS)
    atoms = [atom for atom in name.atoms(1) if atom.token == 0]
    assert {atom.layer for atom in atoms} == {*LAYERS}
    for atom in atoms:
        with edited(live, [atom.edit(0.0)]):
            after = mean_stream(live, own[0], LAYERS)
        size = (before - any_name)[atom.layer].norm()
        assert size > 0.1 and (after - any_name)[atom.layer].norm() < 1e-3 * size
        assert torch.equal(after[: atom.layer], before[: atom.layer])
        assert atom.edit(0.0).of == "stream"


def test_what_the_stream_carries_is_read_in_the_texts_of_the_name():
    live = tiny_live("llama")
    texts = ("So it was in {entity}", "Now {entity}")
    name = Name(live, "Japan", moments_of(live, LAYERS), lambda other: other == "Japan", texts=texts, of="stream")
    named, rows = other_names(live)
    others = [row for row, its in zip(rows, named, strict=True) if its.is_last and its.name != "Japan"]
    carried = mean_stream(live, name_rows(live, "Japan", 1, texts)[0], LAYERS) - mean_stream(live, others, LAYERS)
    for atom in name.atoms(1):
        torch.testing.assert_close(atom.write, carried[atom.layer], rtol=1e-3, atol=1e-4)


def test_a_gate_that_differs_by_token_lets_no_write_arrive_as_it_is():
    live = tiny_live("qwen3_next")
    rows = place(live.tokenizer, [(text, "Japan") for text in TEXTS])
    write = torch.randn(live.shape.d_model, generator=torch.Generator().manual_seed(0))
    shares = [share_arriving(live, [row], 0, write) for row in rows]
    assert None not in shares and max(shares) > 1.1 * min(shares)
    assert share_arriving(live, rows, 0, write) is None


def test_behind_a_norm_there_are_no_atoms_of_the_stream():
    live = tiny_live("gemma3_text")
    moments = moments_of(live, LAYERS)
    assert not Name(live, "Japan", moments, lambda other: other == "Japan", of="stream").atoms(1)
    assert Name(live, "Japan", moments, lambda other: other == "Japan").atoms(1)
