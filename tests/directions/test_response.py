"""What is foretold of text, against the models with the change at work."""

import contextlib

import pytest
import torch

from amnesia.choice.atoms import Change
from amnesia.directions.response import Response, drawn_weights, response_of
from amnesia.live.watching import write_gradients
from support.tiny_text import tiny_live


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_gradients_are_those_of_weighed_logits(model_type):
    """Against the logits of the model with the change at work, by finite differences."""
    live, rows = texts_of(model_type)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(live.model.config.vocab_size, generator=generator)
    batches = list(write_gradients(live, rows, (0, 1), lambda logits: weights.expand_as(logits).clone()))
    activations, gradients = (torch.cat(part) for part in zip(*batches, strict=True))
    assert activations.shape == (sum(len(row) - 2 for row in rows), 2, live.shape.d_mlp)
    for layer in (0, 1):
        read = torch.randn(live.shape.d_mlp, generator=generator)
        write = torch.randn(live.shape.d_model, generator=generator)
        found = Response(activations, gradients).to(layer, torch.arange(live.shape.d_mlp), read, write)
        for row, inner in zip(rows, found.split([len(row) - 2 for row in rows]), strict=True):

            def weighed(step, row=row, layer=layer, read=read, write=write):
                with moved(live, layer, step * write, read, range(1, len(row) - 1)):
                    return (logits_of(live, row)[:-1] @ weights.double()).sum().item()

            slope = (weighed(1e-3) - weighed(-1e-3)) / 2e-3
            assert inner.sum().item() == pytest.approx(slope, rel=0.02, abs=0.02)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_harm_is_the_divergence_of_small_edits(model_type):
    """The mean over many draws, against the distributions of the model with the change at work at one token each."""
    live, rows = texts_of(model_type)
    generator, draw = torch.Generator().manual_seed(0), drawn_weights()
    read = torch.randn(live.shape.d_mlp, generator=generator)
    write = torch.randn(live.shape.d_model, generator=generator)
    foretold = 0.0
    for _ in range(300):
        batches = list(write_gradients(live, rows, (0,), draw))
        activations, gradients = (torch.cat(part) for part in zip(*batches, strict=True))
        change = Response(activations, gradients).to(0, torch.arange(live.shape.d_mlp), read, write)
        foretold += Change(change, torch.zeros(0)).harm * len(change) / 300
    step, measured = 1e-2, 0.0
    for row in rows:
        before = logits_of(live, row)[:-1].log_softmax(-1)
        for token in range(1, len(row) - 1):
            with moved(live, 0, step * write, read, [token]):
                after = logits_of(live, row)[:-1].log_softmax(-1)
            measured += (before.exp() * (before - after)).sum().item() / step**2
    assert foretold == pytest.approx(measured, rel=0.15)


def test_the_response_is_to_weights_that_are_drawn():
    live, rows = texts_of("llama")
    found = response_of(live, rows, (0, 1))
    batches = list(write_gradients(live, rows, (0, 1), drawn_weights()))
    activations, gradients = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal(found.activations, activations.half())
    assert torch.equal(found.gradients, gradients.bfloat16()) and gradients.abs().min(0).values.max() > 0


def test_weights_of_logits_have_the_covariance_of_the_prediction():
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5], [9.0, 0.0, 0.0, 0.0]])
    drawn = drawn_weights()(logits.expand(40_000, 2, 4))
    for place, p in enumerate(logits.softmax(1)):
        own = drawn[:, place]
        assert torch.allclose(own.mean(0), torch.zeros(4), atol=0.01)
        assert torch.allclose(own.T @ own / len(own), torch.diag(p) - torch.outer(p, p), atol=0.01)
    # The same numbers every time, and others for the next texts.
    draw = drawn_weights()
    assert torch.equal(draw(logits), drawn_weights()(logits))
    assert not torch.equal(draw(logits), drawn_weights()(logits))


def texts_of(model_type):
    """A model and rows of tokens in the order in which batches are made."""
    live = tiny_live(model_type, seed=3)
    rows = [live.tokenizer(text)["input_ids"] for text in ("people in Japan like music", "the capital of Peru is old")]
    return live, sorted(rows, key=len)


def logits_of(live, row):
    with torch.no_grad():
        return live.model(torch.tensor([row])).logits[0].double()


@contextlib.contextmanager
def moved(live, layer, write, read, tokens):
    """A layer that writes `write` times `read` · its activations less at some tokens."""
    places = torch.tensor(list(tokens))

    def hook(_module, args, output):
        changed = output.clone()
        changed[:, places] -= (args[0][:, places] @ read)[..., None] * write
        return changed

    handle = live.out_proj(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
