"""Compare two models, whatever made the second: ask both the same questions, and write the report."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia.domain import DEFAULT_LOADING, Cell, Loading
from amnesia.edits import (
    ColumnEdit,
    DirectionEdit,
    Edit,
    EditSpec,
    EntityEdits,
    columns_of,
    edits_in,
    join_cells,
    join_directions,
)
from amnesia.errors import InputError
from amnesia.evaluation import lm_eval
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.strength import sweep_strength
from amnesia.facts.questions import FactSet
from amnesia.files.staging import MANIFEST_NAME, PAGE_NAME, REPORT_NAME, check_output, staged_output
from amnesia.files.streams import RangeHash, hash_ranges
from amnesia.files.strict_json import json_bytes
from amnesia.live.duet import Duet, Voice, changes_of
from amnesia.live.loading import load, load_adapter, load_source, merge_adapter
from amnesia.live.model import LiveModel
from amnesia.live.tokens import chat_format
from amnesia.progress import Tracker
from amnesia.report import document as report
from amnesia.report.content import Tasks
from amnesia.report.page import report_html
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.stress.conclusion import conclude as conclude_stress
from amnesia.stress.findings import stress_findings
from amnesia.stress.results import Stress
from amnesia.stress.settings import StressSettings
from amnesia.stress.trial import endure, prepare
from amnesia.vector import Vector
from amnesia.weights.adapter import CONFIG_NAME
from amnesia.weights.checkpoint import EditedColumns, edited_columns
from amnesia.weights.manifest import version_of
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.plan import Plan


@dataclass(frozen=True)
class Assessment:
    """The evaluation of two models, the content of `report.json`, and what was asked for: stress, tasks of lm-eval."""

    evaluation: Evaluation
    document: dict[str, Any]
    stress: Stress | None = None
    tasks: Tasks | None = None


def assess(
    model: str,
    edited: str | None,
    facts: FactSet,
    tracker: Tracker,
    *,
    stress: StressSettings | None = None,
    sweep: bool = False,
    loading: Loading = DEFAULT_LOADING,
    measurements: Path | None = None,
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
) -> Assessment:
    """Ask both models about the facts; without `edited`, say what `model` knows.

    `edited` may also be the folder of a PEFT adapter for `model`. With `stress`, both also go through attacks,
    quantization and training. With `sweep`, the edit is made weaker and stronger, for which its manifest must be there.
    Answers to the questions are kept in the file `measurements`, from which a second call takes what is there. `tasks`
    are those of the lm-eval harness, on `task_limit` documents each. Raises InputError for stress or a sweep without
    `edited`, for a sweep without a manifest, and for tasks without the harness; LayoutError for a sweep of experts.
    """
    _check_wanted(edited, stress, sweep, tasks)
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve(edited, notice=tracker.notice)
    manifest = None if other is None or not (other.folder / MANIFEST_NAME).exists() else read_manifest(other.folder)
    swept_edits = edits_between(source, other) if sweep and other is not None else ()

    live = load_source(source, loading, hooked=sweep)
    chat = None if stress is None else chat_format(live.tokenizer, tracker.notice)
    with tracker.task("asking the original model") as progress:
        before = examine(live, facts.questions, facts.scoring, progress, _cache(measurements, loading, source))
    scores = [_task_scores(live, tasks, task_limit, tracker)]
    if stress is not None:
        plan = prepare(live, before.facts, facts.translations, stress, tracker.task, chat)
        original = endure(live, plan, "original", tracker.task)
    after = endured = swept = None
    if sweep:
        with tracker.task("weaker and stronger edits") as progress:
            swept = sweep_strength(live, before.facts, swept_edits, progress=progress)
    if other is not None:
        del live
        gc.collect()
        live = load_edited(source, other, loading)
        with tracker.task("asking the edited model") as progress:
            after = examine_after(live, before, progress, _cache(measurements, loading, source, other))
        scores.append(_task_scores(live, tasks, task_limit, tracker))
        if stress is not None:
            merge_adapter(live)
            endured = conclude_stress(plan, original, endure(live, plan, "edited", tracker.task))
    evaluation = conclude(before, after)
    task_scores = report.tasks_of(*scores) if tasks else None
    document = report.report_json(
        evaluation,
        facts.entity,
        source.ref,
        None if other is None else name_of(other),
        changed=manifest,
        sections={"lm_eval": task_scores, "stress": endured, "sweep": swept},
        further=() if endured is None else stress_findings(endured, facts.entity),
    )
    return Assessment(evaluation, document, endured, task_scores)


def _check_wanted(edited: str | None, stress: StressSettings | None, sweep: bool, tasks: Sequence[str]) -> None:
    if stress is not None and edited is None:
        raise InputError("stress tests compare two models: give EDITED too")
    if sweep and edited is None:
        raise InputError("a sweep leads from one model to the other: give EDITED too")
    if tasks:
        lm_eval.check_available()


def load_edited(source: ModelSource, edited: ModelSource, loading: Loading) -> LiveModel:
    """The edited model, or the original with the adapter whose folder `edited` is."""
    if (edited.folder / CONFIG_NAME).exists():
        return load_adapter(source.folder, edited.folder, str(edited), loading)
    return load(edited.folder, str(edited), loading)


def edits_between(model: ModelSource, edited: ModelSource) -> tuple[Edit, ...]:
    """All edits that lead from one model to the other, by the manifests of both.

    Raises InputError when `edited` has no manifest, or was not made of `model` as far as the manifests tell.
    """
    steps, earlier = (
        [step.edits for step in read_manifest(folder).history()] if (folder / MANIFEST_NAME).exists() else []
        for folder in (edited.folder, model.folder)
    )
    if not steps:
        raise InputError(
            f"a sweep makes an edit weaker and stronger, and {edited} has no {MANIFEST_NAME} that says what it is: "
            "give an output of this program, or leave the sweep out"
        )
    n_own = len(steps) - len(earlier)
    if n_own < 1 or steps[n_own:] != earlier:
        raise InputError(f"{edited} was not made of {model}, which has edits of its own: give the model it was made of")
    return _in_one(steps[n_own - 1 :: -1])


def open_duet(
    model: str,
    edited: str | None,
    groups: Sequence[EntityEdits],
    tracker: Tracker,
    loading: Loading = DEFAULT_LOADING,
) -> Duet:
    """A model and its edited self, to be asked at once: by the manifest of `edited`, or by the edits `groups`.

    The weights are in memory once, unless `edited` has no manifest or its edit is one of routed experts: then it is
    loaded beside the model, which the tracker is told. Raises InputError unless there is one of the two, for edits that
    do not fit the model, and for an output that was made of another; LayoutError for edits of experts without files.
    """
    if (edited is None) == (not groups):
        raise InputError("give the edited model either as EDITED or by its edit: --edit FILE")
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve(edited, notice=tracker.notice)
    edits = edits_in(groups)
    if other is not None and (other.folder / MANIFEST_NAME).exists():
        edits = edits_between(source, other)
    if other is not None and (not edits or any(edit.cell.expert is not None for edit in columns_of(edits))):
        why = "has an edit of experts" if edits else f"has no {MANIFEST_NAME} that says what was edited"
        tracker.notice(f"{other} {why}: it is loaded as a second model")
        first = load_source(source, loading, hooked=False)
        return Duet((Voice(first), Voice(load_edited(source, other, loading))))
    columns = changed_columns(source, edits)
    if other is not None:
        _check_made_of(source, other, columns)
    live = load_source(source, loading)
    return Duet((Voice(live, changes_of(columns, live)),))


def changed_columns(source: ModelSource, edits: Sequence[Edit]) -> tuple[EditedColumns, ...]:
    """The columns of a model as they are, and as edits leave them; raises what `Plan.of` and `edited_columns` raise."""
    spec = EditSpec((EntityEdits("what is edited", tuple(edits)),), source.ref, allow_overlap=True)
    return tuple(edited_columns(source.checkpoint, Plan.of(source.checkpoint, spec).tensors))


def _check_made_of(model: ModelSource, edited: ModelSource, columns: Sequence[EditedColumns]) -> None:
    """Raise InputError unless the tensors of a model are those that the edits of `edited` found."""
    steps = [*read_manifest(edited.folder).history()]
    earlier = model.checkpoint.manifest
    first = steps[len(steps) - (0 if earlier is None else len([*earlier.history()])) - 1]
    found = {row.plan.tensor.name: row for row in columns}
    for row in first.tensors:
        columns_there = found.get(row.name)
        if columns_there is None:
            continue
        if row.scope == "columns":
            digest = hashlib.sha256(b"".join(columns_there.before[index] for index in row.indices)).hexdigest()
        else:
            tensor = columns_there.plan.tensor
            whole = RangeHash(tensor.offset, tensor.size)
            hash_ranges(model.folder / columns_there.plan.file, [whole])
            digest = whole.hexdigest()
        if digest != row.before:
            raise InputError(
                f"{edited} was made of {first.base.ref}, whose {row.name} is not that of {model}: give the model that "
                "it was made of"
            )


def _in_one(steps: Sequence[Sequence[EntityEdits]]) -> tuple[Edit, ...]:
    """Edits made on top of each other, oldest first, as one edit of the same effect.

    Within an edit columns are scaled before directions are added, so a cell that a later one scales also scales what
    earlier directions have added there.
    """
    directions: list[DirectionEdit] = []
    for groups in steps:
        cells = join_cells(groups, allow_overlap=True)
        directions = [_scaled(edit, cells) for edit in directions]
        directions += [edit for found in join_directions(groups).values() for edit in found]
    total = join_cells([group for groups in steps for group in groups], allow_overlap=True)
    return (*(ColumnEdit(cell, multiplier) for cell, multiplier in total.items()), *directions)


def _scaled(edit: DirectionEdit, cells: Mapping[Cell, float]) -> DirectionEdit:
    factors = [cells.get(Cell(edit.layer, column), 1.0) for column in edit.columns]
    return replace(edit, read=Vector.of([u * factor for u, factor in zip(edit.read.array, factors, strict=True)]))


def _task_scores(
    live: LiveModel, tasks: Sequence[str], limit: int | None, tracker: Tracker
) -> Mapping[str, Mapping[str, float]]:
    if not tasks:
        return {}
    with tracker.task(f"lm-eval: {', '.join(tasks)}") as progress:
        found = lm_eval.task_scores(live, tasks, limit)
        progress(len(found))
    return found


def _cache(path: Path | None, loading: Loading, *models: ModelSource) -> MeasurementCache | None:
    """What is kept in the file `path` of the last of `models`, an adapter perhaps for the one before."""
    return None if path is None else MeasurementCache(path, fingerprint([model.folder for model in models], loading))


def fingerprint(folders: Sequence[Path], loading: Loading) -> str:
    """Tells the measurements of one model from those of all others, also of the same folder before it was changed.

    Of the model's files it looks at names, sizes and times of change, because hashing the weights takes as long as
    asking a small model.
    """
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for folder in folders for path in _files(folder)]
    versions = [version_of(name) for name in ("amnesia", "torch", "transformers")]
    whole = json.dumps([[str(folder.resolve()) for folder in folders], stats, loading.dtype, loading.device, versions])
    return hashlib.sha256(whole.encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def name_of(source: ModelSource) -> str:
    """A model's name without the path to it, which has no business in a file that people pass on."""
    name = source.ref.name
    return Path(name).name if Path(name).expanduser().exists() else str(source)


def check_report(output: Path, models: Iterable[str | None], *, force: bool = False) -> None:
    """Raise OutputError when a report cannot be written to `output`, or would replace one of the models."""
    for path in (Path(model).expanduser() for model in models if model is not None):
        if path.exists():
            check_output(output, path, force=force)
    check_output(output, force=force)


def write_report(document: dict[str, Any], output: Path, *, force: bool = False) -> None:
    """Write `report.json` and `report.html` into a new folder, complete or not at all."""
    with staged_output(output, force=force) as staging:
        (staging / REPORT_NAME).write_bytes(json_bytes(document))
        (staging / PAGE_NAME).write_bytes(report_html(document).encode())
