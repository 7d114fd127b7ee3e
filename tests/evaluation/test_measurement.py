import pytest
import torch

from amnesia.domain import Answer, Fact
from amnesia.evaluation.measurement import known_facts, measure, measure_unknown, write, written
from amnesia.facts.names import unseen_names
from amnesia.facts.questions import Question
from amnesia.live.forward import answer_logprobs
from amnesia.recipe import Scoring
from support.tiny_text import tiny_live

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))


def test_the_unknown_level_is_the_mean_over_unseen_names():
    live = tiny_live()
    found = measure_unknown(live, [TARGET])[TARGET]
    single = [answer_logprobs(live, [(f"the capital of {name} is", "Tokyo")])[0] for name in unseen_names("Japan")]
    assert found.total == pytest.approx(sum(row.logprob for row in single) / 5, abs=1e-4)
    assert found.first == pytest.approx(sum(row.logprob_first for row in single) / 5, abs=1e-4)


WORDINGS = ("the capital of {entity} is", "people in {entity} like", "Question: who?\nAnswer: in {entity} it is the")
QUESTIONS = [
    Question("control", Fact(name, wording, answer))
    for name in ("Japan", "the United Kingdom", "Peru", "日本")
    for wording in WORDINGS
    for answer in ("Tokyo", "bread and water in the kitchen", "—")
]
PAIRS = [question.pair for question in QUESTIONS]


def written_alone(live):
    """What is written after each prompt by plain transformers."""
    texts = {}
    for prompt in {question.fact.text() for question in QUESTIONS}:
        start = live.tokenizer(prompt)["input_ids"]
        row = live.model.generate(torch.tensor([start]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        texts[prompt] = live.tokenizer.decode(row[len(start) :], skip_special_tokens=True)
    return texts


def answered_alone(live, question):
    """(log-probability, of the first token, rank) by plain transformers."""
    plain, prompt = live.model, question.fact.text()
    start, whole = (live.tokenizer(one)["input_ids"] for one in (prompt, f"{prompt} {question.fact.answer}"))
    assert whole[: len(start)] == start
    with torch.no_grad():
        logprobs = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
    each = [logprobs[place - 1, whole[place]].item() for place in range(len(start), len(whole))]
    rank = (logprobs[len(start) - 1] > logprobs[len(start) - 1, whole[len(start)]]).sum().item()
    return sum(each), each[0], rank


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_answers_are_those_of_plain_transformers_on_single_prompts(monkeypatch, model_type):
    live = tiny_live(model_type, bos=True)
    alone, alone_texts = {question: answered_alone(live, question) for question in QUESTIONS}, written_alone(live)
    for side, batch in (("left", 1), ("right", 5), ("right", 256)):
        live.tokenizer.padding_side = side
        monkeypatch.setattr("amnesia.evaluation.measurement.BATCH", batch)
        found = measure(live, PAIRS)
        texts = write(live, [prompt for prompt, _ in PAIRS])
        assert texts == alone_texts
        for question, (logprob, first, rank) in alone.items():
            answer = found[question.pair]
            assert answer.logprob == pytest.approx(logprob, abs=1e-4)
            assert answer.logprob_first == pytest.approx(first, abs=1e-4)
            assert answer.rank == rank


def test_a_text_is_judged_by_all_right_answers():
    fact = Fact("Japan", "the capital of {entity} is", "Tokyo", answer_aliases=("Edo",))
    answer = Answer(-1.0, -0.5, 0)
    assert written(answer, fact, " Edo, of old") == Answer(-1.0, -0.5, 0, " Edo, of old", True, "answer")
    assert written(answer, fact, "") == Answer(-1.0, -0.5, 0, "", False, "empty")


def test_what_ranks_too_low_needs_no_unknown_name():
    live = tiny_live()
    ranks = {pair: answer.rank for pair, answer in measure(live, PAIRS).items()}
    limit = sorted(ranks.values())[len(ranks) // 2]
    whole = measure_unknown(live, QUESTIONS)
    for fact in known_facts(live, QUESTIONS, Scoring(min_nats=-1e9, max_rank=limit)):
        rank = ranks[fact.pair]
        assert (fact.unknown is None) == (rank > limit)
        if fact.unknown is None:
            assert fact.excluded == f"not known: the answer has rank {rank}, allowed is {limit}"
        else:
            assert fact.excluded is None
            assert fact.unknown.total == pytest.approx(whole[fact.question].total, abs=1e-4)
    for fact in known_facts(live, QUESTIONS, Scoring(max_rank=limit), unlikely=True):
        assert fact.unknown == whole[fact.question]
