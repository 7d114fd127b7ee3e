"""The main job: localize, choose the edit, save it, and evaluate the saved files with the plain libraries."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amnesia.choice.direction import JudgedTrial, Watch
from amnesia.choice.extraction import choose, judge
from amnesia.choice.front import CANDIDATES, candidate_line
from amnesia.choice.known import select_known
from amnesia.choice.results import Extraction
from amnesia.domain import DEFAULT_LOADING, OF_GGUF, Format, Loading, ModelRef
from amnesia.edits import EditSpec, EntityEdits, by_projection, names_of
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.earlier import Earlier, earlier_edits, findings_after
from amnesia.evaluation.examination import Examination, conclude, examine, examine_after
from amnesia.evaluation.merged import ByNumbers, same_weights
from amnesia.evaluation.results import Finding, StrengthSweep
from amnesia.evaluation.strength import sweep_strength
from amnesia.facts.names import given_names
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.files.staging import PAGE_NAME, REPORT_NAME, check_output, staged_output
from amnesia.files.strict_json import json_bytes
from amnesia.live.chat_form import chat_format
from amnesia.live.loading import load_source, loaded
from amnesia.live.model import LiveModel
from amnesia.live.split import by_first, check_same
from amnesia.mining.carrying import carried_over, known_notice
from amnesia.mining.entity import TASK, mine, table_about
from amnesia.outputs.proofs import check_unaltered, weight_hashes
from amnesia.outputs.write import FormatPlan, left_out_notice, plan_formats, rounding_notice, spec_of, write_format
from amnesia.progress import SILENT, Progress, Tracker
from amnesia.recipe import Recipe
from amnesia.report import document
from amnesia.report.page import report_html
from amnesia.report.tables import neighbors_line
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest import Manifest, forgotten
from amnesia.weights.manifest_file import write_manifest
from amnesia.weights.merging import n_rounded
from amnesia.weights.plan import Plan, plan_edits


@dataclass(frozen=True)
class RunResult:
    """What a run chose, what the evaluation of each written format says, and whether the bounds hold.

    `reports` are the contents of the `report.json` of each format. `output` is None when nothing was written,
    because no handle on the entity was found, or only a weak one.
    """

    extraction: Extraction
    evaluations: dict[Format, Evaluation]
    reports: dict[Format, dict[str, Any]]
    accepted: bool
    output: Path | None


@dataclass(frozen=True)
class _Chosen:
    """What the original model knows, the edit that was chosen for it, and weaker and stronger forms of that edit.

    `earlier` are the entities that it was edited for before.

    There is no sweep of an edit that is not going to be written.
    """

    before: Examination
    extraction: Extraction
    swept: StrengthSweep | None
    earlier: tuple[Earlier, ...] = ()


def run(
    recipe: Recipe,
    output: Path | str,
    tracker: Tracker = SILENT,
    *,
    model: ModelRef | str | None = None,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
    wide: bool = False,
) -> RunResult:
    """Do what the recipe says and write `output`; only `force` writes a weak edit, and nothing writes none at all.

    `model` forgets in place of the recipe's own; the manifest then has the recipe for that one (`mining.carrying`).
    With `wide`, more edits are measured once one is chosen, for `extraction.front`. One format fills `output` itself;
    several fill a subfolder each, named after the format. Every format's folder holds its manifest, `report.json` and
    `report.html`. Raises the errors of this package for what the user can mend.
    """
    output = Path(output)
    source = _source(model or recipe.model, output, tracker, force)
    if model is not None:
        recipe, notices = carried_over(recipe, source.ref, source.checkpoint.shape.n_layers)
        for line in notices:
            tracker.notice(line)
    if {*OF_GGUF} & {*recipe.edit.formats}:
        source.require_gguf()
    if recipe.edit.cells:
        plan_edits(source.checkpoint, [EntityEdits(recipe.target.entity, recipe.edit.cells)])
    live = load_source(source, loading, layers=recipe.localization.layers, notice=tracker.notice)
    manifest = source.checkpoint.manifest
    chosen = _choose(live, recipe, manifest, tracker, force, tell_known=model is not None, wide=wide)
    del live
    return save_chosen(recipe, source, chosen, output, tracker, force, loading)


def run_mined(
    model: str,
    entity: str,
    popqa: Path | None,
    output: Path,
    tracker: Tracker = SILENT,
    *,
    aliases: Sequence[str] = (),
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
    wide: bool = False,
) -> RunResult:
    """`run` with the recipe that is made from a PopQA file, or without one from what the model itself says.

    The model is loaded once; which facts were found is told before anything is chosen.
    """
    given_names((entity, *aliases))
    rows = table_about(popqa, entity)
    source = _source(model, output, tracker, force)
    live = load_source(source, loading, notice=tracker.notice)
    with tracker.task(TASK) as progress:
        recipe = mine(live, entity, rows, source.ref, aliases, progress).recipe
    if rows is None:
        tracker.notice(
            f"{source.ref} says of {entity}: {', '.join(dict.fromkeys(fact.answer for fact in recipe.facts))}"
        )
    chosen = _choose(live, recipe, source.checkpoint.manifest, tracker, force, wide=wide)
    del live
    return save_chosen(recipe, source, chosen, output, tracker, force, loading)


def _source(model: ModelRef | str, output: Path, tracker: Tracker, force: bool) -> ModelSource:
    """The model, when `output` can be written and does not overlap it."""
    # Minutes of fetching and search must not end in front of a folder that cannot be written.
    check_output(output, force=force)
    source = resolve(model, tracker.notice)
    check_output(output, source.origin, force=force)
    check_unaltered(source.origin, partial(tracker.task, "proving the edit before"))
    return source


def _choose(
    live: LiveModel,
    recipe: Recipe,
    manifest: Manifest | None,
    tracker: Tracker,
    force: bool,
    *,
    tell_known: bool = False,
    wide: bool = False,
) -> _Chosen:
    chat_format(live.tokenizer, tracker.notice)  # A template that cannot be used is told before minutes of work.
    with tracker.task("asking the original model") as progress:
        before = examine(live, questions_of(recipe), recipe.scoring, progress)
    if tell_known:
        tracker.notice(known_notice(before.facts, live.name, recipe.target.entity))
    targets, controls = select_known(before.facts)
    extraction = choose(
        live,
        recipe,
        targets,
        controls,
        tracker.task,
        cache_folder(),
        forgotten(manifest),
        watch=_telling(tracker),
        wide=wide,
    )
    check_same(extraction.edits)
    if line := neighbors_line(extraction.neighbors):
        tracker.notice(line)
    if extraction.verdict == "none" or (extraction.verdict == "weak" and not force):
        return _Chosen(before, extraction, None)
    with tracker.task("weaker and stronger edits") as progress:
        swept = sweep_strength(live, before.facts, extraction.edits.edits, progress=progress)
        earlier = earlier_edits(live, manifest, progress)
    return _Chosen(before, extraction, swept, earlier)


def _telling(tracker: Tracker) -> Watch:
    """Tells of each candidate in a line, before the first also of what they are."""
    heads = iter([CANDIDATES])

    def tell(trial: JudgedTrial) -> None:
        for line in (*heads, candidate_line(trial)):
            tracker.notice(line)

    return tell


def given(live: LiveModel, recipe: Recipe, edits: EntityEdits, tracker: Tracker, force: bool) -> _Chosen:
    """An edit that nobody chose for this model, judged by the recipe's search facts; raises InputError as `extract`."""
    with tracker.task("asking the original model") as progress:
        before = examine(live, questions_of(recipe), recipe.scoring, progress)
    tracker.notice(known_notice(before.facts, live.name, recipe.target.entity))
    with tracker.task("asking with the edit in memory") as progress:
        extraction = judge(live, edits, *select_known(before.facts), recipe.accept, progress)
    if extraction.verdict == "none" or (extraction.verdict == "weak" and not force):
        return _Chosen(before, extraction, None)
    with tracker.task("weaker and stronger edits") as progress:
        swept = sweep_strength(live, before.facts, edits.edits, progress=progress)
    return _Chosen(before, extraction, swept)


def save_chosen(
    recipe: Recipe,
    source: ModelSource,
    chosen: _Chosen,
    output: Path,
    tracker: Tracker,
    force: bool,
    loading: Loading,
) -> RunResult:
    """Write each format, evaluate what was written, and add the reports."""
    extraction = chosen.extraction
    if chosen.swept is None:
        return RunResult(extraction, {}, {}, False, None)
    gc.collect()  # The original model, which nothing refers to any more.
    saved = save_and_ask(
        source,
        spec_of(source, [extraction.edits], recipe_text=recipe.text),
        recipe.edit.formats,
        chosen.before,
        lambda evaluation: evaluation.accepted(recipe.accept),
        output,
        tracker,
        force=force,
        loading=loading,
        extraction=extraction,
        sections={"sweep": chosen.swept},
        earlier=chosen.earlier,
    )
    return RunResult(extraction, saved.evaluations, saved.reports, saved.accepted, output)


@dataclass(frozen=True)
class Saved:
    """What the evaluation of each written format says, its `report.json`, and whether all of them are accepted."""

    evaluations: dict[Format, Evaluation]
    reports: dict[Format, dict[str, Any]]
    accepted: bool


def save_and_ask(
    source: ModelSource,
    spec: EditSpec,
    formats: Sequence[Format],
    before: Examination,
    accepts: Callable[[Evaluation], bool],
    output: Path,
    tracker: Tracker,
    *,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
    extraction: Extraction | None = None,
    sections: Mapping[str, StrengthSweep | None] | None = None,
    earlier: Sequence[Earlier] = (),
) -> Saved:
    """Write each format of an edit, ask the saved files what the original was asked, and add manifests and reports.

    The original model should not be in memory any more. `accepts` says of an evaluation whether its bounds hold. The
    report says how that fares which `earlier` edits made the model forget.
    """
    plans = plan_formats(formats, source, spec)
    size = sum(plan.n_bytes() for plan in plans.values())
    entity = names_of(spec.groups)
    evaluations: dict[Format, Evaluation] = {}
    documents: dict[Format, dict[str, Any]] = {}
    further: dict[Format, tuple[Finding, ...]] = {}
    told: tuple[Finding, ...] = ()
    with contextlib.ExitStack() as stack:
        staged = staged_output(output, force=force, needed_bytes=size, source=source.origin)
        staging = by_first(lambda: stack.enter_context(staged))
        written = []
        layers = {layer for layer, _ in by_projection(spec.groups, allow_overlap=True)}
        for name, plan in plans.items():
            folder = staging if len(formats) == 1 else staging / name
            with tracker.task(f"writing {name}", plan.n_written()) as progress:
                manifest = by_first(partial(_written, plan, folder, progress))
            for line in filter(None, (rounding_notice(manifest), left_out_notice(manifest))):
                tracker.notice(line)
            same, numbers = None, _by_numbers(plan, folder, loading)
            if name == "adapter" and "safetensors" in evaluations:
                with tracker.task("merging the saved adapter") as progress:
                    asked, weights = evaluations["safetensors"], staging / "safetensors"
                    same = same_weights(source, folder, weights, layers, asked, loading, progress, numbers)
            if same is not None:
                evaluations[name], further[name] = evaluations["safetensors"], (same.finding(), *told)
            else:
                with (
                    loaded(name, source, folder, loading) as edited,
                    tracker.task(f"asking the saved {name}") as progress,
                ):
                    after = examine_after(edited, before, progress)
                    told = findings_after(edited, earlier, progress)
                proven = () if numbers is None else (numbers.finding(),)
                evaluations[name], further[name] = conclude(before, after), (*proven, *told)
            written.append((name, folder, manifest))
        accepted = all(map(accepts, evaluations.values()))
        for name, folder, manifest in written:
            documents[name] = document.report_json(
                evaluations[name],
                entity,
                source.ref,
                name,
                accepted=accepted,
                extraction=extraction,
                changed=manifest,
                weights=weight_hashes(folder, manifest, partial(tracker.task, f"hashing {name}")),
                sections=sections,
                further=further[name],
            )
            scored = replace(manifest, scores=document.scores_summary(evaluations[name]))
            by_first(partial(_completed, scored, folder, documents[name]))
    for row in told:
        tracker.notice(row.text)
    return Saved(evaluations, documents, accepted)


def _written(plan: FormatPlan, folder: Path, progress: Progress) -> Manifest:
    folder.mkdir(exist_ok=True)
    return write_format(plan, folder, progress=progress)


def _by_numbers(plan: FormatPlan, folder: Path, loading: Loading) -> ByNumbers | None:
    """What the numbers of a written adapter come to where PEFT cannot merge it: into a model that lies in parts."""
    if plan.format != "adapter" or not (loading.split or loading.offload):
        return None
    assert isinstance(plan.edit, Plan)
    return ByNumbers(by_first(partial(n_rounded, plan.edit, folder)), loading.split)


def _completed(manifest: Manifest, folder: Path, report: dict[str, Any]) -> None:
    """Add the report to an output, and its manifest, which says that it is whole."""
    manifest = add_file(manifest, folder, REPORT_NAME, json_bytes(report))
    manifest = add_file(manifest, folder, PAGE_NAME, report_html(report).encode())
    write_manifest(manifest, folder)
