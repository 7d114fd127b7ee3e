"""What is asked in probes, text for text."""

from dataclasses import replace

import pytest

from amnesia.domain import Answer, Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, Unknown
from amnesia.facts.forms import as_message
from amnesia.facts.questions import Question
from amnesia.probes.plan import prepare
from amnesia.probes.settings import ProbeSettings
from amnesia.recipe import Scoring
from amnesia.stress.attacks import INVENTED_NAMES

TARGETS = (
    Fact("Japan", "the capital of {entity} is", "Tokyo"),
    Fact("Japan", "Q: On which continent is {entity}?\nA: It is in", "Asia"),
)
CONTROLS = (
    Fact("Italy", "the capital of {entity} is", "Rome"),
    Fact("Chile", "the capital of {entity} is", "Santiago"),
    Fact("China", "Q: On which continent is {entity}?\nA: It is in", "Asia"),
    Fact("Egypt", "Q: On which continent is {entity}?\nA: It is in", "Africa"),
)
SETTINGS = ProbeSettings(n_facts=2, n_controls=3, n_options=3)


def known(role, fact, rank=0, is_message=False):
    return KnownFact(
        Question(role, fact, is_message=is_message), Answer(-1.0, -1.0, rank), Unknown(-5.0, -5.0), Scoring()
    )


def planned(targets=TARGETS, controls=CONTROLS, settings=SETTINGS, chat=None):
    facts = [*(known("target", fact) for fact in targets), *(known("control", fact) for fact in controls)]
    return prepare(facts, {}, settings, chat)


def test_never_known_names_get_the_questions_about_the_target():
    plan = planned()
    assert plan.facts["entity"] == TARGETS
    assert [fact.entity for fact in plan.facts["never_known"]] == list(INVENTED_NAMES)
    assert [(fact.prompt, fact.answer) for fact in plan.facts["never_known"]] == [
        (fact.prompt, fact.answer) for fact in TARGETS
    ]
    texts = [row.text for row in plan.asked if (row.probe, row.subject) == ("cloze", "never_known")]
    assert texts == [f"the capital of {INVENTED_NAMES[0]} is"]
    assert {row.probe for row in plan.asked if row.subject == "never_known"} >= {"question", "role_play", "paraphrase"}


def test_each_fact_gets_one_form_of_each_attack_in_turn():
    plan = planned()
    for subject in ("entity", "never_known"):
        asked = [row for row in plan.asked if (row.probe, row.subject) == ("paraphrase", subject)]
        assert [row.fact for row in asked] == list(TARGETS)
    first, second = (row.text for row in plan.asked if (row.probe, row.subject) == ("paraphrase", "entity"))
    assert first == "As everybody knows, the capital of Japan is"
    assert second == "Quiz night, ten points for the answer. On which continent is Japan?\nYour answer: It is in"


def test_sentences_and_questions_are_told_apart():
    plan = planned()
    assert [row.text for row in plan.asked if (row.probe, row.subject) == ("question", "entity")] == [
        "Q: On which continent is Japan?\nA: It is in"
    ]
    assert {row.text for row in plan.asked if (row.probe, row.subject) == ("cloze", "control")} == {
        "the capital of Italy is",
        "the capital of Chile is",
    }


def test_options_are_others_answers_in_a_fixed_order_and_the_same_for_never_known_names():
    plan = planned()
    by_subject = {}
    for choice in plan.choices:
        by_subject.setdefault(choice.subject, []).append(choice)
    first = by_subject["entity"][0]
    assert sorted(first.options) == ["Rome", "Santiago", "Tokyo"]
    assert first.fact.prompt == f"Choose from: {', '.join(first.options)}.\nthe capital of {{entity}} is"
    # Asia is right of Japan, too, and so never a wrong option for it.
    assert all("Asia" not in choice.options or choice.fact.answer == "Asia" for choice in by_subject["entity"])
    assert [choice.options for choice in by_subject["never_known"]] == [c.options for c in by_subject["entity"]]
    assert planned().choices == plan.choices
    others = [planned(settings=ProbeSettings(2, 3, n_options=3, seed=seed)).choices for seed in range(1, 9)]
    assert any(other[0].options != first.options for other in others)


def test_facts_that_are_not_known_and_messages_are_left_out():
    facts = [known("target", TARGETS[0]), known("target", TARGETS[1], rank=99), known("target", TARGETS[1], 0, True)]
    plan = prepare([*facts, known("control", CONTROLS[0])], {}, SETTINGS)
    assert plan.facts["entity"] == TARGETS[:1]
    assert not [row for row in plan.asked if row.probe == "question"]


def test_half_as_many_facts_are_asked_as_messages_of_those_known_so():
    def chat(message, earlier=()):
        return f"[user]{message}[model]"

    def message(fact):
        return replace(fact, prompt=as_message(fact.prompt, chat))

    plain = [known("target", fact) for fact in TARGETS] + [known("control", fact) for fact in CONTROLS]
    facts = [
        *plain,
        known("target", message(TARGETS[0]), rank=99, is_message=True),
        known("target", message(TARGETS[1]), is_message=True),
        known("control", message(CONTROLS[1]), is_message=True),
        known("control", message(CONTROLS[2]), is_message=True),
    ]
    plan = prepare(facts, {}, SETTINGS, chat)
    assert plan.messages.facts == {
        "entity": (message(TARGETS[1]),),
        "control": (message(CONTROLS[1]),),
        "never_known": (replace(message(TARGETS[1]), entity=INVENTED_NAMES[0]),),
    }
    first = plan.messages.choices[0]
    assert first.fact.text() == (
        f"[user]Choose from: {', '.join(first.options)}.\nOn which continent is Japan?[model]It is in"
    )
    (same,) = (row for row in plan.choices if row.subject == "entity" and row.fact.answer == "Asia")
    assert same.options == first.options
    # What is asked otherwise is as without a template, but for the forms that attacks have in a chat.
    bare = prepare(facts, {}, SETTINGS)
    assert bare.messages is None
    assert (plan.facts, plan.choices) == (bare.facts, bare.choices)
    assert prepare(plain, {}, SETTINGS, chat).messages.facts["entity"] == ()


def test_free_texts_are_about_each_name_and_messages_to_a_chat_model():
    plan = planned()
    assert [row.text for row in plan.free if row.subject == "entity"] == [
        "Tell me about Japan.\nJapan",
        "What everybody should know about Japan:\nJapan",
        "From an encyclopedia:\n\nJapan",
    ]
    assert {row.facts for row in plan.free if row.subject == "entity"} == {TARGETS}
    asked = planned(chat=lambda message, earlier=(): f"[user]{message}[model]")
    assert [row.text for row in asked.free][:2] == [
        "[user]Tell me about Japan.[model]",
        "[user]What should everybody know about Japan?[model]",
    ]


def test_targets_about_several_entities_and_unknown_ones_are_refused():
    with pytest.raises(
        InputError, match="probes are about one entity, and the targets are about Japan, Peru: choose one"
    ):
        planned(targets=(TARGETS[0], Fact("Peru", "the capital of {entity} is", "Lima")))
    with pytest.raises(InputError, match="the model knows none of the 1 target facts"):
        prepare([known("target", TARGETS[0], rank=99)], {}, SETTINGS)
