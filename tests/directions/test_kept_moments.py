"""What tests share of moments is what each of them would make for itself."""

import sys

import pytest
import torch

from amnesia import directions
from amnesia.directions import moments as module
from amnesia.directions.bystanders import MomentSettings, bystanders_of
from amnesia.directions.moments import moments_of
from amnesia.directions.samples import own_text
from support.kept_moments import keep_moments
from support.tiny_text import tiny_live

pytestmark = pytest.mark.slow

SMALL = MomentSettings(sampled=64, length=8, vocabulary_size=40)


def test_kept_moments_are_those_made_anew_and_read_once(monkeypatch):
    keep_moments(own_text=True, little_text=False)  # Texts, too, which other tests of this room write themselves.
    written = []
    monkeypatch.setattr("amnesia.directions.samples.own_text", lambda *given: written.append(1) or own_text(*given))
    anew = {}
    for seed, bos in ((3, False), (3, True), (4, True), (3, False)):  # The first again, after others.
        live, steps = tiny_live("llama", seed=seed, bos=bos), []
        if (seed, bos) not in anew:
            with monkeypatch.context() as patch:
                patch.setattr(module, "bystanders_of", bystanders_of)
                patch.setattr(module, "own_text", own_text)
                anew[seed, bos] = moments_of(live, (0,), None, SMALL, steps.append), sum(steps)
            steps.clear()
        expected, n_steps = anew[seed, bos]
        found = moments_of(live, (0,), None, SMALL, steps.append)
        assert torch.equal(found.second, expected.second) and torch.equal(found.name_keys, expected.name_keys)
        assert (found.vocabulary, found.names) == (expected.vocabulary, expected.names)
        assert sum(steps) == n_steps
    assert len(written) == 3


def test_the_first_test_that_has_torch_has_kept_moments_too(monkeypatch):
    monkeypatch.setattr(directions, "moments", module)  # And again at the end, as in `sys.modules`.
    monkeypatch.delattr(directions, "moments")
    monkeypatch.delitem(sys.modules, module.__name__)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        keep_moments(own_text=True, little_text=True)
        assert module.__name__ not in sys.modules
    keep_moments(own_text=True, little_text=True)
    first = sys.modules[module.__name__]
    assert first is not module and first.bystanders_of is not bystanders_of and first.own_text is not own_text
