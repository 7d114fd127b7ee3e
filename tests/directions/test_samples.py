import pytest
import torch
from safetensors import safe_open

from amnesia.directions import samples
from amnesia.directions.bystanders import MomentSettings, bystanders_of
from amnesia.directions.samples import own_text, ship, shipped_text, weights_digest
from amnesia.live.tokens import Placed
from amnesia.live.watching import activations, text_activations
from amnesia.sources.built_in import BUILT_IN
from support.tiny_text import tiny_live

SMALL = MomentSettings(sampled=64, length=8, vocabulary_size=40)


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


def test_a_model_goes_on_from_each_beginning_without_special_tokens(live):
    read = bystanders_of(live, SMALL)
    rows = list(own_text(live, read.beginnings, read.n_following, "none"))
    assert [row[: len(start)] for row, start in zip(rows, read.beginnings, strict=True)] == list(read.beginnings)
    following = [row[len(start) :] for row, start in zip(rows, read.beginnings, strict=True)]
    assert {len(row) for row in following} == {read.n_following}
    assert not {token for row in following for token in row} & set(live.tokenizer.all_special_ids)
    assert len(set(following)) > len(following) / 2
    assert rows == list(own_text(live, read.beginnings, read.n_following, "none"))


@torch.inference_mode()
def drawn_plainly(live, rows, n_tokens, seed):
    """Rows with tokens at temperature 1 by whole passes, the first token beyond a random share of all that are allowed."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(n_tokens):
        scores = live.model(torch.tensor(rows)).logits[:, -1]
        scores[:, live.tokenizer.all_special_ids] = -torch.inf
        reached = scores.softmax(1).double().cumsum(1)
        beyond = reached > torch.rand(len(rows), 1, dtype=torch.float64, generator=random) * reached[:, -1:]
        rows = [(*row, token) for row, token in zip(rows, beyond.int().argmax(1).tolist(), strict=True)]
    return rows


def test_each_batch_is_drawn_by_a_seed_of_its_own(live, monkeypatch):
    monkeypatch.setattr(samples, "_AT_ONCE", 4)
    beginnings, told = [(5, 9), (6, 8), (7, 11), (4, 10)] * 2 + [(5, 9)], []  # Two whole batches, and a row.
    rows = list(own_text(live, beginnings, 6, "none", told.append))
    assert told == [4, 4, 1]
    assert rows == [
        row for first in (0, 4, 8) for row in drawn_plainly(live, beginnings[first : first + 4], 6, seed=first)
    ]
    assert not set(rows[:4]) & set(rows[4:])  # Although they begin alike.


def test_prompts_are_counted_and_not_their_tokens(live):
    """So that the rate that is shown of a task is one of prompts, whatever its parts."""
    read, told = bystanders_of(live, SMALL), []
    rows = list(own_text(live, read.beginnings, read.n_following, "none", told.append))
    assert sum(told) == len(rows) == len(read.beginnings)
    told.clear()
    for _ in text_activations(live, rows, (0, 1), told.append):
        pass
    assert sum(told) == len(rows)


def test_text_that_is_shipped_is_read_instead_of_written(live, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "FOLDER", tmp_path / "own_text")
    read, digest = bystanders_of(live, SMALL), weights_digest(live)
    written = list(own_text(live, read.beginnings, read.n_following, digest))
    other = [row[::-1] for row in written]  # Unlike what the model would write.
    ship(shipped_text(read.beginnings, read.n_following, digest), "tiny", other)
    assert list(own_text(live, read.beginnings, read.n_following, digest)) == other
    # Of other weights, or after other beginnings, it is no text of this model.
    assert list(own_text(live, read.beginnings, read.n_following, weights_digest(tiny_live("llama", seed=4)))) != other
    assert list(own_text(live, read.beginnings[1:], read.n_following, digest)) != other[1:]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_activations_of_texts_are_those_of_each_token(architecture):
    live = tiny_live(architecture, seed=3)
    rows = [(5, 9, 11, 7), (6, 8), (5, 9, 3, 12, 4, 10)]
    found = torch.cat(list(text_activations(live, rows, (0, 1))))
    each = [Placed(row, token) for row in rows for token in range(1, len(row))]
    expected = torch.cat([batch for _, batch in activations(live, each, (0, 1))])
    assert found.shape == expected.shape == (9, 2, live.shape.d_mlp)
    # Batches have an order of their own.
    torch.testing.assert_close(found.sum(0), expected.sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.flatten(1).norm(dim=1).sort()[0], expected.flatten(1).norm(dim=1).sort()[0])


@pytest.mark.exhaustive
@pytest.mark.real
def test_the_text_of_the_demo_model_is_shipped_and_could_be_its_own(smollm2_live):
    read = bystanders_of(smollm2_live, MomentSettings())
    path = shipped_text(read.beginnings, read.n_following, weights_digest(smollm2_live))
    assert path.is_file(), "run tests/benchmarks/ship_text.py: the sentences or the model are others than before"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "smollm2-135m"}
        rows = file.get_tensor("tokens")[::20].long()
    with torch.inference_mode():
        logprobs = smollm2_live.model(rows).logits[:, :-1].log_softmax(2)[:, len(read.beginnings[0]) - 1 :]
    following = rows[:, len(read.beginnings[0]) :]
    own = logprobs.gather(2, following[..., None]).mean()
    entropy = -(logprobs.exp() * logprobs).sum(2).mean()
    # Of text drawn from a model, the mean log-probability is minus the mean entropy. Here are 945 tokens, and the sum of
    # both has a standard deviation of 2.4 nats, so that three standard errors are 0.24.
    assert -own == pytest.approx(entropy, abs=0.25)


def test_nothing_else_is_shipped_than_the_text_of_built_in_models():
    names = []
    for path in samples.FOLDER.iterdir():
        with safe_open(path, "pt") as file:
            names.append(file.metadata()["model"])
    assert sorted(names) == sorted(BUILT_IN)
