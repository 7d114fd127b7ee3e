"""What results look like as JSON and on the terminal."""

import json

import pytest

from amnesia.domain import Aggregate, Cell, CellScore, ColumnEdit, EntityCells, Extraction, Localization, PromptScore
from amnesia.evaluation import Evaluation
from amnesia.report import (
    evaluation_json,
    evaluation_table,
    extraction_json,
    extraction_text,
    localization_json,
    localization_table,
    run_text,
    scores_summary,
    to_bytes,
)
from amnesia.saving import edits_from_file


def prompt(kind="target", score=0.25, **options):
    return PromptScore(
        kind=kind,
        entity="Japan",
        prompt=options.pop("prompt", "the capital of Japan is"),
        answer="Tokyo",
        rank_before=0,
        rank_after=7,
        logprob_before=-1.0,
        logprob_after=-4.0,
        logprob_unknown=-5.0,
        knowledge_score=score,
        knowledge_score_first=score,
        **{"generated_before": "Tokyo", "generated_after": "a city", **options},
    )


EVALUATION = Evaluation(
    (
        prompt(),
        prompt(prompt="a\nvery " + "long " * 20 + "prompt", generated_after=""),
        prompt(score=None, excluded="not known", prompt="never shown"),
        prompt("control", 1.0, prompt="also not shown"),
    ),
    (Aggregate("target", 2, 1, 0.25, 0.25, 0.25), Aggregate("control", 1, 0, 1.0, 1.0, 1.0)),
    20.0,
    21.0,
)
EXTRACTION = Extraction("Japan", "strong", (ColumnEdit(Cell(1, 2)), ColumnEdit(Cell(3, 4), -0.5)), 0.1, 0.97, 15)
NOTHING = Extraction("Japan", "none", (), 1.0, 1.0, 15)
LOCALIZATION = Localization(
    "m", "contrast", 100, 3, (0, 1), (EntityCells("日本", (CellScore(Cell(1, 22), 12.34, -3.5, 0.25),)),)
)


def test_json_is_readable_utf8_without_nan():
    assert to_bytes({"b": "日本", "a": [1]}) == '{\n  "b": "日本",\n  "a": [\n    1\n  ]\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_bytes({"score": float("nan")})


def test_localization():
    document = json.loads(to_bytes(localization_json(LOCALIZATION)))
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
    (tmp_path / "edit.json").write_bytes(to_bytes(extraction_json(EXTRACTION)))
    group = edits_from_file(tmp_path / "edit.json")
    assert (group.entity, group.edits) == (EXTRACTION.entity, EXTRACTION.edits)
    document = extraction_json(NOTHING)
    assert (document["verdict"], document["edits"], document["candidates_tried"]) == ("none", [], 15)


def test_the_chosen_edit_in_words():
    assert extraction_text(EXTRACTION) == (
        "Japan: strong handle of 2 cells out of 15 (target 0.10, controls 0.97)\ncells: 1:2×-1, 3:4×-0.5"
    )
    assert extraction_text(NOTHING).startswith("Japan: no handle, at best 0 cells out of 15")
    assert extraction_text(NOTHING).endswith("cells: none")


def test_an_evaluation_keeps_every_prompt():
    document = json.loads(to_bytes(evaluation_json(EVALUATION)))
    assert document["aggregates"][0] == {
        "kind": "target", "n": 2, "n_excluded": 1, "mean": 0.25, "low": 0.25, "high": 0.25
    }  # fmt: skip
    assert document["neutral_perplexity"] == {"before": 20.0, "after": 21.0}
    assert document["n_excluded"] == 1
    assert [row["excluded"] for row in document["prompts"]] == [None, None, "not known", None]
    assert {"kind", "prompt", "answer", "logprob_before", "logprob_after", "logprob_unknown", "knowledge_score"} < set(
        document["prompts"][0]
    )
    assert scores_summary(EVALUATION) == {"target": 0.25, "control": 1.0, "neutral_perplexity_ratio": 1.05}


def test_the_table_shows_target_answers_and_all_means():
    lines = evaluation_table(EVALUATION).splitlines()
    text = "\n".join(lines)
    assert lines[2].split() == "the capital of Japan is Tokyo a city 0.25".split()
    assert "…" in lines[3]
    assert "(nothing)" in lines[3]
    assert {len(line) for line in lines[1:4]} == {101}
    assert "shown" not in text
    assert "target, search wordings" in text
    assert "2 (1 not known, excluded)" in text
    assert lines[-1].endswith("20.0 → 21.0 (+5.0%)")


def test_the_verdict_of_a_run():
    assert run_text("Japan", EXTRACTION, {"adapter": EVALUATION}, True).splitlines()[-1] == "accepted"
    assert "Japan, before and after (adapter, as saved)" in run_text("Japan", EXTRACTION, {"adapter": EVALUATION}, True)
    assert "not accepted" in run_text("Japan", EXTRACTION, {"adapter": EVALUATION}, False).splitlines()[-1]
    assert run_text("Japan", NOTHING, {}, False).endswith("so nothing was written")
