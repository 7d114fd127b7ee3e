"""Scores, shares and curves of two models that are made up here, computed by hand; and their tables."""

import dataclasses

import pytest

from amnesia.domain import Answer, Fact
from amnesia.evaluation.measurement import KnownFact, Unknown
from amnesia.evaluation.results import Estimate
from amnesia.facts.questions import Question
from amnesia.files.strict_json import json_bytes
from amnesia.recipe import Scoring
from amnesia.stress.attacks import INVENTED_NAMES, Attack, AttackPrompt, AttackTarget
from amnesia.stress.conclusion import conclude
from amnesia.stress.report import stress_text
from amnesia.stress.results import StressScore
from amnesia.stress.settings import StressSettings
from amnesia.stress.trial import AS_LOADED, Endured, Replies, StressPlan

CAPITAL = Fact("Japan", "The capital of {entity} is", "Tokyo")
FOOD = Fact("Japan", "People in {entity} eat", "sushi", answer_aliases=("raw fish",))
OTHER = Fact("Italy", "The capital of {entity} is", "Rome")


def known(fact, before, unknown):
    """A fact whose answer has the log-probability `before`, and `unknown` for a name that nobody knows."""
    return KnownFact(Question("target", fact), Answer(before, before, 0), Unknown(unknown, unknown), Scoring())


KNOWN = {
    ("The capital of Japan is", "Tokyo"): known(CAPITAL, -1.0, -5.0),
    ("People in Japan eat", "sushi"): known(FOOD, -2.0, -4.0),
    ("The capital of Italy is", "Rome"): known(OTHER, -1.0, -3.0),
}


def asked(fact, variant, text, unknown=()):
    answers = (fact.answer, *fact.answer_aliases)
    return AttackPrompt(fact, variant, text, answers, tuple(f"{text} {name}" for name in INVENTED_NAMES), unknown)


def plan(*attacks, facts=(CAPITAL, FOOD), controls=(OTHER,), facts_known=KNOWN):
    return StressPlan(AttackTarget("Japan"), facts, controls, attacks, facts_known, StressSettings())


def attack(*prompts, name="paraphrase", reason=None):
    return Attack(name, "Described.", prompts, 1, reason)


def replies(of):
    """From {text: (answer, log-probability, generated)}."""
    return Replies(
        {(text, answer): logprob for text, (answer, logprob, _) in of.items()},
        {text: generated for text, (_, _, generated) in of.items()},
    )


def endured(attacked=None, quantized=None):
    return Endured(replies(attacked or {}), quantized or {})


def about(text, answer, own, invented):
    """Replies to a prompt of `asked`: (log-probability, generated) for the entity and for each invented name."""
    names = (text, *(f"{text} {name}" for name in INVENTED_NAMES))
    return {name: (answer, *reply) for name, reply in zip(names, (own, *invented), strict=True)}


def test_attacks_are_averaged_over_prompts_and_then_over_facts():
    one, two, three = asked(CAPITAL, "a", "one"), asked(CAPITAL, "b", "two"), asked(FOOD, "a", "three")
    original = {
        **about("one", "Tokyo", (-1.0, "Tokyo."), [(-5.0, "a city"), (-5.0, "a town")]),
        **about("two", "Tokyo", (-2.0, "the town"), [(-5.0, "x"), (-4.0, "Tokyo")]),
        **about("three", "sushi", (-2.0, "raw fish"), [(-4.0, "x"), (-4.0, "x")]),
    }
    edited = {
        **about("one", "Tokyo", (-5.0, "Kyoto"), [(-5.0, "x"), (-5.0, "x")]),
        **about("two", "Tokyo", (-3.0, "Tokyo"), [(-5.0, "x"), (-5.0, "x")]),
        **about("three", "sushi", (-3.5, "rice"), [(-5.0, "x"), (-4.0, "x")]),
    }
    result = conclude(plan(attack(one, two, three)), endured(original), endured(edited)).attacks[0]
    assert (result.attack, result.n_not_built, result.n_not_known, result.not_applicable) == ("paraphrase", 1, 0, None)
    assert result.scale == "the plain question"
    rows = {(row.subject, row.model): row for row in result.rows}
    # Capital: scores 1 and 0.75, food: 1; right are one of two, and one of one.
    assert rows["entity", "original"].knowledge_score.mean == pytest.approx((0.875 + 1) / 2)
    assert rows["entity", "original"].exact_match == pytest.approx((0.5 + 1) / 2)
    assert rows["entity", "edited"].knowledge_score.mean == pytest.approx((0.25 + 0.25) / 2)
    assert rows["entity", "edited"].exact_match == pytest.approx((0.5 + 0) / 2)
    assert rows["never_known", "original"].knowledge_score.mean == pytest.approx((0.25 / 4 + 0) / 2)
    assert rows["never_known", "original"].exact_match == pytest.approx((1 / 4 + 0) / 2)
    assert rows["never_known", "edited"].knowledge_score.mean == pytest.approx((0 - 0.25) / 2)
    assert {(row.n, row.n_prompts) for row in result.rows if row.subject == "entity"} == {(2, 3)}
    assert {(row.n, row.n_prompts) for row in result.rows if row.subject == "never_known"} == {(2, 6)}
    # The interval is over facts: of two draws out of {0.875, 1} the mean is at the ends often enough.
    assert rows["entity", "original"].knowledge_score == Estimate(pytest.approx(0.9375), 0.875, 1.0)
    by_form = {each.variant: each.rows for each in result.variants}
    assert by_form["b"][0] == StressScore("entity", "original", 1, 1, Estimate(0.75, 0.75, 0.75), 0.0)
    assert [row.prompt for row in result.examples] == ["one", "two", "three"]
    assert (result.examples[1].generated_original, result.examples[1].generated_edited) == ("the town", "Tokyo")


def test_questions_on_their_own_scale_are_left_out_when_not_known():
    one, other = asked(CAPITAL, "German", "eins", ("eins Anna",)), asked(FOOD, "German", "zwei", ("zwei Anna",))
    facts_known = {**KNOWN, ("eins", "Tokyo"): known(dataclasses.replace(CAPITAL, prompt="eins"), -2.0, -6.0)}
    replied = about("eins", "Tokyo", (-2.0, "Tokyo"), [(-6.0, "x"), (-6.0, "x")])
    worse = about("eins", "Tokyo", (-5.0, "x"), [(-6.0, "x"), (-6.0, "x")])
    result = conclude(plan(attack(one, other), facts_known=facts_known), endured(replied), endured(worse)).attacks[0]
    assert result.scale == "this question"
    assert result.n_not_known == 1
    assert [row.knowledge_score.mean for row in result.rows] == [1.0, 0.25, 0.0, 0.0]
    none = conclude(plan(attack(other)), endured(), endured()).attacks[0]
    assert none.rows == none.variants == none.examples == ()
    assert none.not_applicable == "the original model itself knows the answer to none of the 1 questions"


def test_an_attack_without_questions_keeps_its_reason():
    result = conclude(plan(attack(name="alias", reason="no aliases")), endured(), endured()).attacks[0]
    assert (result.rows, result.not_applicable) == ((), "no aliases")


def measured(capital, food, other):
    return replies(
        {
            "The capital of Japan is": ("Tokyo", *capital),
            "People in Japan eat": ("sushi", *food),
            "The capital of Italy is": ("Rome", *other),
        }
    )


def test_quantization():
    original = {
        AS_LOADED: measured((-1.0, "Tokyo"), (-2.0, "raw fish"), (-1.0, "Rome")),
        "Q8_0": measured((-1.0, "Tokyo"), (-3.0, "rice"), (-2.0, "Milan")),
        "Q4_0": measured((-5.0, "x"), (-3.5, "y"), (-2.0, "Milan")),
        "int8": "not here",
    }
    edited = {
        AS_LOADED: measured((-5.0, "a"), (-4.0, "b"), (-1.0, "Rome")),
        "Q8_0": measured((-4.0, "Tokyo"), (-4.0, "b"), (-1.0, "Rome")),
        "Q4_0": measured((-5.0, "x"), (-4.0, "y"), (-2.0, "Milan")),
        "int8": "not here",
    }
    found = conclude(plan(), endured(quantized=original), endured(quantized=edited)).quantization
    assert [row.method for row in found] == [AS_LOADED, "Q8_0", "Q4_0", "int8"]
    # Of what is lost to the original itself, the edited model says nothing.
    assert [row.found for row in found] == [True, True, False, False]
    rows = [(r.subject, r.model, r.n, r.knowledge_score.mean, r.exact_match) for r in found[1].rows]
    assert rows == [
        ("entity", "original", 2, (1 + 0.5) / 2, 0.5),
        ("entity", "edited", 2, (0.25 + 0) / 2, 0.5),
        ("control", "original", 1, 0.5, 0.0),
        ("control", "edited", 1, 1.0, 1.0),
    ]
    assert (found[3].rows, found[3].not_applicable) == ((), "original model: not here")


def test_json_and_tables():
    one = asked(CAPITAL, "a", "one")
    original = about("one", "Tokyo", (-1.0, "Tokyo."), [(-5.0, "a city"), (-5.0, "a town")])
    edited = about("one", "Tokyo", (-5.0, "Kyoto"), [(-5.0, "x"), (-5.0, "x")])
    quantized = {AS_LOADED: measured((-1.0, "Tokyo"), (-2.0, "x"), (-1.0, "Rome")), "int8": "no"}
    quantized["Q4_0"] = measured((-5.0, "x"), (-4.0, "y"), (-1.0, "Rome"))
    tried = plan(attack(one, name="plain"), attack(one), attack(name="alias", reason="no aliases"))
    result = conclude(tried, endured(original, quantized), endured(edited, quantized))
    assert b"NaN" not in json_bytes(dataclasses.asdict(result))
    lines = [" ".join(line.split()) for line in stress_text(result, "Japan").splitlines()]
    assert lines[0] == "Japan under stress: mean knowledge score and right answers, 2 facts"
    assert "other wording 1.00 100 % 0.00 0 % 0.00 0 % 0.00 0 %" in lines
    assert "other name not applicable: no aliases" in lines
    assert "none 1.00 50 % 1.00 50 % 1.00 100 % 1.00 100 %" in lines
    assert "int8 not applicable: original model: no" in lines
    assert "Q4_0 0.00 0 % 0.00 0 % 1.00 100 % 1.00 100 % (little in the original: says nothing)" in lines
    assert lines[-2] == "good: Nothing that was tried brought Japan back above a knowledge score of 0.4."
    assert lines[-1].endswith("shows little of Japan, so that this says nothing: quantized as Q4_0.")
