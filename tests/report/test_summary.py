"""The three sentences at the top of a page."""

import pytest

from amnesia.report.content import read_report
from amnesia.report.summary import summary
from support.report_sample import alone, sample, without


def said(document):
    return summary(read_report(document))


def test_without_trials_nothing_is_said_of_what_comes_back():
    gone, back, harmed = said(without("stress", "relearning", "probes"))
    assert gone == "Of 4 questions about France, the original model answers 4 correctly and the edited one 1."
    assert back == "What may bring it back was not looked at for this report."
    assert harmed.startswith("Of 10 questions about others it answers 10 correctly, before 10; perplexity")


def test_ways_in_which_it_comes_back_are_named():
    document = sample()
    text = (
        "France comes back when asked in other words: knowledge score 0.75 (plain questions 0.11, invented names 0.04)."
    )
    document["findings"].append({"level": "warning", "text": text})
    for probe in document["probes"]["probes"][:2]:
        probe["rows"][1]["share"] = {"mean": 0.875, "low": 0.75, "high": 1.0}
    _, back, _ = said(document)
    assert back == "It comes back when asked in other words; in probes (multiple choice, leak@5)."


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (("stress", "relearning"), "among probes."),
        (("probes", "relearning"), "among attacks and quantization."),
        (("probes", "stress"), "among training."),
        (("probes",), "among attacks and quantization, training."),
    ],
)
def test_what_was_looked_at_in_vain_is_named(left, words):
    assert said(without(*left))[1] == f"Nothing brings it back {words}"


def test_what_is_not_gone_need_not_be_brought_back():
    document = sample()
    for row in document["aggregates"]:
        if (row["kind"], row["group"]) == ("target", "all"):
            row["knowledge_score"]["mean"] = 0.97
    assert said(document)[1] == "It is not gone (0.97 of 1 is left), so that nothing needs to bring it back."


def test_one_model_alone_has_one_sentence():
    assert said(alone()) == ("The model answers 4 of 4 questions about France correctly.",)
