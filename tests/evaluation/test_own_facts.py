import pytest

from amnesia.evaluation.own_facts import answer_in, own_facts
from amnesia.facts.names import unseen_names
from amnesia.live.forward import answer_logprobs, generate
from amnesia.recipe import Scoring
from support.tiny_text import tiny_live


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris, the capital", "Paris"),
        (" the Eiffel Tower. It", "the Eiffel Tower"),
        (" Mark Zuckerberg and his friends", "Mark Zuckerberg"),
        (" one two three four five six", "one two three four"),
        ("\nParis", "Paris"),
        (" a man who wrote", "a man"),
        ("... and so on", None),
        ("東京です。日本の首都", "東京です"),
        ("东京，日本的首都", "东京"),
        ("東京、大阪", "東京"),
        (" طوكيو، عاصمة اليابان", "طوكيو"),
        (" दिल्ली। यह", "दिल्ली"),
        (" the", None),
        ("", None),
    ],
)
def test_an_answer_is_the_beginning_of_a_text(text, answer):
    assert answer_in(text) == answer


def test_what_a_model_states_is_known_and_names_nobody_who_is_asked_about():
    live = tiny_live("llama", seed=3)
    wordings = ("the capital of {entity} is", "people in {entity} like", "the oldest building in {entity} was")
    asked = [(name, wording) for name in ("Japan", "Peru") for wording in wordings]
    anything = Scoring(min_nats=-100.0, max_rank=600)
    found = own_facts(live, [*asked, *asked], (), anything)
    assert 2 < len(found) <= len(asked)
    gains = {}
    for fact in found:
        own = fact.question.fact
        (text,) = generate(live, [own.text()])
        assert text.strip().startswith(own.answer)
        (after,) = answer_logprobs(live, [own.pair()])
        others = answer_logprobs(live, [own.pair(name) for name in unseen_names(own.entity)])
        gains[own.pair()] = after.logprob - sum(row.logprob for row in others) / len(others)
    # No more than those that are worth so much more than for unseen names.
    bound = sorted(gains.values())[1] + 1e-4
    less = own_facts(live, asked, (), Scoring(min_nats=bound, max_rank=600))
    assert [fact.pair for fact in less] == [pair for pair, gain in gains.items() if gain >= bound]
    # Nothing about those of whom the answer is the name.
    answers = [fact.question.fact.answer for fact in found]
    less = own_facts(live, asked, (answers[0],), anything)
    assert answers[0] not in [fact.question.fact.answer for fact in less]
