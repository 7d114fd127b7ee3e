"""What `report.json` holds, read back as the values that it was written from."""

import json

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.results import (
    Aggregate,
    AnswerSummary,
    Damage,
    Estimate,
    LanguageScore,
    ScoreCurve,
    StrengthSweep,
    TextScore,
)
from amnesia.report.content import Direction, read_report
from amnesia.report.document import report_json
from support.report_sample import alone, sample, without
from support.reports import prompt

POINT = Estimate(0.5, 0.25, 0.75)
SUMMARY = AnswerSummary(POINT, 3.5, 1, 0)
EVALUATION = Evaluation(
    (prompt(), prompt("control", None, "held_out", excluded="not known", answer_aliases=("Edo",))),
    (
        Aggregate("target", "search", "all", 1, 0, POINT, POINT, SUMMARY, SUMMARY, None),
        Aggregate("control", "held_out", "relation:x", 2, 1, POINT, None, SUMMARY, SUMMARY, POINT),
    ),
    Damage(
        20.0,
        21.0,
        (TextScore("news", "en", 90, 60, 20.0, 21.0, None),),
        POINT,
        (LanguageScore("en", 60, 400, 20.0, 21.0, 1.0, 1.125, True),),
    ),
)
SWEEP = StrengthSweep((0.0, 1.0), (ScoreCurve("target", 2, 0, (1.0, 0.25), (0.0, 0.125)),))


def test_an_evaluation_is_read_back_as_it_was():
    model = ModelRef("org/m", "abc")
    written = report_json(EVALUATION, "Japan", model, "edited", accepted=True, sections={"sweep": SWEEP})
    report = read_report(json.loads(json.dumps(written)))
    assert (report.model, report.edited, report.entity, report.accepted) == (model, "edited", "Japan", True)
    assert report.prompts == EVALUATION.prompts
    assert report.aggregates == EVALUATION.aggregates
    assert report.damage == EVALUATION.damage
    assert report.sweep == SWEEP
    assert report.n_excluded == 1
    assert (report.extraction, report.changed, report.lm_eval, report.stress) == (None,) * 4


def test_all_sections_are_read():
    report = read_report(sample())
    assert report.changed.edits[0] == ColumnEdit(Cell(2, 731), -4.0)
    assert report.changed.edits[2] == Direction(0, 1, -0.25, (3, 731, 1490), (0.02, 0.31, -0.14), 12.5, 5.3, "layer")
    assert report.changed.tensors[2].indices == (3, 731, 1490)
    assert report.extraction.screening.places[3].score is None
    assert report.lm_eval.tasks["hellaswag"]["acc,none"].after == 0.345
    assert report.stress.attacks[0].rows[1].knowledge_score.mean == pytest.approx(0.11)
    assert read_report(alone()).edited is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "has list as the file, expected an object"),
        ({}, "has None as format_version, expected one of 3"),
        (without(format_version=2), "has 2 as format_version, expected one of 3"),
        (without("damage"), "lacks the key 'damage' in the file"),
        (without(prompts=[{"kind": "neutral"}]), r"has 'neutral' as prompts\[0\].kind, expected one of target, held_"),
        (without(model={"id": "m"}), "lacks the key 'revision' in model"),
        (without(changed={"edits": [{"layer": 1}], "tensors": []}), "lacks the key 'multiplier' in edits"),
        (without(n_excluded=-1), "has -1 as n_excluded, expected a whole number from 0"),
    ],
)
def test_what_is_no_report_is_named_by_its_place(document, message):
    with pytest.raises(InputError, match=rf"^report\.json {message}.*: make the report again$"):
        read_report(document)
