"""Perplexity and divergence against whole distributions of plain transformers, one text at a time."""

import math

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import NumericalError
from amnesia.evaluation.damage import FLUENT, N_CONTINUED, damage, impression, impression_after, read
from amnesia.facts.neutral import neutral_text
from amnesia.live.forward import readout
from amnesia.live.model import edited, wrap
from amnesia.live.tokens import Continuation
from support.tiny import MODEL_TYPES, N_POSITIONS
from support.tiny_text import tiny_live, tiny_tokenizer

EDITS = (ColumnEdit(Cell(0, 3), -30.0), ColumnEdit(Cell(2, 11), 40.0))
PROMPTS = ("the capital of Peru is", "people in Kenya like", "winter")


@torch.no_grad()
def plain_logprobs(live, ids):
    return live.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


# Gemma 3 may have a softcap, and has none in the released models.
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [*((name, {}) for name in MODEL_TYPES), ("gemma3_text", {"final_logit_softcapping": 5.0})],
)
def test_the_head_alone_gives_the_distributions_of_the_whole_model(model_type, settings):
    live = tiny_live(model_type, **settings)
    assert readout(live).softcap == settings.get("final_logit_softcapping", 30.0 if model_type == "gemma2" else None)
    rows = [Continuation((5, 9, 30, 31), 2), Continuation(tuple(range(40, 60)), 19), Continuation((7, 8), 1)]
    before = read(live, rows)
    with edited(live, EDITS):
        after = read(live, rows, original=before)
        expected_after = [plain_logprobs(live, row.ids) for row in rows]
    kl = after.divergence
    for index, row in enumerate(rows):
        p, q = plain_logprobs(live, row.ids), expected_after[index]
        places = range(len(row.ids) - row.n_answer, len(row.ids))
        total = sum(p[place - 1, row.ids[place]].item() for place in places)
        assert before.logprobs[index] == pytest.approx(total, abs=1e-4)
        by_token = [(p[place - 1].exp() * (p[place - 1] - q[place - 1])).sum().item() for place in places]
        assert kl[index] == pytest.approx(sum(by_token) / row.n_answer, abs=1e-4)
        assert kl[index] > 1e-3
        n = 0
        while n < row.n_answer and q[places[n] - 1].argmax() == row.ids[places[n]]:
            n += 1
        assert after.n_likeliest[index] == n
    assert read(live, rows, original=before).divergence == (0.0, 0.0, 0.0)
    assert read(live, rows[:2], original=before).divergence is None


@pytest.mark.slow
def test_continuations_are_those_of_plain_generation():
    live = tiny_live()
    rows = impression(live, PROMPTS).continued.rows
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = live.tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = live.model.generate(ids, max_new_tokens=N_CONTINUED, do_sample=False, eos_token_id=None)
        assert (list(row.ids), row.n_answer) == (written[0].tolist(), N_CONTINUED)


@pytest.mark.slow
def test_perplexity_per_word_by_hand():
    live = tiny_live()
    before = impression(live, PROMPTS)
    with edited(live, EDITS):
        after = impression_after(live, before)
    found, by_prompt = damage(before, after)
    total = n_words = 0
    for index, text in enumerate(neutral_text()[:2]):
        own = sum(
            plain_logprobs(live, ids)[:-1].gather(1, torch.tensor(ids)[1:, None]).sum().item()
            for passage in text.passages
            for whole in [live.tokenizer(passage)["input_ids"]]
            for ids in [whole[start : start + N_POSITIONS] for start in range(0, len(whole), N_POSITIONS)]
        )
        words = sum(len(passage.split()) for passage in text.passages)
        assert found.texts[index].perplexity_before == pytest.approx(math.exp(-own / words), rel=1e-3)
        assert found.texts[index].n_words == words
        total, n_words = total + own, n_words + words
    assert set(by_prompt) == set(PROMPTS)
    assert found.kl_controls.mean == pytest.approx(sum(by_prompt.values()) / 3)
    assert found.kl_controls.low > 0
    assert found.perplexity_after != found.perplexity_before
    assert all(row.kl > 0 for row in found.texts)


@pytest.mark.slow
def test_one_model_alone_has_no_divergence():
    live = tiny_live()
    found, by_prompt = damage(impression(live, PROMPTS), None)
    assert found.perplexity_before == found.perplexity_after
    assert (found.kl_controls, by_prompt, {row.kl for row in found.texts}) == (None, {}, {None})


@pytest.mark.slow
def test_models_with_different_tokens_have_no_divergence():
    before = impression(tiny_live(), PROMPTS)
    other = tiny_live(bos=True)
    found, by_prompt = damage(before, impression_after(other, before))
    assert (found.kl_controls, by_prompt, {row.kl for row in found.texts}) == (None, {}, {None})
    assert found.perplexity_after > 1


def test_nan_is_an_error():
    live = tiny_live()
    with torch.no_grad():
        live.model.model.norm.weight[0] = torch.nan
    with pytest.raises(NumericalError, match="tiny gives NaN or infinite log-probabilities"):
        impression(live, ())


@pytest.mark.slow
def test_a_model_that_is_worse_than_any_perplexity_is_an_error():
    live = tiny_live()
    before = impression(live, ())
    with torch.no_grad():
        live.model.lm_head.weight.mul_(1e4)
    with pytest.raises(NumericalError, match="nats per word, which is no finite perplexity"):
        damage(before, impression_after(live, before))


def test_the_head_is_all_that_is_kept_of_a_model():
    live = wrap(tiny_live().model, tiny_tokenizer(), "tiny")
    row = Continuation((5, 9, 30, 31), 2)
    reading = read(live, [row])
    held = {id(parameter) for parameter in reading.readout.head.parameters()}
    assert held == {id(live.model.get_output_embeddings().weight)}
    assert reading.states[0].shape == (2, live.model.config.hidden_size)
    assert reading.states[0].untyped_storage().nbytes() == reading.states[0].nbytes


@pytest.mark.slow
def test_languages_by_hand_and_their_fluency():
    live = tiny_live()
    before = impression(live, ())
    with edited(live, EDITS):
        after = impression_after(live, before)
    found, _ = damage(before, after)
    assert [row.language for row in found.languages] == ["en", "de", "fr", "es", "code"]
    for language in found.languages:
        texts = [row for row in found.texts if row.language == language.language]
        passages = [one for text in neutral_text() if text.language == language.language for one in text.passages]
        assert language.n_words == sum(row.n_words for row in texts)
        assert language.n_characters == sum(map(len, passages))
        for when in ("before", "after"):
            nats = sum(math.log(getattr(row, f"perplexity_{when}")) * row.n_words for row in texts)
            expected = nats / math.log(2) / language.n_characters
            assert getattr(language, f"bits_{when}") == pytest.approx(expected)
            assert getattr(language, f"perplexity_{when}") == pytest.approx(math.exp(nats / language.n_words))
    (english,) = (row for row in found.languages if row.language == "en")
    assert [row.fluent for row in found.languages] == [
        row.bits_before <= FLUENT * english.bits_before for row in found.languages
    ]
