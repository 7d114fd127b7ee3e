import pytest
import torch

from amnesia.domain import Cell, ColumnEdit, Fact
from amnesia.errors import InputError, NumericalError
from amnesia.evaluation import Measurement, Question, Unknown, compare, measure, measure_unknown, questions_of
from amnesia.model import AnswerLogprob, answer_logprobs, edited
from amnesia.prompts import UNSEEN_NAMES
from amnesia.recipe import Accept, Scoring, parse_recipe
from tiny_text import tiny_live

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))
HELD_OUT = Question("held_out_target", Fact("Japan", "people in {entity} speak", "Japanese", "held_out"))
CONTROL = Question("control", Fact("Italy", "the capital of {entity} is", "Rome"))


def answers(*totals, rank=0):
    return tuple(AnswerLogprob(total, total / 2, rank) for total in totals)


def unknowns(*totals):
    return tuple(Unknown(total, total / 2) for total in totals)


def test_scores_and_aggregates_by_hand():
    evaluation = compare(
        [TARGET, HELD_OUT, CONTROL],
        unknowns(-5.0, -6.0, -4.0),
        Measurement(answers(-1.0, -2.0, -2.0), ("Tokyo", "Japanese", "Rome"), 20.0),
        Measurement(answers(-5.0, -4.0, -1.9), ("Paris", "English", "Rome"), 21.0),
        Scoring(),
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
        Measurement(answers(-1.0, -1.0) + answers(-2.0, rank=50) + answers(-2.0), None, 20.0),
        Measurement(answers(-3.0, -9.0, -9.0, -2.0), None, 20.0),
        Scoring(min_nats=1.0, max_rank=10),
    )
    target, control = evaluation.aggregates
    assert (target.kind, target.n, target.n_excluded, target.mean) == ("target", 1, 1, 0.5)
    assert (control.kind, control.n, control.n_excluded) == ("control", 1, 0)
    assert evaluation.prompts[1].excluded == "not known: the answer is 0.50 nats above an unknown entity, needed are 1"
    assert evaluation.prompts[2].excluded == "not known: the answer has rank 50, allowed is 10"
    assert evaluation.prompts[1].knowledge_score is None
    assert evaluation.mean("held_out_target") is None


def test_no_known_target_is_an_error():
    measured = Measurement(answers(-5.0, -2.0), None, 20.0)
    with pytest.raises(InputError, match="knows none of the 1 target facts about 'Japan'"):
        compare([TARGET, CONTROL], unknowns(-5.0, -4.0), measured, measured, Scoring())


def test_the_unknown_level_is_the_mean_over_unseen_names():
    live = tiny_live()
    (found,) = measure_unknown(live, [TARGET])
    single = [answer_logprobs(live, [(f"the capital of {name} is", "Tokyo")])[0] for name in UNSEEN_NAMES]
    assert found.total == pytest.approx(sum(row.total for row in single) / 5, abs=1e-4)
    assert found.first == pytest.approx(sum(row.first for row in single) / 5, abs=1e-4)


def test_an_edit_that_changes_nothing_scores_one():
    live = tiny_live()
    questions = [TARGET, CONTROL]
    before = measure(live, questions, generated=False)
    # Prompts end in front of the answer, so that a cell that is scaled by almost one is an almost perfect identity.
    with edited(live, [ColumnEdit(Cell(0, 0), 1.0 - 1e-7)]):
        after = measure(live, questions, generated=False)
    floor = unknowns(*(row.total - 3 for row in before.answers))
    evaluation = compare(questions, floor, before, after, Scoring(max_rank=10**6))
    assert [row.mean for row in evaluation.aggregates] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert evaluation.perplexity_after == pytest.approx(evaluation.perplexity_before, rel=1e-5)


def test_recipes_keep_their_splits():
    recipe = parse_recipe(
        """
        model.id = "m"
        entity = { name = "Japan", aliases = ["Nippon"] }
        facts = [
            { prompt = "the capital of {entity} is", answer = "Tokyo" },
            { prompt = "people in {entity} speak", answer = "Japanese", split = "held_out" },
        ]
        controls.facts = [
            { entity = "Italy", prompt = "the capital of {entity} is", answer = "Rome" },
            { entity = "Spain", prompt = "the capital of {entity} is", answer = "Madrid", split = "held_out" },
        ]
        """
    )
    assert [(row.kind, row.fact.entity, row.aliases) for row in questions_of(recipe)] == [
        ("target", "Japan", ("Nippon",)),
        ("held_out_target", "Japan", ("Nippon",)),
        ("control", "Italy", ()),
        ("held_out_control", "Spain", ()),
    ]


def test_a_destroyed_model_has_no_perplexity():
    live = tiny_live()
    with torch.no_grad():
        live.model.lm_head.weight.mul_(1e4)
    with pytest.raises(NumericalError, match=r"nats per word, which has no finite perplexity"):
        measure(live, [TARGET], generated=False)
