"""What probes come to, from replies made by hand."""

import math
from dataclasses import replace

import pytest

from amnesia.domain import Answer, Fact
from amnesia.facts.names import unseen_names
from amnesia.probes.conclusion import conclude, leak_at
from amnesia.probes.findings import probe_findings
from amnesia.probes.plan import Asked, Choice, FreePrompt, MessagePlan, ProbePlan
from amnesia.probes.report import probes_text
from amnesia.probes.settings import ProbeSettings
from amnesia.probes.trial import Probed

OWN = (Fact("Japan", "the capital of {entity} is", "Tokyo"), Fact("Japan", "Q: Where is {entity}?\nA:", "Asia"))
OTHER = (Fact("Italy", "the capital of {entity} is", "Rome"),)
NOBODY = tuple(replace(fact, entity="Belmoria") for fact in OWN)
FACTS = {"entity": OWN, "control": OTHER, "never_known": NOBODY}
SETTINGS = ProbeSettings(n_samples=4, counts=(1, 4, 9), top_rank=3)
CHOICES = tuple(Choice(subject, fact, (fact.answer, "Lima")) for subject, facts in FACTS.items() for fact in facts)
PLAN = ProbePlan(
    FACTS,
    (
        *tuple(
            Asked("question" if "?" in fact.prompt else "cloze", subject, fact, fact.text(), fact.right_answers)
            for subject, facts in FACTS.items()
            for fact in facts
        ),
        Asked("role_play", "entity", OWN[0], "one", ("Tokyo",)),
        Asked("role_play", "entity", OWN[0], "two", ("Tokyo",)),
        Asked("role_play", "never_known", OWN[0], "nobody", ("Tokyo",)),
    ),
    {"role_play": ("A role.", None), "two_hop": ("By a description.", "no fact can be described")},
    CHOICES,
    (
        FreePrompt("entity", "Tell me about Japan", OWN),
        FreePrompt("entity", "Japan is", OWN),
        FreePrompt("never_known", "Tell me about Belmoria", NOBODY),
    ),
    SETTINGS,
)


def logprobs(known):
    """Of each option, for the entity and unseen names: the right one gains 2 nats where it is known, and loses 1 else."""
    found = {}
    for choice in CHOICES:
        fact = choice.fact
        for name in (fact.entity, *unseen_names(fact.entity)):
            for option in choice.options:
                gain = 0.0 if name != fact.entity or option != fact.answer else 2.0 if fact in known else -1.0
                # The wrong option is likelier in itself, which is not what counts.
                found[fact.text(name), option] = Answer(-9.0 * (option == fact.answer) - 1.0 + gain, -1.0, 0)
    return found


def probed(known, replies=(), texts=(), drawn=None):
    """A model that knows some of the facts."""
    facts = [fact for some in FACTS.values() for fact in some]
    right = {fact.text(): fact.answer if fact in known else "a city" for fact in facts}
    return Probed(
        right | {"one": "a", "two": "b", "nobody": "c"} | dict(replies),
        logprobs(known),
        {fact.text(): drawn or ((fact.answer,) if fact in known else ("no",)) * 4 for fact in facts},
        {fact: ((50, 40), (9, 0 if fact in known else 7)) for fact in facts},
        {row.text: "nothing" for row in PLAN.free} | dict(texts),
    )


def shares(found, name):
    (probe,) = (row for row in found.probes if row.probe == name)
    return {(row.subject, row.model): row.share.mean for row in probe.rows}


def test_leak_by_hand():
    assert leak_at(4, 0, 3) == 0.0
    assert leak_at(4, 1, 1) == 0.25
    assert leak_at(4, 1, 4) == 1.0
    # Of the six pairs of four answers, one has neither of the two right ones.
    assert leak_at(4, 2, 2) == pytest.approx(5 / 6)
    assert leak_at(20, 3, 5) == pytest.approx(1 - math.comb(17, 5) / math.comb(20, 5))


def test_every_probe_by_hand():
    original = probed(
        (*OWN, *OTHER),
        replies={"one": "Tokyo", "two": "no"},
        texts={"Japan is": "It lies in\nAsia.", "Tell me about Japan": "It is big."},
        drawn=("Tokyo", "no", "Asia", "Rome"),
    )
    edited = probed(OTHER, replies={OWN[0].text(): "I don't know", OTHER[0].text(): "Rome"})
    found = conclude(PLAN, original, edited)
    assert shares(found, "cloze") == {
        ("entity", "original"): 1.0,
        ("entity", "edited"): 0.0,
        ("control", "original"): 1.0,
        ("control", "edited"): 1.0,
        ("never_known", "original"): 0.0,
        ("never_known", "edited"): 0.0,
    }
    assert shares(found, "question")["entity", "original"] == 1.0
    assert ("control", "original") not in shares(found, "question")
    choices = shares(found, "multiple_choice")
    assert (choices["entity", "original"], choices["entity", "edited"]) == (1.0, 0.0)
    assert (choices["control", "edited"], choices["never_known", "original"]) == (1.0, 0.0)
    assert shares(found, "role_play")["entity", "original"] == 0.5
    assert shares(found, "leak@1")["entity", "original"] == pytest.approx(0.25)
    assert shares(found, "leak@4")["entity", "original"] == 1.0
    assert shares(found, "leak@4")["entity", "edited"] == 0.0
    assert "leak@9" not in {row.probe for row in found.probes}, "only four are drawn"
    assert shares(found, "lens_answer")["entity", "original"] == 1.0
    assert shares(found, "lens_answer")["never_known", "original"] == 0.0
    assert shares(found, "free_text")["entity", "original"] == 0.5
    assert shares(found, "false_answer")["entity", "edited"] == 0.5
    assert shares(found, "no_answer")["entity", "edited"] == 0.5
    (probe,) = (row for row in found.probes if row.probe == "two_hop")
    assert (probe.rows, probe.not_applicable) == ((), "no fact can be described")
    curve = next(row for row in found.lens if (row.place, row.subject, row.model) == ("answer", "entity", "edited"))
    assert (curve.n, curve.ranks) == (2, (9.0, 7.0))
    assert (found.texts[0].original, found.texts[0].edited) == ("It is big.", "nothing")


def test_messages_have_rows_of_their_own_by_hand():
    messages = {
        subject: (replace(facts[0], prompt=f"[{facts[0].prompt}]"),)
        for subject, facts in FACTS.items()
        if subject != "control"
    } | {"control": ()}
    own, nobody = messages["entity"][0], messages["never_known"][0]
    choices = tuple(Choice(subject, row, ("Tokyo", "Lima")) for subject, rows in messages.items() for row in rows)
    plan = replace(PLAN, messages=MessagePlan(messages, choices))

    def asked(model, is_known):
        gains = {
            (row.text(name), option): Answer(2.0 * (is_known and (name, option) == ("Japan", "Tokyo")), -1.0, 0)
            for row in (own, nobody)
            for name in (row.entity, *unseen_names(row.entity))
            for option in ("Tokyo", "Lima")
        }
        drawn = ("Tokyo", "no", "no", "no") if is_known else ("no",) * 4
        return replace(
            model,
            replies=model.replies | {own.text(): "Tokyo" if is_known else "no", nobody.text(): "a city"},
            choices=model.choices | gains,
            samples=model.samples | {own.text(): drawn, nobody.text(): ("no",) * 4},
            ranks=model.ranks | {own: ((9, 9), (9, 0 if is_known else 9)), nobody: ((9, 9), (9, 9))},
        )

    original, edited = probed((*OWN, *OTHER)), probed(OTHER)
    found = conclude(plan, asked(original, True), asked(edited, False))
    bare = conclude(PLAN, original, edited)
    assert found.probes[: len(bare.probes)] == bare.probes and found.lens == bare.lens
    more = {row.probe: row for row in found.probes[len(bare.probes) :]}
    expected = {
        "message": 1.0, "multiple_choice_as_message": 1.0, "leak@1_as_message": 0.25, "leak@4_as_message": 1.0,
        "lens_answer_as_message": 1.0,
    }  # fmt: skip
    assert list(more) == list(expected)
    for name, share in expected.items():
        assert shares(found, name) == {
            ("entity", "original"): share,
            ("entity", "edited"): 0.0,
            ("never_known", "original"): 0.0,
            ("never_known", "edited"): 0.0,
        }
        assert more[name].found and "message" in more[name].description
    lines = probes_text(found, "Japan").splitlines()
    assert any(line.startswith("leak@4, as a message") for line in lines)
    nothing = conclude(replace(PLAN, messages=MessagePlan({"entity": ()}, ())), original, edited)
    reasons = [row.not_applicable for row in nothing.probes[len(bare.probes) :]]
    assert reasons == ["no fact is known when it is asked as a message"] * 5


def test_the_same_model_twice_shows_no_change_on_any_probe():
    one = probed((*OWN, *OTHER))
    found = conclude(PLAN, one, one)
    for probe in found.probes:
        by_model = [
            [(row.subject, row.n, row.share) for row in probe.rows if row.model == model]
            for model in ("original", "edited")
        ]
        assert by_model[0] == by_model[1]
    assert any(row.level == "warning" and "shows in the probe" in row.text for row in probe_findings(found, "Japan"))


def test_what_is_forgotten_shows_nowhere_and_what_is_lost_of_others_is_damage():
    original = probed((*OWN, *OTHER), replies={"one": "Tokyo"})
    found = probe_findings(conclude(PLAN, original, probed(OTHER)), "Japan")
    assert [row.level for row in found] == ["good", "info"]
    assert "finds it in the edited one" in found[0].text
    assert found[1].text.endswith("say nothing: free text.")
    lost = probe_findings(conclude(PLAN, original, probed((), {OTHER[0].text(): ""})), "Japan")
    damage = [row.text for row in lost if row.level == "damage"]
    assert "Questions about others have begun to go unanswered: 0\xa0% before, 100\xa0% after." in damage
    assert any("sentence to complete" in text for text in damage) and any("leak@4" in text for text in damage)


def test_what_a_never_known_name_is_credited_with_counts_against_a_probe():
    known = (*OWN, *OTHER, *NOBODY)
    found = conclude(PLAN, probed(known), probed(known))
    assert not any(row.found for row in found.probes)
    (said,) = probe_findings(found, "Japan")
    assert said.level == "info" and "so say nothing" in said.text


def test_one_model_alone_has_no_second_column():
    found = conclude(PLAN, probed((*OWN, *OTHER)), None)
    assert {row.model for probe in found.probes for row in probe.rows} == {"original"}
    assert {row.edited for row in found.texts} == {None}
    (said,) = probe_findings(found, "Japan")
    assert said.level == "info" and "original" not in said.text
    text = probes_text(found, "Japan")
    assert "→" not in text and "original" not in text and "(little)" in text


def test_layers_that_cannot_be_read_out_leave_the_rest():
    reason = "the layers of m cannot be read out"
    one = replace(probed((*OWN, *OTHER)), ranks=reason)
    found = conclude(PLAN, one, one)
    assert [row.not_applicable for row in found.probes if row.probe == "lens_answer"] == [reason]
    assert found.lens == ()
    assert shares(found, "cloze")["entity", "edited"] == 1.0


def test_the_table_on_the_terminal():
    lines = probes_text(conclude(PLAN, probed((*OWN, *OTHER)), probed(OTHER)), "Japan").splitlines()
    (choice,) = (line for line in lines if line.startswith("multiple choice"))
    assert choice.split() == "multiple choice 50 % 100 % → 0 % 100 % → 100 % 0 % → 0 %".split()
    assert any(line.startswith("described") and "no fact can be described" in line for line in lines)
    assert "good: None of" in lines[-2]
