"""The main job: localize, choose the edit, save it, and evaluate the saved files with the plain libraries."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.choice.results import Extraction
from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import DEFAULT_LOADING, Format, Loading, ModelRef
from amnesia.edits import EntityEdits, by_projection
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import Examination, conclude, examine, examine_after
from amnesia.evaluation.merged import same_weights
from amnesia.evaluation.results import Finding, StrengthSweep
from amnesia.evaluation.strength import sweep_strength
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.files.staging import PAGE_NAME, REPORT_NAME, check_output, staged_output
from amnesia.files.strict_json import json_bytes
from amnesia.live.loading import load_source, loaded
from amnesia.live.model import LiveModel
from amnesia.mining.entity import TASK, mine
from amnesia.outputs.write import left_out_notice, plan_formats, rounding_notice, spec_of, write_format
from amnesia.progress import SILENT, Tracker
from amnesia.recipe import Recipe
from amnesia.report import document
from amnesia.report.page import report_html
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest_file import write_manifest
from amnesia.weights.plan import plan_edits


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

    There is no sweep of an edit that is not going to be written.
    """

    before: Examination
    extraction: Extraction
    swept: StrengthSweep | None


def run(
    recipe: Recipe,
    output: Path | str,
    tracker: Tracker = SILENT,
    *,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
) -> RunResult:
    """Do what the recipe says and write `output`; only `force` writes a weak edit, and nothing writes none at all.

    One format fills `output` itself; several fill a subfolder each, named after the format. Every format's folder holds
    its manifest, `report.json` and `report.html`. Raises the errors of this package for what the user can mend.
    """
    output = Path(output)
    source = _source(recipe.model, output, tracker, force)
    if "gguf" in recipe.edit.formats:
        source.require_gguf()
    if recipe.edit.cells:
        plan_edits(source.checkpoint, [EntityEdits(recipe.target.entity, recipe.edit.cells)])
    chosen = _choose(load_source(source, loading, notice=tracker.notice), recipe, tracker, force)
    return _save(recipe, source, chosen, output, tracker, force, loading)


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
) -> RunResult:
    """`run` with the recipe that is made from a PopQA file, or without one from what the model itself says.

    The model is loaded once; which facts were found is told before anything is chosen.
    """
    rows = None if popqa is None else read_popqa(popqa)
    source = _source(model, output, tracker, force)
    live = load_source(source, loading, notice=tracker.notice)
    with tracker.task(TASK) as progress:
        recipe = mine(live, entity, rows, source.ref, aliases, progress).recipe
    if rows is None:
        tracker.notice(
            f"{source.ref} says of {entity}: {', '.join(dict.fromkeys(fact.answer for fact in recipe.facts))}"
        )
    chosen = _choose(live, recipe, tracker, force)
    del live
    return _save(recipe, source, chosen, output, tracker, force, loading)


def _source(model: ModelRef | str, output: Path, tracker: Tracker, force: bool) -> ModelSource:
    """The model, when `output` can be written and does not overlap it."""
    # Minutes of fetching and search must not end in front of a folder that cannot be written.
    check_output(output, force=force)
    source = resolve(model, tracker.notice)
    check_output(output, source.origin, force=force)
    return source


def _choose(live: LiveModel, recipe: Recipe, tracker: Tracker, force: bool) -> _Chosen:
    with tracker.task("asking the original model") as progress:
        before = examine(live, questions_of(recipe), recipe.scoring, progress)
    targets, controls = select_known(before.facts)
    extraction = choose(live, recipe, targets, controls, tracker.task, cache_folder())
    if line := neighbors_notice(extraction):
        tracker.notice(line)
    if extraction.verdict == "none" or (extraction.verdict == "weak" and not force):
        return _Chosen(before, extraction, None)
    with tracker.task("weaker and stronger edits") as progress:
        swept = sweep_strength(live, before.facts, extraction.edits.edits, progress=progress)
    return _Chosen(before, extraction, swept)


def neighbors_notice(extraction: Extraction) -> str | None:
    """Which neighbors of the name an edit takes along, with their scores; None where it keeps all of them."""
    lost = sorted(
        (row for row in extraction.neighbors if row.score < ChoiceSettings.min_neighbor), key=lambda row: row.score
    )
    shown = ", ".join(f"{row.name} {row.score:.2f}" for row in lost)
    return f"what the model says of neighbors is lost in part (1 is untouched): {shown}" if lost else None


def _save(
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
    spec = spec_of(source, [extraction.edits], recipe_text=recipe.text)
    plans = plan_formats(recipe.edit.formats, source, spec)
    size = sum(plan.n_bytes() for plan in plans.values())
    evaluations: dict[Format, Evaluation] = {}
    documents: dict[Format, dict[str, Any]] = {}
    with staged_output(output, force=force, needed_bytes=size, source=source.origin) as staging:
        written = []
        layers = {layer for layer, _ in by_projection([extraction.edits])}
        further: dict[Format, tuple[Finding, ...]] = {}
        for name, plan in plans.items():
            folder = staging if len(recipe.edit.formats) == 1 else staging / name
            folder.mkdir(exist_ok=True)
            with tracker.task(f"writing {name}", plan.n_written()) as progress:
                manifest = write_format(plan, folder, progress=progress)
            for line in filter(None, (rounding_notice(manifest), left_out_notice(manifest))):
                tracker.notice(line)
            same = None
            if name == "adapter" and "safetensors" in evaluations:
                with tracker.task("merging the saved adapter") as progress:
                    asked, weights = evaluations["safetensors"], staging / "safetensors"
                    same = same_weights(source, folder, weights, layers, asked, loading, progress)
            if same is not None:
                evaluations[name], further[name] = evaluations["safetensors"], (same.finding(),)
            else:
                with (
                    loaded(name, source, folder, loading) as edited,
                    tracker.task(f"asking the saved {name}") as progress,
                ):
                    after = examine_after(edited, chosen.before, progress)
                evaluations[name] = conclude(chosen.before, after)
            written.append((name, folder, manifest))
        accepted = all(evaluation.accepted(recipe.accept) for evaluation in evaluations.values())
        for name, folder, manifest in written:
            documents[name] = document.report_json(
                evaluations[name],
                recipe.target.entity,
                source.ref,
                name,
                accepted=accepted,
                extraction=extraction,
                changed=manifest,
                sections={"sweep": chosen.swept},
                further=further.get(name, ()),
            )
            manifest = add_file(manifest, folder, REPORT_NAME, json_bytes(documents[name]))
            manifest = add_file(manifest, folder, PAGE_NAME, report_html(documents[name]).encode())
            write_manifest(replace(manifest, scores=document.scores_summary(evaluations[name])), folder)
    return RunResult(extraction, evaluations, documents, accepted, output)
