"""What results look like as JSON and on the terminal."""

import dataclasses
import json
import re

import jsonschema
import pytest

from amnesia.choice.results import (
    AnswerCounts,
    Answers,
    Extraction,
    FormResult,
    NeighborResult,
    ScreenedPlace,
    Screening,
)
from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.results import (
    MESSAGES,
    Ability,
    Aggregate,
    AnswerSummary,
    Damage,
    Estimate,
    LanguageScore,
    TextScore,
)
from amnesia.files.staging import REPORT_KEYS, REPORT_SECTIONS
from amnesia.files.strict_json import json_bytes
from amnesia.localization.results import CellScore, EntityCells, Localization
from amnesia.outputs.write import edits_from_file
from amnesia.report.content import Direction
from amnesia.report.document import extraction_json, localization_json, report_json, scores_summary, tasks_of
from amnesia.report.tables import (
    edits_text,
    evaluation_table,
    extraction_text,
    localization_table,
    neighbors_line,
    run_text,
    tasks_table,
)
from amnesia.report.view import changes
from support.reports import SCHEMA, check_report_json, prompt
from support.tiny import tiny_direction

ESTIMATES = ["knowledge_score", "knowledge_score_first", "exact_match_change"]


def aggregate(role, mean, group="all", **options):
    point = Estimate(mean, mean, mean)
    before, after = AnswerSummary(point, 0.5, 0, 0), AnswerSummary(point, 3, 0, 0)
    values = {"n": 1, "n_excluded": 0, "before": before, "after": after}
    return Aggregate(role, "search", group, **{**values, **dict.fromkeys(ESTIMATES, point), **options})


EVALUATION = Evaluation(
    (
        prompt(),
        prompt(prompt="a\nvery " + "long " * 20 + "prompt", after=""),
        prompt(score=None, excluded="not known", prompt="never shown"),
        prompt("control", 1.0, prompt="also not shown"),
    ),
    (aggregate("target", 0.25, n=2, n_excluded=1), aggregate("control", 1.0), aggregate("control", 1.0, "relation:x")),
    Damage(
        20.0,
        21.0,
        (TextScore("news", "en", 90, 60, 20.0, 21.0, 0.01),),
        Estimate(0.02, 0.01, 0.03),
        (
            LanguageScore("en", 60, 400, 20.0, 21.0, 1.0, 1.125, True),
            LanguageScore("de", 60, 400, 80.0, 100.0, 2.25, 2.5, False),
        ),
    ),
)
CELLS = EntityEdits("Japan", (ColumnEdit(Cell(1, 2)), ColumnEdit(Cell(3, 4), -0.5)))
EXTRACTION = Extraction(CELLS, "strong", 0.1, 0.97, 15)
NOTHING = Extraction(EntityEdits("Japan", ()), "none", 1.0, 1.0, 15)
LOCALIZATION = Localization(
    "m", "contrast", 100, 3, (0, 1), (EntityCells("日本", (CellScore(Cell(1, 22), 12.34, -3.5, 0.25),)),)
)


def test_json_is_readable_utf8_without_nan():
    assert json_bytes({"b": "日本", "a": [1]}) == '{\n  "b": "日本",\n  "a": [\n    1\n  ]\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"score": float("nan")})


def test_localization():
    document = json.loads(json_bytes(localization_json(LOCALIZATION)))
    assert document == {
        "model": "m",
        "baseline": "contrast",
        "n_prompts": 100,
        "n_skipped": 3,
        "layers": [0, 1],
        "entities": [
            {"entity": "日本", "cells": [{"layer": 1, "neuron": 22, "score": 12.34, "mean_z": -3.5, "std_z": 0.25}]}
        ],
    }
    lines = localization_table(LOCALIZATION).splitlines()
    assert lines[0] == "m, baseline contrast, 100 prompts, 3 skipped"
    assert lines[2] == "日本"
    assert lines[4].split() == ["1:22", "12.3", "-3.50", "0.25"]


def test_an_extraction_can_be_read_back_as_an_edit(tmp_path):
    (tmp_path / "edit.json").write_bytes(json_bytes(extraction_json(EXTRACTION)))
    (group,) = edits_from_file(tmp_path / "edit.json")
    assert group == EXTRACTION.edits
    document = extraction_json(NOTHING)
    assert (document["verdict"], document["edits"], document["candidates_tried"]) == ("none", [], 15)


DIRECTED = dataclasses.replace(
    EXTRACTION,
    forms=(FormResult("JAPAN", "upper case", 0.9, 0.7, 0.1), FormResult("japan", "lower case", 0.8, 0.6, 0.5)),
    neighbors=(NeighborResult("Japan Airlines", 7, 0.95), NeighborResult("Bank of Japan", 5, 0.25)),
    edits=EntityEdits("Japan", (tiny_direction(2), tiny_direction(2, multiplier=0.25, seed=1))),
    answers=Answers(
        -0.25,
        1.5,
        (
            AnswerCounts(2, 0, "entity", 3, 1.0, 1.25, (0, 1, 2)),
            AnswerCounts(2, 0, "names", 9, 0.03125, 0.109, (8, 1, 0)),
            AnswerCounts(2, 1, "text", 40, 0.01, 0.0625, (40, 0, 0)),
        ),
    ),
    screening=Screening(
        (" Jap", "an"), -0.5, (ScreenedPlace(2, 0, 3.5, 0.125, True), ScreenedPlace(2, 1, 0.5, None, False)), "layer"
    ),
)


def test_what_directions_answer_to_is_kept_and_said(tmp_path):
    (tmp_path / "edit.json").write_bytes(json_bytes(extraction_json(DIRECTED)))
    assert edits_from_file(tmp_path / "edit.json")[0] == DIRECTED.edits
    streaming = tuple(dataclasses.replace(edit, of="stream") for edit in DIRECTED.edits.edits)
    other = dataclasses.replace(DIRECTED, edits=dataclasses.replace(DIRECTED.edits, edits=streaming))
    (tmp_path / "stream.json").write_bytes(json_bytes(extraction_json(other)))
    assert edits_from_file(tmp_path / "stream.json")[0].edits == streaming
    document = json.loads((tmp_path / "edit.json").read_bytes())
    assert document["answers"]["rows"][1] == {
        "layer": 2, "token": 0, "group": "names", "n": 9, "median": 0.03125, "percentile_99": 0.109, "counts": [8, 1, 0]
    }  # fmt: skip
    assert (document["answers"]["low"], document["answers"]["high"]) == (-0.25, 1.5)
    assert document["screening"]["tokens"] == [" Jap", "an"]
    assert document["screening"]["places"][1] == {
        "layer": 2, "token": 1, "shift": 0.5, "score": None, "chosen": False
    }  # fmt: skip
    check_report_json(report_json(EVALUATION, "Japan", ModelRef("m"), "edited", accepted=True, extraction=DIRECTED))
    assert not {"answers", "screening"} & extraction_json(EXTRACTION).keys()
    assert extraction_text(DIRECTED).splitlines()[1:] == [
        "  layer 2 at the last token answers 1.00 (99 %: 1.25) at the name, 0.03 (99 %: 0.11) at other names",
        "  layer 2 at the token 1 before the last answers 0.01 (99 %: 0.06) at text",
        "  other forms of the name: japan 0.80 → 0.50, JAPAN 0.90 → 0.10",
        "  neighbors, 1 is untouched: Bank of Japan 0.25, Japan Airlines 0.95",
    ]


def test_the_chosen_edit_in_words():
    assert extraction_text(EXTRACTION) == (
        "Japan: strong handle: 1:2×−1, 3:4×−0.5, the best of 15 tried "
        "(over search facts in every form: target 0.10, controls 0.97)"
    )
    assert extraction_text(NOTHING).startswith("Japan: no handle, at best nothing, the best of 15 tried")


def test_what_is_read_has_one_minus_sign():
    score = Estimate(-0.17, -0.3, -0.04)
    below = dataclasses.replace(
        EVALUATION,
        aggregates=tuple(dataclasses.replace(row, knowledge_score=score) for row in EVALUATION.aggregates),
        prompts=tuple(dataclasses.replace(row, knowledge_score=-0.25) for row in EVALUATION.prompts),
        damage=dataclasses.replace(EVALUATION.damage, perplexity_after=19.0),
    )
    text = run_text(dataclasses.replace(EXTRACTION, target=-0.13, control=-0.5), {"adapter": below}, False)
    for number in ("3:4×−0.5", "target −0.13, controls −0.50", "−0.17  [−0.30, −0.04]", " −0.25\n", "score −0.17"):
        assert number in text
    assert not re.search(r"(?<![\w–-])-\d", text)


def test_means_are_said_to_be_of_text_where_messages_were_asked_too():
    def labels(aggregates):
        lines = evaluation_table(dataclasses.replace(EVALUATION, aggregates=aggregates), "Japan").splitlines()
        return [line[2:54].rstrip() for line in lines if re.match("  (target|controls|  as)", line)]

    plain = aggregate("target", 0.1)
    assert labels((plain,)) == ["target, search wordings"]
    both = labels((plain, aggregate("target", 0.2, MESSAGES)))
    assert both == ["target, search wordings, as text", "  as messages"]


def test_a_column_that_two_directions_change_is_counted_once():
    directions = DIRECTED.edits.edits
    assert directions[0].columns == directions[1].columns
    n = len(directions[0].columns)
    assert edits_text(directions).endswith(f" on {n} columns: {n} columns in all")
    assert edits_text(directions[:1]).endswith(f" on {n} columns")
    shown = [Direction(row.layer, row.token, row.multiplier, row.columns, (), 1.0, 1.0, row.of) for row in directions]
    assert changes(shown).endswith(f" {n} columns in all.")
    assert not changes(shown[:1]).endswith("in all.")


def test_what_is_turned_is_said():
    (edit,) = DIRECTED.edits.edits[:1]
    assert str(edit).startswith("layer 2 at the last token × ")
    assert str(dataclasses.replace(edit, of="stream")).startswith("the stream behind layer 2 at the last token × ")
    layer = Direction(edit.layer, edit.token, edit.multiplier, edit.columns, (), 1.0, 1.0, "layer")
    assert changes([layer]).startswith("Layer 2: what it writes at the name’s last token is multiplied by ")
    assert changes([dataclasses.replace(layer, of="stream")]).startswith(
        "Layer 2: what the residual stream behind it carries of the entity at the name’s last token is multiplied by "
    )


def test_a_report_keeps_every_prompt():
    document = json.loads(json_bytes(report_json(EVALUATION, "Japan", ModelRef("m"), "edited", accepted=True)))
    point = {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert document["aggregates"][0] == {
        "kind": "target", "group": "all", "n": 2, "n_excluded": 1, **dict.fromkeys(ESTIMATES, point),
        "before": {"exact_match": point, "rank": {"median": 0.5}, "n_empty": 0, "n_refused": 0},
        "after": {"exact_match": point, "rank": {"median": 3}, "n_empty": 0, "n_refused": 0},
    }  # fmt: skip
    assert [row["language"] for row in document["damage"].pop("languages")] == ["en", "de"]
    assert document["damage"].pop("ability") is None
    assert document["damage"] == {
        "neutral_perplexity": {"before": 20.0, "after": 21.0, "ratio": 1.05},
        "texts": [
            {
                "register": "news", "language": "en", "n_tokens": 90, "n_words": 60, "perplexity_before": 20.0,
                "perplexity_after": 21.0, "kl": 0.01,
            }
        ],
        "kl_controls": {"mean": 0.02, "low": 0.01, "high": 0.03},
    }  # fmt: skip
    assert (document["format_version"], document["entity"], document["accepted"]) == (3, "Japan", True)
    assert document["model"] == {"id": "m", "revision": None}
    assert document["n_excluded"] == 1
    assert [row["excluded"] for row in document["prompts"]] == [None, None, "not known", None]
    assert [row["kind"] for row in document["prompts"]] == ["target", "target", "target", "control"]
    assert {"prompt", "answer", "logprob_unknown", "knowledge_score"} < set(document["prompts"][0])
    assert document["prompts"][0]["after"] == {
        "logprob": -4.0, "logprob_first": -2.0, "rank": 7, "generated": "a city", "exact_match": None, "reply": None
    }  # fmt: skip
    assert not {"extraction", "changed", "stress", "sweep"} & set(document)
    assert scores_summary(EVALUATION) == {"target": 0.25, "control": 1.0, "neutral_perplexity_ratio": 1.05}


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_force_takes_for_a_report_has_the_keys_of_the_schema():
    assert {*SCHEMA["required"]} == REPORT_KEYS
    assert SCHEMA["properties"].keys() == REPORT_KEYS | REPORT_SECTIONS
    assert SCHEMA["additionalProperties"] is False


def test_reports_are_as_the_schema_says():
    tasks = tasks_of({"arc": {"acc,none": 0.5}}, {"arc": {"acc,none": 0.25}})
    document = report_json(
        EVALUATION,
        "Japan",
        ModelRef("m", "abc"),
        "edited",
        accepted=True,
        extraction=EXTRACTION,
        sections={"lm_eval": tasks},
    )
    check_report_json(document)
    assert document["lm_eval"] == {"tasks": {"arc": {"acc,none": {"before": 0.5, "after": 0.25}}}}
    assert "0.5000   0.2500" in tasks_table(tasks)
    alone = dataclasses.replace(EVALUATION, alone=True)
    check_report_json(report_json(alone, "Japan", ModelRef("m"), None, sections={"lm_eval": tasks_of({})}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 1),
        (("findings", 0, "level"), "fine"),
        (("aggregates", 0, "group"), "neighbourhood:near"),
        (("aggregates", 0, "knowledge_score"), None),
        (("aggregates", 0, "n"), 0),
        (("damage", "texts", 0, "kl"), -0.1),
        (("prompts", 0, "knowledge_score"), "NaN"),
        (("prompts", 0, "kind"), "neutral"),
        (("prompts", 0, "before", "rank"), -1),
        (("prompts", 0, "role"), "target"),
        (("something",), {}),
    ],
)
def test_other_documents_are_not(path, value):
    document = json.loads(json_bytes(report_json(EVALUATION, "Japan", ModelRef("m"), "edited")))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_report_json(document)


def test_the_table_shows_target_answers_and_all_means():
    lines = evaluation_table(EVALUATION, "Japan").splitlines()
    text = "\n".join(lines)
    assert lines[2].split() == "the capital of Japan is Tokyo a city 0.25".split()
    assert "…" in lines[3]
    assert "(nothing)" in lines[3]
    assert {len(line) for line in lines[1:4]} == {101}
    assert "shown" not in text
    assert "target, search wordings" in text
    assert "2 (1 not known, excluded)" in text
    assert "20.0 → 21.0 (+5.0 %)" in text
    (german,) = (line for line in lines if line.startswith("    de: "))
    assert "2.25 bits per character, not fluent" in german and german.endswith("80.0 → 100.0 (+25.0 %)")
    assert "en: 1.00 bits per character  " in text
    assert "0.020 nats per token" in text
    assert "warning: Partly forgotten: Japan has a knowledge score of 0.25 (search wordings)." in lines


def test_the_table_of_one_model_has_one_column_of_each():
    ability = Ability(200, 0.25, *[Estimate(0.5, 0.4, 0.6)] * 2, Estimate(0.0, 0.0, 0.0), ())
    damage = dataclasses.replace(EVALUATION.damage, ability=ability)
    lines = evaluation_table(dataclasses.replace(EVALUATION, alone=True, damage=damage), "Japan").splitlines()
    assert lines[0].split() == "prompt answer the model writes".split()
    assert lines[2].split() == "the capital of Japan is Tokyo Tokyo".split()
    assert max(map(len, lines[:4])) <= 101
    text = "\n".join(lines)
    for word in ("before", "after", "→", "score ", "interval", "+0.0", "change"):
        assert word not in text.partition("note:")[0]
    (target,) = (line for line in lines if line.startswith("  target, search wordings"))
    assert target.split()[3:] == ["25", "%", "2", "(1", "not", "known,", "excluded)"]
    assert {line.find("80.0") for line in lines} - {-1} == {line.find("50.0\xa0%") for line in lines} - {-1} == {55}
    tasks = tasks_table(tasks_of({"arc": {"acc,none": 0.5}})).splitlines()
    assert [line.split() for line in tasks] == [["lm-eval", "task", "metric", "value"], ["arc", "acc", "0.5000"]]


def test_the_table_fits_a_screen():
    many = dataclasses.replace(EVALUATION, prompts=EVALUATION.prompts * 50)
    assert len(evaluation_table(many, "Japan").splitlines()) <= 40


def test_the_verdict_of_a_run():
    assert run_text(EXTRACTION, {"adapter": EVALUATION}, True).splitlines()[-1] == "accepted"
    assert "Japan, before and after (adapter, as saved)" in run_text(EXTRACTION, {"adapter": EVALUATION}, True)
    both = run_text(EXTRACTION, {"safetensors": EVALUATION, "adapter": EVALUATION}, True)
    assert "Japan, before and after (safetensors and adapter, as saved)" in both
    assert both.count("right answers") == 1
    other = dataclasses.replace(EVALUATION, damage=dataclasses.replace(EVALUATION.damage, perplexity_after=999.0))
    assert run_text(EXTRACTION, {"safetensors": EVALUATION, "adapter": other}, True).count("as saved)") == 2
    assert "not accepted" in run_text(EXTRACTION, {"adapter": EVALUATION}, False).splitlines()[-1]
    assert run_text(NOTHING, {}, False).endswith("so nothing was written")


def test_neighbors_that_go_along_are_named_before_anything_is_written():
    assert neighbors_line(DIRECTED.neighbors) == (
        "what the model says of neighbors is lost in part (1 is untouched): Bank of Japan 0.25"
    )
    assert neighbors_line(DIRECTED.neighbors[:1]) is None
