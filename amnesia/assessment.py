"""Compare two models, whatever made the second: ask both the same questions, and write the report."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia import report
from amnesia.adapter import CONFIG_NAME
from amnesia.evaluation import Evaluation
from amnesia.examination import conclude, examine, examine_after
from amnesia.files import check_output, staged_output
from amnesia.loading import load, load_adapter
from amnesia.manifest import MANIFEST_NAME, read_manifest
from amnesia.measurement import measure_unknown
from amnesia.own_outputs import REPORT_NAME
from amnesia.pipeline import Tracker, load_source
from amnesia.questions import FactSet
from amnesia.sources import ModelSource, resolve


@dataclass(frozen=True)
class Assessment:
    """The evaluation of two models, and the content of its `report.json`."""

    evaluation: Evaluation
    document: dict[str, Any]


def assess(
    model: str,
    edited: str | None,
    facts: FactSet,
    tracker: Tracker,
    *,
    dtype: str = "float32",
    device: str | None = None,
) -> Assessment:
    """Ask both models about the facts; without `edited`, say what `model` knows.

    `edited` may also be the folder of a PEFT adapter for `model`.
    """
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve(edited, notice=tracker.notice)
    live = load_source(source, dtype, device, hooked=False)
    with tracker.task("asking the original model") as progress:
        unknown = measure_unknown(live, facts.questions, progress)
        before = examine(live, facts.questions, progress)
    after = None
    if other is not None:
        del live
        gc.collect()
        if (other.folder / CONFIG_NAME).exists():
            live = load_adapter(source.folder, other.folder, str(other), dtype, device)
        else:
            live = load(other.folder, str(other), dtype, device)
        with tracker.task("asking the edited model") as progress:
            after = examine_after(live, facts.questions, before, progress)
    evaluation = conclude(facts.questions, unknown, before, after, facts.scoring)
    document = report.report_json(
        evaluation,
        facts.entity,
        (source.id, source.revision),
        None if other is None else name_of(other),
        changed=None if other is None or not (other.folder / MANIFEST_NAME).exists() else read_manifest(other.folder),
    )
    return Assessment(evaluation, document)


def name_of(source: ModelSource) -> str:
    """A model's name without the path to it, which has no business in a file that people pass on."""
    return Path(source.id).name if Path(source.id).expanduser().exists() else str(source)


def check_report(output: Path, models: Iterable[str | None], *, force: bool = False) -> None:
    """Raise OutputError when a report cannot be written to `output`, or would replace one of the models."""
    for path in (Path(model).expanduser() for model in models if model is not None):
        if path.exists():
            check_output(output, path, force=force)
    check_output(output, force=force)


def write_report(document: dict[str, Any], output: Path, *, force: bool = False) -> None:
    """Write `report.json` into a new folder, complete or not at all."""
    with staged_output(output, force=force) as staging:
        (staging / REPORT_NAME).write_bytes(report.to_bytes(document))
