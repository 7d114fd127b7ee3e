"""What is said about results that are known."""

import dataclasses

import pytest

from amnesia.evaluation.aggregation import aggregates
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.findings import LEVELS, findings
from amnesia.evaluation.results import Damage, Estimate, TextScore
from support.reports import prompt


def evaluation(target=0.0, held_out=0.1, control=1.0, ratio=1.0, kl=0.0, texts=(), **options):
    rows = []
    for role, split, score in (
        ("target", "search", target), ("target", "held_out", held_out),
        ("control", "search", control), ("control", "held_out", control),
    ):  # fmt: skip
        near = "same_relation" if role == "control" else None
        after = {"exact_match": score > 0.5, "reply": "answer", **options}
        row = prompt(role, score, split=split, neighborhood=near)
        row = dataclasses.replace(
            row,
            before=dataclasses.replace(row.before, exact_match=True, reply="answer"),
            after=dataclasses.replace(row.after, **after),
        )
        rows += [row] * 6
    texts = texts or (TextScore("news", "en", 90, 60, 20.0, 20.0 * ratio, kl),)
    return Evaluation(tuple(rows), aggregates(rows), Damage(20.0, 20.0 * ratio, texts, Estimate(kl, kl, kl)))


def said(found, level=None):
    return [item.text for item in findings(found, "Japan") if level in (None, item.level)]


def test_a_clean_edit_is_good_and_nothing_else():
    assert {item.level for item in findings(evaluation(), "Japan")} == {"good"}
    assert said(evaluation()) == [
        "Forgotten: Japan is like an unknown name; knowledge score 0.00 (search wordings) and 0.10 (held-out wordings).",
        "No damage seen: scores of facts about others are kept, perplexity of neutral text +0.0 %.",
    ]


@pytest.mark.parametrize(
    ("scores", "begins"),
    [
        ((1.0, 1.0), "No effect: the facts about Japan are known as before"),
        ((0.93, 1.2), "No effect"),
        ((0.1, 0.7), "Forgotten only where the search looked"),
        ((0.5, 0.5), "Partly forgotten"),
        ((0.99, 0.8), "Hardly forgotten: Japan is known as before in search wordings"),
        ((0.5, 0.95), "Hardly forgotten: Japan is known as before in held-out wordings"),
        ((0.2, 0.4), "Forgotten: Japan is like an unknown name"),
    ],
)
def test_how_much_is_forgotten(scores, begins):
    assert any(text.startswith(begins) for text in said(evaluation(*scores)))


def test_damage_comes_first_and_is_called_so():
    found = findings(evaluation(control=0.3, ratio=40.0, kl=5.0), "Japan")
    assert [item.level for item in found][:4] == ["damage"] * 4
    assert sorted(LEVELS.index(item.level) for item in found) == [LEVELS.index(item.level) for item in found]
    assert "Facts about others are damaged: controls have a knowledge score of 0.30." in said(evaluation(control=0.3))
    assert "Neutral text suffers: its perplexity is 40.00 times that of the original model." in said(
        evaluation(ratio=40.0), "damage"
    )
    assert not any("No damage" in item.text for item in found)


def test_nothing_good_is_said_about_others_of_whom_nothing_is_scored():
    found = evaluation()
    rows = [
        dataclasses.replace(row, knowledge_score=None, excluded="not known") if row.role == "control" else row
        for row in found.prompts
    ]
    found = dataclasses.replace(found, prompts=tuple(rows), aggregates=aggregates(rows))
    assert said(found, "good")[1:] == ["No damage seen: perplexity of neutral text +0.0\N{NO-BREAK SPACE}%."]
    assert len([text for text in said(found, "warning") if "knows none of the 6" in text]) == 2


def test_fewer_right_answers_about_others_are_told_where_the_interval_excludes_none():
    def with_lost(n):
        rows = [
            dataclasses.replace(row, after=dataclasses.replace(row.after, exact_match=place >= n))
            if row.role == "control"
            else row
            for place, row in enumerate(evaluation().prompts)
        ]
        return dataclasses.replace(evaluation(), prompts=tuple(rows), aggregates=aggregates(rows))

    assert not any("Fewer" in text for text in said(with_lost(0)))
    assert sum("Fewer questions about others" in text for text in said(with_lost(99), "warning")) == 2
    assert not any("No damage" in text for text in said(with_lost(99)))


def test_slight_damage_is_a_warning():
    assert said(evaluation(control=0.9), "damage") == []
    assert len(said(evaluation(control=0.9), "warning")) == 2
    assert len(said(evaluation(ratio=1.2), "warning")) == 1
    assert len(said(evaluation(kl=0.2), "warning")) == 1


def test_a_register_that_suffers_alone_is_named():
    texts = (TextScore("news", "en", 90, 60, 20.0, 20.0, 0.0), TextScore("prose", "de", 9, 6, 20.0, 90.0, 1.0))
    (text,) = said(evaluation(texts=texts), "damage")
    assert text == "Registers in which perplexity rises most: prose (de) 4.50 times."


def test_a_neighborhood_that_suffers_alone_is_named():
    good, bad = evaluation(), evaluation(control=0.2)
    near = [row for row in bad.prompts if (row.role, row.split) == ("control", "search")]
    far = [
        dataclasses.replace(row, neighborhood="unrelated")
        for row in good.prompts
        if (row.role, row.split) == ("control", "search")
    ]
    rows = (*good.prompts, *near, *far * 30)
    found = dataclasses.replace(good, prompts=rows, aggregates=aggregates(rows))
    assert "Among the controls these neighbors of the target suffer: same relation (0.60, 12 facts)." in said(found)


def test_right_answers_that_are_still_written_are_told():
    found = evaluation(exact_match=True)
    assert "The model still writes the right answer to 6 of 6 prompts about Japan (search wordings)." in said(found)


def test_refusals_and_empty_replies_are_told():
    assert "The edited model refuses to answer 12 of 12 prompts about others, the original 0." in said(
        evaluation(reply="refusal"), "warning"
    )
    assert "The edited model writes nothing in reply to 12 of 12 prompts about the target, the original 0." in said(
        evaluation(reply="empty"), "info"
    )


def test_what_is_not_known_is_told():
    found = evaluation()
    rows = [
        dataclasses.replace(row, knowledge_score=None, excluded="not known")
        if (row.role, row.split) == ("target", "held_out") or (row.role == "control" and index % 2)
        else row
        for index, row in enumerate(found.prompts)
        if (row.role, row.split) != ("control", "held_out")
    ]
    found = dataclasses.replace(found, prompts=tuple(rows), aggregates=aggregates(rows))
    assert said(found, "warning") == [
        "The original model knows none of the 6 held-out facts about the target: they have no score.",
        "There are no held-out facts about others: nothing is said about them.",
    ]
    assert "3 of 6 facts about others are not scored: the original does not know them." in said(found, "info")
    assert "Only 3 facts about others are scored: the interval says little." in said(found, "info")


def test_one_model_alone():
    found = dataclasses.replace(evaluation(), alone=True)
    assert said(found) == ["One model was measured: this says what it knows, and nothing about an edit."]
