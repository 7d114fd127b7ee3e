import pytest
import torch

from amnesia.domain import Fact
from amnesia.forward import answer_logprobs
from amnesia.measurement import measure, measure_unknown, measure_unknown_of_likely, why_excluded, write
from amnesia.prompts import UNSEEN_NAMES
from amnesia.questions import Question
from amnesia.recipe import Scoring
from tiny_text import tiny_live

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))


def test_the_unknown_level_is_the_mean_over_unseen_names():
    live = tiny_live()
    (found,) = measure_unknown(live, [TARGET])
    single = [answer_logprobs(live, [(f"the capital of {name} is", "Tokyo")])[0] for name in UNSEEN_NAMES]
    assert found.total == pytest.approx(sum(row.total for row in single) / 5, abs=1e-4)
    assert found.first == pytest.approx(sum(row.first for row in single) / 5, abs=1e-4)


WORDINGS = ("the capital of {entity} is", "people in {entity} like", "Question: who?\nAnswer: in {entity} it is the")
QUESTIONS = [
    Question("control", Fact(name, wording, answer))
    for name in ("Japan", "the United Kingdom", "Peru", "日本")
    for wording in WORDINGS
    for answer in ("Tokyo", "bread and water in the kitchen", "—")
]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(("side", "batch"), [("left", 1), ("right", 5), ("right", 256)])
def test_answers_are_those_of_plain_transformers_on_single_prompts(monkeypatch, model_type, side, batch):
    live = tiny_live(model_type, bos=True)
    live.tokenizer.padding_side = side
    monkeypatch.setattr("amnesia.measurement.BATCH", batch)
    found = measure(live, QUESTIONS)
    plain = live.model
    for question, answer, text in zip(QUESTIONS, found.answers, found.generated, strict=True):
        prompt = question.fact.text()
        start, whole = (live.tokenizer(one)["input_ids"] for one in (prompt, f"{prompt} {question.fact.answer}"))
        assert whole[: len(start)] == start
        with torch.no_grad():
            logprobs = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        each = [logprobs[place - 1, whole[place]].item() for place in range(len(start), len(whole))]
        assert answer.total == pytest.approx(sum(each), abs=1e-4)
        assert answer.first == pytest.approx(each[0], abs=1e-4)
        assert answer.rank == (logprobs[len(start) - 1] > logprobs[len(start) - 1, whole[len(start)]]).sum().item()
        written = plain.generate(torch.tensor([start]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert text == live.tokenizer.decode(written[0, len(start) :], skip_special_tokens=True)


def test_it_is_only_asked_to_write_what_is_wanted():
    live = tiny_live()
    wanted = [index % 3 == 0 for index in range(len(QUESTIONS))]
    everything = measure(live, QUESTIONS).generated
    assert write(live, QUESTIONS, wanted) == tuple(
        text if asked else None for text, asked in zip(everything, wanted, strict=True)
    )


def test_what_ranks_too_low_needs_no_unknown_name():
    live = tiny_live()
    answers = measure(live, QUESTIONS, generated=False).answers
    limit = sorted(answer.rank for answer in answers)[len(answers) // 2]
    found = measure_unknown_of_likely(live, QUESTIONS, answers, Scoring(max_rank=limit))
    for answer, short, whole in zip(answers, found, measure_unknown(live, QUESTIONS), strict=True):
        assert (short is None) == (answer.rank > limit)
        assert short is None or short.total == pytest.approx(whole.total, abs=1e-4)
        if short is None:
            reason = why_excluded(answer, None, Scoring(max_rank=limit))
            assert reason == f"not known: the answer has rank {answer.rank}, allowed is {limit}"
