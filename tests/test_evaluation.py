import pytest

from amnesia.domain import Damage, Estimate, Fact
from amnesia.errors import InputError
from amnesia.evaluation import compare
from amnesia.forward import AnswerLogprob
from amnesia.measurement import Measurement, Unknown
from amnesia.questions import Question
from amnesia.recipe import Accept, Scoring

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))
HELD_OUT = Question("held_out_target", Fact("Japan", "people in {entity} speak", "Japanese", "held_out"))
CONTROL = Question("control", Fact("Italy", "the capital of {entity} is", "Rome"))
DAMAGE = Damage(20.0, 21.0, (), None)


def answers(*totals, rank=0):
    return tuple(AnswerLogprob(total, total / 2, rank) for total in totals)


def unknowns(*totals):
    return tuple(Unknown(total, total / 2) for total in totals)


def test_scores_and_aggregates_by_hand():
    evaluation = compare(
        [TARGET, HELD_OUT, CONTROL],
        unknowns(-5.0, -6.0, -4.0),
        Measurement(answers(-1.0, -2.0, -2.0), ("Tokyo", "Japanese", "Rome")),
        Measurement(answers(-5.0, -4.0, -1.9), ("Paris", "English", "Rome")),
        Scoring(),
        DAMAGE,
    )
    assert [row.knowledge_score for row in evaluation.prompts] == pytest.approx([0.0, 0.5, 1.05])
    assert [row.knowledge_score_first for row in evaluation.prompts] == pytest.approx([0.0, 0.5, 1.05])
    assert evaluation.mean("target") == 0.0
    assert evaluation.mean("held_out_control") is None
    assert evaluation.accepted(Accept(max_target=0.0, max_held_out_target=0.5, min_control=1.0))
    assert not evaluation.accepted(Accept(max_target=0.2, max_held_out_target=0.4, min_control=0.95))
    assert not evaluation.accepted(Accept(max_target=0.2, max_held_out_target=0.5, min_control=1.1))
    assert (evaluation.prompts[0].generated_before, evaluation.prompts[0].generated_after) == ("Tokyo", "Paris")


def test_facts_that_were_never_known_are_counted_and_not_scored():
    evaluation = compare(
        [TARGET, TARGET, HELD_OUT, CONTROL],
        unknowns(-5.0, -1.5, -6.0, -4.0),
        Measurement(answers(-1.0, -1.0) + answers(-2.0, rank=50) + answers(-2.0)),
        Measurement(answers(-3.0, -9.0, -9.0, -2.0)),
        Scoring(min_nats=1.0, max_rank=10),
        DAMAGE,
    )
    target, control = evaluation.aggregates
    assert (target.kind, target.n, target.n_excluded, target.knowledge_score.mean) == ("target", 1, 1, 0.5)
    assert (control.kind, control.n, control.n_excluded) == ("control", 1, 0)
    assert evaluation.prompts[1].excluded == "not known: the answer is 0.50 nats above an unknown entity, needed are 1"
    assert evaluation.prompts[2].excluded == "not known: the answer has rank 50, allowed is 10"
    assert evaluation.prompts[1].knowledge_score is None
    assert evaluation.mean("held_out_target") is None


def test_no_known_target_is_an_error():
    measured = Measurement(answers(-5.0, -2.0))
    with pytest.raises(InputError, match="knows none of the 1 target facts about 'Japan'"):
        compare([TARGET, CONTROL], unknowns(-5.0, -4.0), measured, measured, Scoring(), DAMAGE)


def test_every_aggregate_by_hand():
    """Four controls in two neighborhoods, of which one was never known."""
    facts = [
        Question("control", Fact(name, "the capital of {entity} is", answer), (), "capital", label, near)
        for name, answer, label, near in (
            ("Italy", "Rome", "quarter 4", "same_relation"),
            ("Spain", "Madrid", "quarter 4", "same_relation"),
            ("Cuba", "Havana", "quarter 1", "related"),
            ("Peru", "Lima", "quarter 1", "related"),
        )
    ]
    before = (AnswerLogprob(-1, -1, 0), AnswerLogprob(-2, -1, 2), AnswerLogprob(-1, -1, 4), AnswerLogprob(-9, -9, 900))
    after = (AnswerLogprob(-1, -1, 0), AnswerLogprob(-4, -3, 8), AnswerLogprob(-3, -2, 10), AnswerLogprob(-9, -9, 9))
    evaluation = compare(
        [TARGET, *facts],
        unknowns(-5.0, -5.0, -6.0, -5.0, -9.0),
        Measurement((*answers(-1.0), *before), ("Tokyo", " Rome, of course", "the madrid", "Havana.", "Lima")),
        Measurement((*answers(-5.0), *after), ("Paris", "Rome", "...", "I don't know", "Lima")),
        Scoring(),
        DAMAGE,
        {"the capital of Italy is": 0.25},
    )
    by_group = {row.group: row for row in evaluation.aggregates if row.kind == "control"}
    assert list(by_group) == [
        "all", "neighborhood:related", "neighborhood:same_relation", "popularity:quarter 1", "popularity:quarter 4",
        "relation:capital",
    ]  # fmt: skip
    whole = by_group["all"]
    assert (whole.n, whole.n_excluded) == (3, 1)
    # Scores 1, (−4 + 6) / (−2 + 6) = 0.5 and (−3 + 5) / (−1 + 5) = 0.5.
    assert whole.knowledge_score.mean == pytest.approx(2 / 3)
    # First tokens, of which an unknown name is worth half as much: 1, (−3 + 3) / (−1 + 3) = 0, (−2 + 2.5) / 1.5 = 1/3.
    assert whole.knowledge_score_first.mean == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert (whole.exact_match_before, whole.exact_match_after.mean) == (Estimate(1, 1, 1), pytest.approx(1 / 3))
    assert whole.exact_match_change.mean == pytest.approx(-2 / 3)
    assert (whole.rank_before, whole.rank_after) == (2, 8)
    assert (whole.n_empty_before, whole.n_empty_after, whole.n_refused_before, whole.n_refused_after) == (0, 1, 0, 1)
    related = by_group["neighborhood:related"]
    assert (related.n, related.n_excluded, related.knowledge_score) == (1, 1, Estimate(0.5, 0.5, 0.5))
    assert [row.kl for row in evaluation.prompts] == [None, 0.25, None, None, None]
    assert [row.reply_after for row in evaluation.prompts] == ["answer", "answer", "empty", "refusal", "answer"]


def test_without_an_edited_model_everything_is_as_it_is():
    evaluation = compare(
        [TARGET, CONTROL],
        unknowns(-5.0, -4.0),
        Measurement(answers(-1.0, -2.0), ("Tokyo", "Rome")),
        None,
        Scoring(),
        DAMAGE,
    )
    assert evaluation.alone
    assert {row.knowledge_score for row in evaluation.aggregates} == {Estimate(1.0, 1.0, 1.0)}
