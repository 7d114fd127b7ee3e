"""The main job: localize, choose the edit, save it, and evaluate the saved files with the plain libraries."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from amnesia import report
from amnesia.checkpoint import add_file
from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.choice.results import Extraction
from amnesia.domain import DEFAULT_LOADING, Format, Loading
from amnesia.edits import EntityEdits
from amnesia.errors import LayoutError
from amnesia.evaluation import Evaluation
from amnesia.examination import conclude, examine, examine_after
from amnesia.files import check_output, staged_output
from amnesia.html import report_html
from amnesia.layouts import no_hooks
from amnesia.loading import load, load_adapter
from amnesia.manifest_file import write_manifest
from amnesia.mining import Mined, mine
from amnesia.model import LiveModel
from amnesia.own_outputs import PAGE_NAME, REPORT_NAME
from amnesia.plan import plan_edits
from amnesia.popqa import read_popqa
from amnesia.progress import Progress
from amnesia.questions import questions_of
from amnesia.recipe import Recipe
from amnesia.saving import plan_formats, rounding_notice, spec_of, write_format
from amnesia.sources import ModelSource, cache_folder, convert_gguf, resolve
from amnesia.strict_json import json_bytes
from amnesia.sweep import sweep_strength


class Tracker(Protocol):
    """Where long work reports: one line about what begins, and a context that counts its steps.

    The steps are bytes where `n_bytes` says how many there will be, and prompts otherwise.
    """

    def notice(self, line: str) -> None: ...

    def task(self, line: str, n_bytes: int | None = None) -> contextlib.AbstractContextManager[Progress]: ...


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
    output: Path,
    tracker: Tracker,
    *,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
) -> RunResult:
    """Do what the recipe says and write `output`; only `force` writes a weak edit, and nothing writes none at all.

    One format fills `output` itself; several fill a subfolder each, named after the format. Every format's folder holds
    its manifest, `report.json` and `report.html`. Raises the errors of this package for what the user can mend.
    """
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
            with tracker.task(f"writing {name}", plan.n_bytes()) as progress:
                manifest = write_format(plan, folder, progress=progress)
            if line := rounding_notice(manifest):
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
            documents[name] = report.report_json(
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
            write_manifest(replace(manifest, scores=report.scores_summary(evaluations[name])), folder)
    return RunResult(extraction, evaluations, documents, accepted, output)


def mine_recipe(
    model: str,
    entity: str,
    popqa: Path,
    tracker: Tracker,
    *,
    aliases: Sequence[str] = (),
    loading: Loading = DEFAULT_LOADING,
) -> Mined:
    """A recipe for an entity, from the rows of a PopQA file that the model knows; see `mining.mine`."""
    rows = read_popqa(popqa)
    source = resolve(model, notice=tracker.notice)
    live = load_source(source, loading)
    with tracker.task("asking what the model knows") as progress:
        return mine(live, rows, entity, model=source.ref, aliases=aliases, progress=progress)


def load_source(source: ModelSource, loading: Loading = DEFAULT_LOADING, *, hooked: bool = True) -> LiveModel:
    """Load a model after its files have been looked over: damage is then named by file, before anything is read.

    `hooked` says that its activations will be watched or changed. Raises what `open_source` and `load` raise, and
    LayoutError when a mixture of experts should be hooked.
    """
    if source.checkpoint.shape.n_experts and hooked:
        raise LayoutError(no_hooks(str(source)))
    return load(source.folder, str(source), loading)


@contextlib.contextmanager
def loaded(name: Format, source: ModelSource, folder: Path, loading: Loading = DEFAULT_LOADING) -> Iterator[LiveModel]:
    """The saved output, loaded afresh with the plain libraries, as its users will load it."""
    if name == "safetensors":
        yield load(folder, str(folder), loading)
    elif name == "adapter":
        yield load_adapter(source.folder, folder, str(folder), loading)
    else:
        with TemporaryDirectory(prefix="amnesia-") as scratch:
            convert_gguf(folder / source.require_gguf().name, Path(scratch))
            yield load(Path(scratch), str(folder), loading)
