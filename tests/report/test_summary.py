"""The three sentences at the top of a page."""

import pytest

from amnesia.report.content import read_report
from amnesia.report.summary import summary
from amnesia.report.takeaway import takeaway
from support.report_sample import alone, sample, without


def said(document):
    return summary(read_report(document))


def test_without_trials_nothing_is_said_of_what_comes_back():
    _, gone, back, harmed = said(without("stress", "relearning", "probes"))
    assert gone == "Of 4 questions about France, the original model answers 4 correctly and the edited one 1."
    assert back == "What may bring it back was not looked at for this report."
    assert harmed.startswith("Of 10 questions about others it answers 10 correctly, before 10; perplexity")


def test_ways_in_which_it_comes_back_are_named():
    document = sample()
    text = (
        "France comes back when asked in other words: knowledge score 0.75 (plain questions 0.11, invented names 0.04)."
    )
    document["findings"].append({"level": "warning", "text": text})
    first, second = document["probes"]["probes"][:2]
    second["probe"] = "leak@20_as_message"
    for probe, mean in ((first, 0.875), (second, 0.5)):
        probe["rows"][1]["share"] = {"mean": mean, "low": mean, "high": mean}
    _, _, back, _ = said(document)
    shown = "in the probes “multiple choice” (88 %), “leak@20, as a message” (50 %)"
    assert back == f"It comes back when asked in other words; {shown}."
    first["rows"][1]["share"] = first["rows"][0]["share"] | {"mean": 0.25}
    assert said(document)[2].endswith("; in the probe “leak@20, as a message” (50 %).")
    document["probes"]["probes"] = [second] * 12
    assert said(document)[2].endswith(
        f"; in the probes {', '.join(['“leak@20, as a message” (50 %)'] * 5)} and 7 more."
    )


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (("stress", "relearning"), "(probes)."),
        (("probes", "relearning"), "(attacks, quantization)."),
        (("probes", "stress"), "(training)."),
        (("probes",), "(attacks, quantization, training)."),
    ],
)
def test_what_was_looked_at_in_vain_is_named(left, words):
    assert said(without(*left))[2] == f"Nothing that was tried brings it back {words}"


def test_what_could_not_be_tried_or_finds_nothing_in_the_original_is_not_said_to_bring_nothing_back():
    document = without("stress")
    for run in (run for run in document["relearning"]["runs"] if run["model"] == "edited"):
        run |= {"steps": [], "not_applicable": "in 16 bits nothing is trained"}
    for probe in document["probes"]["probes"]:
        probe["found"] = False
    assert said(document)[2] == "What may bring it back was not looked at for this report."


def test_held_out_wordings_that_are_left_are_not_gone():
    document = sample()
    (row,) = (row for row in document["aggregates"] if (row["kind"], row["group"]) == ("held_out_target", "all"))
    row["knowledge_score"]["mean"] = 0.94
    assert said(document)[2] == "It is not gone (0.94 of 1 is left), so that nothing needs to bring it back."


def test_what_is_not_gone_need_not_be_brought_back():
    document = sample()
    for row in document["aggregates"]:
        if (row["kind"], row["group"]) == ("target", "all"):
            row["knowledge_score"]["mean"] = 0.97
    assert said(document)[2] == "It is not gone (0.97 of 1 is left), so that nothing needs to bring it back."


def test_what_could_not_be_forgotten_or_kept_is_said_first():
    document = sample()
    assert said(document)[0] == (
        "Not forgotten: France, search wordings (1.00 → 0.27), FRANCE (0.62 → 0.50); "
        "not kept: Île-de-France (1.00 → 0.44), common questions (62 % → 50 %)."
    )
    document["aggregates"][0]["knowledge_score"]["mean"] = 0.2
    document["extraction"]["forms"][1]["after"] = 0.4
    document["extraction"]["neighbors"][0]["score"] = 0.9
    document["damage"]["ability"]["change"] |= {"low": -0.2, "high": 0.0}
    assert said(document)[0].startswith("Of 4 questions about France")
    document["damage"]["languages"][0]["perplexity_after"] = 33.3
    assert said(document)[0] == "Not kept: text in en (30.0 → 33.3 (+11.0 %))."


def test_the_table_has_what_failed_first_and_then_name_forms_neighbors_others_texts():
    rows = [
        (row.what, row.note, row.before, row.after, row.right, row.failed) for row in takeaway(read_report(sample()))
    ]
    assert rows == [
        ("France, search wordings", "2 facts", "1.00", "0.27", "100\xa0% → 50\xa0%", "not forgotten"),
        ("FRANCE", "form of the name France", "0.62", "0.50", "", "not forgotten"),
        ("Île-de-France", "neighbor, which shares a word with the name", "1.00", "0.44", "", "not kept"),
        ("common questions", "200 questions, chance 25\xa0%", "", "", "62\xa0% → 50\xa0%", "not kept"),
        ("France, held-out wordings", "2 facts", "1.00", "0.10", "100\xa0% → 0\xa0%", ""),
        ("1 other form", "of the name: france", "0.88", "0.12", "", ""),
        ("1 neighbor", "by a word of the name: Anatole France", "1.00", "0.97", "", ""),
        ("others, search facts", "5 facts", "1.00", "0.98", "100\xa0% → 100\xa0%", ""),
        ("others, held-out facts", "5 facts", "1.00", "0.98", "100\xa0% → 100\xa0%", ""),
        ("text in en", "perplexity per word", "30.0", "30.3 (+1.0\xa0%)", "", ""),
        ("text in de", "perplexity per word; the original is not fluent in it", "30.0", "33.0 (+10.0\xa0%)", "", ""),
    ]


def test_forms_and_neighbors_that_hold_share_a_row_with_the_worst_of_them():
    document = sample()
    document["extraction"]["forms"].append(
        {"name": "Frnce", "kind": "typo", "before": 0.5, "alone": 0.5, "after": 0.25}
    )
    rows = {row.what: row for row in takeaway(read_report(document))}
    row = rows["2 other forms"]
    assert (row.note, row.before, row.after) == ("of the name: france, Frnce; the worst", "0.50", "0.25")


def test_one_model_alone_has_one_sentence():
    assert said(alone()) == ("The model answers 4 of 4 questions about France correctly.",)
