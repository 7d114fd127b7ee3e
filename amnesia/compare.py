"""Compare two models, whatever made the second: ask both the same questions, and write the report."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amnesia.domain import DEFAULT_LOADING, Loading, ModelRef, check_place, name_key, user_path
from amnesia.edits import Edit, EntityEdits, directions_of, edits_in
from amnesia.errors import InputError, VerificationError
from amnesia.evaluation import lm_eval
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.evaluation.lineage import changed_columns, check_made_for, edits_between, prove_edited
from amnesia.evaluation.measurement_cache import MeasurementCache, fingerprint
from amnesia.evaluation.results import Finding
from amnesia.evaluation.strength import sweep_strength
from amnesia.facts.questions import FactSet
from amnesia.files.companions import LORA_NAME, gguf_output, whole_output
from amnesia.files.disk import check_settled
from amnesia.files.staging import MANIFEST_NAME, PAGE_NAME, REPORT_NAME, check_output, staged_output
from amnesia.files.strict_json import json_bytes
from amnesia.live.chat_form import chat_format
from amnesia.live.duet import Duet, Voice, changes_of
from amnesia.live.loading import load, load_adapter, load_lora, load_source, load_tokenizer
from amnesia.live.model import LiveModel
from amnesia.live.tokens import encode
from amnesia.outputs.proofs import prove, weight_hashes
from amnesia.probes.results import Probes
from amnesia.probes.settings import ProbeSettings
from amnesia.progress import Tracker
from amnesia.report import document as report
from amnesia.report.content import Tasks
from amnesia.report.page import report_html
from amnesia.servers.server import Server, connect
from amnesia.sources.opening import check_on_disk
from amnesia.sources.resolve import resolve, resolve_texts
from amnesia.sources.source import ModelSource
from amnesia.stress.results import Relearning, Stress
from amnesia.stress.settings import RelearningSettings, StressSettings
from amnesia.trials import Trials
from amnesia.weights.adapter import CONFIG_NAME
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest


@dataclass(frozen=True)
class Assessment:
    """The evaluation of two models, the content of `report.json`, and what was asked for: stress, probes, tasks."""

    evaluation: Evaluation
    document: dict[str, Any]
    stress: Stress | None = None
    relearning: Relearning | None = None
    probes: Probes | None = None
    tasks: Tasks | None = None


def assess(
    model: str,
    edited: str | None,
    facts: FactSet,
    tracker: Tracker,
    *,
    stress: StressSettings | None = None,
    relearning: RelearningSettings | None = None,
    probes: ProbeSettings | None = None,
    sweep: bool = False,
    loading: Loading = DEFAULT_LOADING,
    measurements: Path | None = None,
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
) -> Assessment:
    """Ask both models about the facts; without `edited`, say what `model` knows.

    `edited` may also be the folder of an adapter for `model`, of PEFT or of llama.cpp. With `stress`, both also go
    through attacks and quantization; with `relearning`, both are fine-tuned, beside the original after LoRA unlearning;
    with `probes`, they are also asked in other ways. With `sweep`, the edit is made weaker and stronger, for which its
    manifest must be there. Answers to the questions are kept in the file `measurements`, from which a second call takes
    what is there. `tasks` are those of the lm-eval harness, on `task_limit` documents each. Raises InputError for
    stress, relearning or a sweep without `edited`, for a sweep without a manifest, and for tasks without the harness;
    LayoutError for a sweep of experts.
    """
    trials = Trials(stress, relearning, probes)
    _check_wanted(edited, trials, sweep, tasks)
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve_edited(source, edited, tracker)
    if other is not None:
        check_loading(other, loading)
    swept_edits = ()
    if sweep and other is not None:
        swept_edits = edits_between(source, other)
        prove_edited(source, other, partial(tracker.task, f"comparing {other} with {source}"))
    manifest, weights = (None, None) if other is None else _proven(other, tracker)
    if manifest is not None:
        facts = _spared(facts, manifest, tracker)
    caches = (
        _cache(measurements, loading, source),
        None if other is None else _cache(measurements, loading, source, other),
    )
    live = load_source(source, loading, hooked=sweep, notice=tracker.notice)
    chat_format(live.tokenizer, tracker.notice)  # A template that cannot be used is told before minutes of work.
    with tracker.task("asking the original model") as progress:
        before = examine(live, facts.questions, facts.scoring, progress, caches[0])
    scores = [_task_scores(live, tasks, task_limit, tracker)]
    finish = trials.begin(live, before.facts, facts, tracker, caches)
    after = swept = None
    if sweep:
        with tracker.task("weaker and stronger edits") as progress:
            swept = sweep_strength(live, before.facts, swept_edits, progress=progress)
    if other is None:
        found = finish(None)
    else:
        del live
        gc.collect()
        live = load_edited(source, other, loading)
        with tracker.task("asking the edited model") as progress:
            after = examine_after(live, before, progress, caches[1])
        scores.append(_task_scores(live, tasks, task_limit, tracker))
        found = finish(live)
    evaluation = conclude(before, after)
    task_scores = report.tasks_of(*scores) if tasks else None
    document = report.report_json(
        evaluation,
        facts.entity,
        source.ref,
        None if other is None else name_of(other),
        changed=manifest,
        weights=weights,
        sections={
            "lm_eval": task_scores,
            "stress": found.stress,
            "relearning": found.relearning,
            "probes": found.probes,
            "sweep": swept,
        },
        further=found.findings,
    )
    return Assessment(evaluation, document, found.stress, found.relearning, found.probes, task_scores)


def _proven(edited: ModelSource, tracker: Tracker) -> tuple[Manifest | None, dict[str, str] | None]:
    """What an edited model says of its edit, once its bytes have proven it, with the hashes of its weights."""
    if not (edited.folder / MANIFEST_NAME).exists():
        return None, None
    manifest = read_manifest(edited.folder)
    try:
        prove(edited.folder, watch=partial(tracker.task, f"proving {edited}"), with_others=True)
    except VerificationError as error:
        tracker.notice(f"{edited} is not what its {MANIFEST_NAME} says ({error}): its edit is no part of the report")
        return None, None
    return manifest, weight_hashes(edited.folder, manifest, partial(tracker.task, f"hashing {edited}"))


def assess_servers(
    original: str, edited: str | None, facts: FactSet, tracker: Tracker, chat_of: str | None = None
) -> Assessment:
    """The same of models that servers have, by their addresses; nothing is kept for a second call.

    With the template of the model `chat_of` half of the questions are asked as messages, too. No server tells its own
    in a way that all have; that it is this one is taken on trust. Raises InputError when both addresses name one model,
    for a template that is missing, and where a server reads a message in another number of tokens; and what
    `servers.server.connect` and `sources.resolve.resolve_texts` raise.
    """
    first = connect(original)
    second = None if edited is None else connect(edited)
    if second is not None and second.engine == first.engine:
        raise InputError(f"both addresses name {first.name} at {first.url}: give two models")
    template = None if chat_of is None else resolve_texts(chat_of, tracker.notice)
    if template is not None:
        first, second = _with_chat((first, second), template, tracker)
        assert first is not None, "as before"
    servers = [server for server in (first, second) if server is not None]
    for server in servers:
        tracker.notice(
            f"{server.name} at {server.url}: answers to the same question differ by {server.spread:.4f} nats"
        )
    with tracker.task("asking the original model") as progress:
        before = examine(first, facts.questions, facts.scoring, progress)
    after = None
    if second is not None:
        with tracker.task("asking the edited model") as progress:
            after = examine_after(second, before, progress)
    evaluation = conclude(before, after)
    document = report.report_json(
        evaluation,
        facts.entity,
        ModelRef(first.name),
        None if second is None else second.name,
        further=[*dict.fromkeys(map(_trusted, servers)), _NO_MESSAGES if template is None else _messages(template)],
    )
    return Assessment(evaluation, document)


_NO_MESSAGES = Finding(
    "info",
    "Nothing was asked as a message: the chat template of a served model is not known. Where it has one, name the "
    "model with --server-chat.",
)


def _messages(template: ModelSource) -> Finding:
    return Finding(
        "info",
        f"Messages were written with the chat template of {name_of(template)}, as --server-chat has it. Servers do not "
        "show theirs: where it is another, what was asked is not what their users ask.",
    )


def _with_chat(
    servers: tuple[Server, Server | None], source: ModelSource, tracker: Tracker
) -> tuple[Server, Server | None]:
    """The servers with the chat template of a model.

    Raises InputError where one reads a message in another number of tokens, which tells another tokenizer, and no other
    template on the same.
    """
    tokenizer = load_tokenizer(source)
    chat = chat_format(tokenizer, tracker.notice)
    if chat is None:
        raise InputError(f"{name_of(source)} has no chat template that can be used: drop --server-chat")
    message = chat("What is the capital of France?")
    (expected,) = encode(tokenizer, [message])
    for server in filter(None, servers):
        if (found := server.engine.count(message)) != len(expected.ids):
            raise InputError(
                f"{server.name} at {server.url} reads a message in {found} tokens, {name_of(source)} in "
                f"{len(expected.ids)}: give the model that is served, or drop --server-chat"
            )
    first, second = (None if server is None else replace(server, chat=chat) for server in servers)
    assert first is not None, "it was given"
    return first, second


def _trusted(server: Server) -> Finding:
    return Finding(
        "info",
        f"{server.name} was asked through a server, whose log-probabilities passed the checks: two answers to the same "
        f"question differed by {server.spread:.4f} nats at most.",
    )


def _check_wanted(edited: str | None, trials: Trials, sweep: bool, tasks: Sequence[str]) -> None:
    if trials.compares and edited is None:
        raise InputError("stress tests and relearning compare two models: give EDITED too")
    if sweep and edited is None:
        raise InputError("a sweep leads from one model to the other: give EDITED too")
    if tasks:
        lm_eval.check_available()


def _spared(facts: FactSet, manifest: Manifest, tracker: Tracker) -> FactSet:
    """The facts without controls about entities that the edits forget, too, of which a line tells."""
    groups = [group for step in manifest.history() for group in step.edits]
    forgotten = {name_key(group.entity): group.entity for group in groups}
    lost = [row for row in facts.questions if row.role == "control" and name_key(row.fact.entity) in forgotten]
    if not lost:
        return facts
    names = ", ".join(dict.fromkeys(forgotten[name_key(row.fact.entity)] for row in lost))
    tracker.notice(f"no controls, because the edited model is to forget them, too: {names}")
    return replace(facts, questions=tuple(row for row in facts.questions if row not in lost))


def _is_beside(edited: ModelSource) -> bool:
    """Whether a folder holds no weights of a whole model in safetensors, but an adapter or a GGUF."""
    return gguf_output(edited.folder) is not None or any(
        (edited.folder / name).exists() for name in (CONFIG_NAME, LORA_NAME)
    )


def resolve_edited(source: ModelSource, name: str, tracker: Tracker) -> ModelSource:
    """An edited model, an adapter, or the folder of a GGUF; what cannot be opened is said now, before minutes of work.

    Raises what `resolve` raises, CheckpointError for weights that are missing or malformed, and InputError for an
    adapter that was made for another model than `source`, and for a path that is not UTF-8.
    """
    folder = whole_output(user_path(name))
    check_place(str(folder))
    if gguf_output(folder) is not None:  # As a file it would be without its manifest.
        check_settled(folder)
        return ModelSource(folder, ModelRef(str(folder)))
    found = resolve(name, notice=tracker.notice)
    if not _is_beside(found):
        assert found.checkpoint
    check_made_for(source, found)
    return found


def check_loading(edited: ModelSource, loading: Loading) -> None:
    """Raises InputError for an adapter that cannot be put on layers that --offload leaves on the disk."""
    if loading.offload and (edited.folder / CONFIG_NAME).exists():
        check_on_disk(edited.folder)


def load_edited(source: ModelSource, edited: ModelSource, loading: Loading) -> LiveModel:
    """What `resolve_edited` found, an adapter with the original."""
    if (edited.folder / CONFIG_NAME).exists():
        return load_adapter(source.folder, edited.folder, str(edited), loading)
    if (edited.folder / LORA_NAME).exists():
        return load_lora(source.folder, edited.folder / LORA_NAME, str(edited), loading)
    if (gguf := gguf_output(edited.folder)) is not None:
        return load(resolve(gguf).folder, str(edited), loading)
    return load(edited.folder, str(edited), loading)


def open_duet(
    model: str,
    edited: str | None,
    groups: Sequence[EntityEdits],
    tracker: Tracker,
    loading: Loading = DEFAULT_LOADING,
) -> Duet:
    """A model and its edited self, to be asked at once: by the manifest of `edited`, or by the edits `groups`.

    The weights are in memory once, unless `edited` has no manifest or is not what that says, or its edit is one of
    routed experts or rounded in a GGUF: then it is loaded beside the model, which the tracker is told. Raises
    InputError unless there is one of the two, for edits that do not fit the model, and for an output that was made of
    another; LayoutError for edits of experts without files.
    """
    if (edited is None) == (not groups):
        raise InputError("give the edited model either as EDITED or by its edit: --edit FILE")
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve_edited(source, edited, tracker)
    edits = edits_in(groups)
    if other is not None and (other.folder / MANIFEST_NAME).exists():
        edits = edits_between(source, other)
    if other is not None and (why := _why_second(source, other, edits, tracker)) is not None:
        tracker.notice(f"{other} {why}: it is loaded as a second model")
        first = load_source(source, loading, hooked=False, notice=tracker.notice)
        return Duet((Voice(first), Voice(load_edited(source, other, loading))))
    columns = changed_columns(source, edits)
    live = load_source(source, loading, notice=tracker.notice)
    return Duet((Voice(live, changes_of(columns, live)),))


def _why_second(source: ModelSource, edited: ModelSource, edits: Sequence[Edit], tracker: Tracker) -> str | None:
    """Why one copy of the weights cannot be both models, or None when it can."""
    if not edits and (edited.folder / MANIFEST_NAME).exists():
        return "has edits that cancel out"
    if not edits:
        return f"has no {MANIFEST_NAME} that says what was edited"
    if any(edit.expert is not None for edit in edits):
        return "has an edit of experts"
    if gguf_output(edited.folder) is not None and directions_of(edits):
        return "has directions as its GGUF rounds them"
    try:
        prove_edited(source, edited, partial(tracker.task, f"comparing {edited} with {source}"))
    except VerificationError as error:
        return f"is not what its {MANIFEST_NAME} says ({error})"
    return None


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


def name_of(source: ModelSource) -> str:
    """A model's name without the path to it, which has no business in a file that people pass on."""
    name = source.ref.name
    return Path(name).name if user_path(name).exists() else str(source)


def check_report(output: Path, models: Iterable[str | None], *, force: bool | None = None) -> None:
    """Raise OutputError when a report cannot be written to `output`, or would replace one of the models."""
    for path in (user_path(model) for model in models if model is not None):
        if path.exists():
            check_output(output, path, force=force)
    check_output(output, force=force)


def write_report(document: dict[str, Any], output: Path, *, force: bool = False) -> None:
    """Write `report.json` and `report.html` into a new folder, complete or not at all."""
    with staged_output(output, force=force) as staging:
        (staging / REPORT_NAME).write_bytes(json_bytes(document))
        (staging / PAGE_NAME).write_bytes(report_html(document).encode())
