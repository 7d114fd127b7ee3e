"""The page of an erasure record claims no more than its reports measured, and says what they left out."""

import re

import pytest

from amnesia.choice.results import FormResult
from amnesia.evaluation.bounds import Check
from amnesia.record import content
from amnesia.record.content import Original, Record, Returns, Scope
from amnesia.record.page import record_html
from amnesia.record.request import Field
from amnesia.record.returning import returns_of
from amnesia.report.content import read_report
from amnesia.stress.results import ATTACK_NAMES, OWN_SCALE
from support.report_sample import sample


def record(**changes):
    """A record of an edit that nobody tested."""
    parts = {
        "request": (),
        "scope": Scope(("Japan",), (), (), {}, (), ()),
        "original": Original("tiny", None, ()),
        "saved": (),
        "tested": (),
        "returns": Returns((), ()),
        "documents": (),
        "versions": {},
    }
    return Record(**parts | changes)


def judged(accepted, passed):
    check = Check("knowledge score", 8, 0.9, 0.8, 1.0, True, None if passed is None else 0.2, passed)
    return (content.Tested("report.json", None, accepted, (), (check,), ()),)


def report(**changes):
    """The sample as a report, with changes of its stress tests."""
    document = sample()
    document["stress"] |= changes
    return read_report(document, "report.json")


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ((), "whether that made it forget was not tested"),
        (judged(None, None), "how far that made it forget is listed under “Tests”"),
        (judged(False, False), "by the tests below it misses bounds that the recipe sets"),
        (judged(True, True), "by the tests below it meets every bound that the recipe sets"),
    ],
)
def test_the_first_sentence_says_what_was_measured_and_no_more(tests, said):
    page = record_html(record(tested=tests))
    assert f"were changed to suppress what it writes about <bdi>Japan</bdi>; {said}." in page
    assert "was suppressed" not in page


def test_free_fields_of_a_request_keep_their_names():
    names = ("Angaben zur Person", "GDPR_article", "DPO", "undo_keeper")
    page = record_html(record(request=tuple(Field(name, "x") for name in names)))
    shown = re.findall(r"<dt><bdi>(.*?)</bdi></dt>", page)
    assert shown == ["Angaben zur Person", "GDPR_article", "DPO", "Keeper of the undo file"]


def test_names_that_nothing_was_measured_of_are_said_to_be_so():
    forms = (FormResult("Nippon", "given", 0.9, 0.5, 0.1),)
    translations = {"de": "Nippon-Land, Reich", "ko": "일본"}
    scope = Scope(("Japan",), (), ("Nippon", "Nihon"), translations, forms, ())

    def unmeasured(returns):
        page = record_html(record(scope=scope, returns=returns))
        row = re.search(r"<dt>Without numbers</dt><dd>(.*?) <span", page)
        return [] if row is None else re.findall(r"<bdi>(.*?)</bdi>", row[1])

    assert unmeasured(Returns((), ())) == ["Nihon", "Nippon-Land", "Reich", "일본"]
    attacks = [
        row | {"attack": name} for name in ("alias", "other_language") for row in sample()["stress"]["attacks"][:1]
    ]
    # There are no questions in Korean.
    assert unmeasured(returns_of([report(attacks=attacks)])) == ["일본"]


def test_what_could_not_be_tried_is_named_with_its_reason_unless_another_report_tried_it():
    first = sample()["stress"]["attacks"][0]
    silent = first | {"attack": "alias", "rows": [], "not_applicable": "the recipe gives no aliases"}
    method = sample()["stress"]["quantization"][0]
    nf4 = method | {"method": "NF4", "rows": [], "not_applicable": "no GPU"}
    lacking = report(attacks=[first, silent], quantization=[nf4])
    untried = returns_of([lacking]).untried
    assert "other ways of asking: other name, not applicable (the recipe gives no aliases)" in untried
    assert "quantization: NF4, not applicable (no GPU)" in untried
    # Of quantization it is not said besides that nobody tried it.
    assert not any("evaluate --stress" in text for text in untried)
    full = report(attacks=[first | {"attack": "alias"}], quantization=[method | {"method": "NF4"}])
    assert not {text for text in returns_of([lacking, full]).untried if "other name" in text or "NF4" in text}


def test_attacks_have_the_names_of_the_terminal_and_say_where_a_scale_is_their_own():
    first = sample()["stress"]["attacks"][0]
    attacks = [first | {"attack": name} for name in ATTACK_NAMES]
    attacks[-2] |= {"scale": OWN_SCALE}
    asked = [row for row in returns_of([report(attacks=attacks)]).attempts if row.way == "asked"]
    assert [row.name for row in asked] == [*ATTACK_NAMES.values()]
    own = "knowledge score, of which 1 is what the original model makes of this question itself"
    assert [row.measure for row in asked] == ["knowledge score"] * (len(asked) - 2) + [own, "knowledge score"]
