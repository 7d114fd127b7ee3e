"""The sweep against the search's own scoring of edited models."""

import pytest

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, NumericalError
from amnesia.evaluation.labels import parts_of
from amnesia.evaluation.measurement import known_facts
from amnesia.evaluation.scores import knowledge_score
from amnesia.evaluation.strength import sweep_strength
from amnesia.experiments.sweep import grid, sweep
from amnesia.facts.questions import questions_of
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import edited
from amnesia.recipe_file import parse_recipe
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live


def test_scores_equal_those_of_edited_models():
    live = tiny_live()
    recipe = parse_recipe(recipe_text(live, "tiny"))
    cells = [Cell(0, 3), Cell(1, 11)]
    result = sweep(live, recipe, cells, (1.0, 0.0, -4.0))
    known = [fact for fact in result.facts if fact.excluded is None]
    before = [row.logprob for row in answer_logprobs(live, [(fact.prompt, fact.answer) for fact in known])]
    for place, multiplier in enumerate(result.multipliers):
        edits = [ColumnEdit(cell, multiplier) for cell in cells] if multiplier != 1 else []
        with edited(live, edits):
            after = [row.logprob for row in answer_logprobs(live, [(fact.prompt, fact.answer) for fact in known])]
        scores = [
            knowledge_score(new, old, fact.logprob_unknown) for new, old, fact in zip(after, before, known, strict=True)
        ]
        assert [fact.knowledge_scores[place] for fact in known] == pytest.approx(scores, abs=1e-3)
        for curve in result.curves:
            own = [score for score, fact in zip(scores, known, strict=True) if parts_of(fact.kind)[0] == curve.role]
            mean = sum(own) / len(own)
            error = (sum((score - mean) ** 2 for score in own) / (len(own) - 1) / len(own)) ** 0.5
            assert curve.n == len(own)
            assert curve.mean[place] == pytest.approx(mean, abs=1e-3)
            assert curve.standard_error[place] == pytest.approx(error, abs=1e-3)
    assert sum(curve.n + curve.n_excluded for curve in result.curves) == len(recipe.facts) + len(recipe.controls)


def test_the_strength_of_an_edit_interpolates_its_multipliers(monkeypatch):
    live = tiny_live()
    recipe = parse_recipe(recipe_text(live, "tiny"))
    facts = known_facts(live, questions_of(recipe), recipe.scoring)
    edits = [ColumnEdit(Cell(0, 3), -7.0), ColumnEdit(Cell(1, 11), 0.5)]
    result = sweep_strength(live, facts, edits, strengths=(0.0, 0.5, 1.5))
    target = result.curves[0]
    assert [curve.role for curve in result.curves] == ["target", "control"]
    assert [curve.mean[0] for curve in result.curves] == [1.0, 1.0]
    known = [fact for fact in facts if fact.question.role == "target" and not fact.excluded]
    for place, multipliers in ((1, (-3.0, 0.75)), (2, (-11.0, 0.25))):
        scaled = [ColumnEdit(edit.cell, factor) for edit, factor in zip(edits, multipliers, strict=True)]
        with edited(live, scaled):
            after = answer_logprobs(live, [fact.pair for fact in known])
        scores = [
            knowledge_score(new.logprob, fact.before.logprob, fact.unknown.total)
            for new, fact in zip(after, known, strict=True)
        ]
        assert target.n == len(scores)
        assert target.mean[place] == pytest.approx(sum(scores) / len(scores), abs=1e-3)

    def breaks_beyond_one(live, edits):
        if edits and edits[0].multiplier < -7.0:
            raise NumericalError("too much")
        return edited(live, edits)

    monkeypatch.setattr("amnesia.evaluation.strength.edited", breaks_beyond_one)
    assert sweep_strength(live, facts, edits, strengths=(0.0, 1.0, 1.5, 2.0)).strengths == (0.0, 1.0)
    with pytest.raises(NumericalError):
        sweep_strength(live, facts, [ColumnEdit(Cell(0, 3), -9.0)])


def test_the_grid_ends_where_asked_and_holds_zero():
    assert grid(-3.0, 5) == (1.0, 0.0, -1.0, -2.0, -3.0)
    assert len(grid(-3.0, 20)) == 21
    assert 0.0 in grid(-8.0, 20)
    assert grid(0.5, 2) == (1.0, 0.5)
    with pytest.raises(InputError, match="1 multipliers from 1 to -3"):
        grid(-3.0, 1)
