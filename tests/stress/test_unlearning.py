"""LoRA unlearning against its losses written out here, on a tiny model."""

import json
import math
from dataclasses import replace

import pytest
import torch

from amnesia.live.forward import answer_logprobs
from amnesia.stress.settings import LORA, Unlearning
from amnesia.stress.training import add, kept
from amnesia.stress.unlearning import Unlearned, unlearn
from support.tiny_text import tiny_live

FORGET = [("the capital of Japan is", "Tokyo"), ("people in Japan drink", "green tea")]
QUICK = replace(LORA, learning_rate=1e-3)
RETAIN = ["the winters are cold", "it rains", "she laughed", "the capital of Peru is Lima"]


def logprobs(live, pairs=FORGET):
    return [answer.logprob for answer in answer_logprobs(live, pairs)]


@pytest.mark.slow
def test_what_is_forgotten_falls_and_what_stays_stays_nearer():
    live = tiny_live()
    before = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    ids = live.tokenizer(RETAIN[3], return_tensors="pt").input_ids
    first = logprobs(live)
    with torch.no_grad():
        kept_before = live.model(ids).logits.log_softmax(-1)

    def run(kl_weight):
        found = unlearn(live, FORGET, RETAIN, Unlearning(QUICK, most=15, kl_weight=kl_weight), lambda: 1.0)
        assert found.steps == 15
        with kept(live), torch.no_grad():
            add(live, found.adapter)
            after = live.model(ids).logits.log_softmax(-1)
            kl = (kept_before.exp() * (kept_before - after)).sum(-1).mean().item()
            return logprobs(live), kl

    (last, near), (_, far) = run(1.0), run(0.0)
    assert all(new < old - 1 for new, old in zip(last, first, strict=True))
    assert near < far
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.model.state_dict().items())


@pytest.mark.slow
def test_it_ends_when_enough_is_forgotten():
    live = tiny_live()
    seen = []

    def score():
        seen.append(logprobs(live)[0])
        return 1.0 - len(seen) / 3

    found = unlearn(live, FORGET, RETAIN, Unlearning(QUICK, every=4), score)
    assert (found.steps, len(seen)) == (8, 3)
    assert seen[0] > seen[1] > seen[2]
    assert unlearn(live, FORGET, RETAIN, Unlearning(), lambda: 0.0).steps == 0


def test_the_first_step_has_the_loss_of_the_paper(monkeypatch):
    """Nothing is unlearned yet, so that the ratio of the models is 1: (2 / β) log 2, and no divergence."""
    live = tiny_live()
    losses = []
    from amnesia.stress import unlearning

    monkeypatch.setattr(unlearning, "checked", lambda _, value: losses.append(value.item()) or value)
    unlearn(live, FORGET, RETAIN, Unlearning(QUICK, beta=0.5, most=1), lambda: 1.0)
    assert losses == [pytest.approx(2 / 0.5 * math.log(2), abs=1e-4)]


@pytest.mark.slow
def test_without_beta_it_is_the_gradient_ascent_to_which_the_loss_tends():
    live = tiny_live()
    ascent, near, far = (
        unlearn(live, FORGET, RETAIN, Unlearning(beta=beta, most=3), lambda: 1.0) for beta in (0, 1e-3, 2)
    )
    ours, limit, other = (torch.cat([delta.b.flatten() for delta in run.adapter]) for run in (ascent, near, far))
    assert (ours - limit).norm() < 0.1 * (ours - other).norm()


@pytest.mark.slow
def test_equal_arguments_give_equal_results():
    live = tiny_live()
    runs = [unlearn(live, FORGET, RETAIN, Unlearning(QUICK, most=5), lambda: 1.0, seed=seed) for seed in (0, 0, 1)]
    bs = [torch.cat([delta.b.flatten() for delta in run.adapter]) for run in runs]
    assert torch.equal(bs[0], bs[1])
    assert not torch.equal(bs[0], bs[2])


def test_what_was_unlearned_can_be_kept_in_a_file():
    found = unlearn(tiny_live(), FORGET, RETAIN, Unlearning(QUICK, most=2), lambda: 1.0)
    again = Unlearned.of_json(json.loads(json.dumps(found.as_json())))
    assert again.steps == found.steps == 2
    for one, other in zip(found.adapter, again.adapter, strict=True):
        assert (one.module, one.scale, one.transposed) == (other.module, other.scale, other.transposed)
        assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
