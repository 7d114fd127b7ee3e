"""What tests share of moments is what each of them would make for itself."""

import pytest
import torch

from amnesia.directions import moments as module
from amnesia.directions.bystanders import MomentSettings, bystanders_of
from amnesia.directions.moments import moments_of
from amnesia.directions.samples import own_text
from support.kept_moments import keep_moments
from support.tiny_text import tiny_live

SMALL = MomentSettings(sampled=64, length=8, vocabulary_size=40)


@pytest.fixture
def kept():
    """Texts are kept, too, which other tests of this room write themselves."""
    keep_moments(own_text=True)


def alone(live, monkeypatch):
    """Moments for which everything is read and written anew, and the tokens and rows that were counted."""
    counted = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "bystanders_of", bystanders_of)
        patch.setattr(module, "own_text", own_text)
        return moments_of(live, (0, 1), None, SMALL, counted.append), sum(counted)


@pytest.mark.parametrize("bos", [False, True])
def test_kept_moments_are_those_made_anew(kept, monkeypatch, bos):
    for seed in (3, 4, 3):  # Others in between, and the first again.
        live, counted = tiny_live("llama", seed=seed, bos=bos), []
        expected, n = alone(live, monkeypatch)
        found = moments_of(live, (0, 1), None, SMALL, counted.append)
        assert torch.equal(found.second, expected.second) and torch.equal(found.name_keys, expected.name_keys)
        assert (found.vocabulary, found.names) == (expected.vocabulary, expected.names)
        assert sum(counted) == n


def test_what_is_alike_is_read_once(kept, monkeypatch):
    asked = []
    monkeypatch.setattr("amnesia.directions.samples.own_text", lambda *given: asked.append(1) or own_text(*given))
    for seed in (5, 5, 6):
        moments_of(tiny_live("llama", seed=seed), (0,), None, SMALL)
    assert len(asked) == 2
