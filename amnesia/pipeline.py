"""The main job: localize, choose the edit, save it, and evaluate the saved files with the plain libraries."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.choice.results import Extraction
from amnesia.domain import DEFAULT_LOADING, Format, Loading
from amnesia.edits import EntityEdits
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.evaluation.strength import sweep_strength
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.files.staging import PAGE_NAME, REPORT_NAME, check_output, staged_output
from amnesia.files.strict_json import json_bytes
from amnesia.live.loading import load_source, loaded
from amnesia.outputs.write import left_out_notice, plan_formats, rounding_notice, spec_of, write_format
from amnesia.progress import SILENT, Tracker
from amnesia.recipe import Recipe
from amnesia.report import document
from amnesia.report.page import report_html
from amnesia.sources.resolve import resolve
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
    # Minutes of fetching and search must not end in front of a folder that cannot be written.
    check_output(output, force=force)
    source = resolve(recipe.model, tracker.notice)
    check_output(output, source.origin, force=force)
    if "gguf" in recipe.edit.formats:
        source.require_gguf()
    if recipe.edit.cells:
        plan_edits(source.checkpoint, [EntityEdits(recipe.target.entity, recipe.edit.cells)])
    live = load_source(source, loading)
    with tracker.task("asking the original model") as progress:
        before = examine(live, questions_of(recipe), recipe.scoring, progress)
    targets, controls = select_known(before.facts)
    extraction = choose(live, recipe, targets, controls, tracker.task, cache_folder())
    if extraction.verdict == "none" or (extraction.verdict == "weak" and not force):
        return RunResult(extraction, {}, {}, False, None)
    with tracker.task("weaker and stronger edits") as progress:
        swept = sweep_strength(live, before.facts, extraction.edits.edits, progress=progress)
    del live
    gc.collect()

    spec = spec_of(source, [extraction.edits], recipe_text=recipe.text)
    plans = plan_formats(recipe.edit.formats, source, spec)
    size = sum(plan.n_bytes() for plan in plans.values())
    evaluations: dict[Format, Evaluation] = {}
    documents: dict[Format, dict[str, Any]] = {}
    with staged_output(output, force=force, needed_bytes=size, source=source.origin) as staging:
        written = []
        for name, plan in plans.items():
            folder = staging if len(recipe.edit.formats) == 1 else staging / name
            folder.mkdir(exist_ok=True)
            with tracker.task(f"writing {name}", plan.n_written()) as progress:
                manifest = write_format(plan, folder, progress=progress)
            for line in filter(None, (rounding_notice(manifest), left_out_notice(manifest))):
                tracker.notice(line)
            with (
                loaded(name, source, folder, loading) as edited,
                tracker.task(f"asking the saved {name}") as progress,
            ):
                after = examine_after(edited, before, progress)
            evaluations[name] = conclude(before, after)
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
                sections={"sweep": asdict(swept)},
            )
            manifest = add_file(manifest, folder, REPORT_NAME, json_bytes(documents[name]))
            manifest = add_file(manifest, folder, PAGE_NAME, report_html(documents[name]).encode())
            write_manifest(replace(manifest, scores=document.scores_summary(evaluations[name])), folder)
    return RunResult(extraction, evaluations, documents, accepted, output)
