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
from amnesia.checkpoint import add_file, open_source, plan_edits
from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.domain import Extraction, Format
from amnesia.edits import EntityEdits
from amnesia.errors import LayoutError
from amnesia.evaluation import Evaluation
from amnesia.examination import conclude, examine, examine_after
from amnesia.files import check_output, staged_output
from amnesia.html import report_html
from amnesia.layouts import no_hooks
from amnesia.loading import load, load_adapter
from amnesia.manifest import write_manifest
from amnesia.mining import Mined, mine
from amnesia.model import LiveModel, Progress
from amnesia.own_outputs import PAGE_NAME, REPORT_NAME
from amnesia.popqa import read_popqa
from amnesia.questions import questions_of
from amnesia.recipe import Recipe
from amnesia.saving import output_bytes, rounding_notice, spec_of, write_format
from amnesia.sources import ModelSource, cache_folder, convert_gguf, resolve
from amnesia.sweep import sweep_strength


class Tracker(Protocol):
    """Where long work reports: one line about what begins, and a context that counts its steps."""

    def notice(self, line: str) -> None: ...

    def task(self, line: str) -> contextlib.AbstractContextManager[Progress]: ...


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
    dtype: str = "float32",
    device: str | None = None,
) -> RunResult:
    """Do what the recipe says and write `output`; only `force` writes a weak edit, and nothing writes none at all.

    One format fills `output` itself; several fill a subfolder each, named after the format. Every format's folder holds
    its manifest, `report.json` and `report.html`. Raises the errors of this package for what the user can mend.
    """
    # Minutes of fetching and search must not end in front of a folder that cannot be written.
    check_output(output, force=force)
    source = resolve(recipe.model, recipe.revision, tracker.notice)
    check_output(output, source.origin, force=force)
    if "gguf" in recipe.formats:
        source.require_gguf()
    if recipe.cells:
        plan_edits(open_source(source.folder), [EntityEdits(recipe.entity, recipe.cells)])
    questions = questions_of(recipe)
    live = load_source(source, dtype, device)
    with tracker.task("asking the original model") as progress:
        before = examine(live, questions, recipe.scoring, progress)
    targets, controls = select_known(questions, before.answers.answers, before.unknown, recipe.scoring)
    extraction = choose(live, recipe, targets, controls, tracker.task, cache_folder())
    if extraction.verdict == "none" or (extraction.verdict == "weak" and not force):
        return RunResult(extraction, {}, {}, False, None)
    with tracker.task("weaker and stronger edits") as progress:
        swept = sweep_strength(
            live,
            questions,
            before.answers.answers,
            before.unknown,
            extraction.edits,
            recipe.scoring,
            progress=progress,
        )
    del live
    gc.collect()

    spec = spec_of(source, [EntityEdits(recipe.entity, extraction.edits)], recipe_text=recipe.text)
    size = sum(output_bytes(name, source, spec) for name in recipe.formats)
    evaluations: dict[Format, Evaluation] = {}
    documents: dict[Format, dict[str, Any]] = {}
    with staged_output(output, force=force, needed_bytes=size, source=source.origin) as staging:
        written = []
        for name in recipe.formats:
            folder = staging if len(recipe.formats) == 1 else staging / name
            folder.mkdir(exist_ok=True)
            manifest = write_format(name, source, spec, folder)
            if line := rounding_notice(manifest):
                tracker.notice(line)
            with (
                loaded(name, source, folder, dtype, device) as edited,
                tracker.task(f"asking the saved {name}") as progress,
            ):
                after = examine_after(edited, questions, before, progress)
            evaluations[name] = conclude(questions, before, after, recipe.scoring)
            written.append((name, folder, manifest))
        accepted = all(evaluation.accepted(recipe.accept) for evaluation in evaluations.values())
        for name, folder, manifest in written:
            documents[name] = report.report_json(
                evaluations[name],
                recipe.entity,
                (source.id, source.revision),
                name,
                accepted=accepted,
                extraction=extraction,
                changed=manifest,
                sections={"sweep": asdict(swept)},
            )
            manifest = add_file(manifest, folder, REPORT_NAME, report.to_bytes(documents[name]))
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
    dtype: str = "float32",
    device: str | None = None,
) -> Mined:
    """A recipe for an entity, from the rows of a PopQA file that the model knows; see `mining.mine`."""
    rows = read_popqa(popqa)
    source = resolve(model, notice=tracker.notice)
    live = load_source(source, dtype, device)
    with tracker.task("asking what the model knows") as progress:
        # The id alone, because the revision has a place of its own in a recipe.
        return mine(live, rows, entity, model=source.id, revision=source.revision, aliases=aliases, progress=progress)


def load_source(
    source: ModelSource, dtype: str = "float32", device: str | None = None, *, hooked: bool = True
) -> LiveModel:
    """Load a model after its files have been looked over: damage is then named by file, before anything is read.

    `hooked` says that its activations will be watched or changed. Raises what `open_source` and `load` raise, and
    LayoutError when a mixture of experts should be hooked.
    """
    if open_source(source.folder).shape.n_experts and hooked:
        raise LayoutError(no_hooks(str(source)))
    return load(source.folder, str(source), dtype, device)


@contextlib.contextmanager
def loaded(
    name: Format, source: ModelSource, folder: Path, dtype: str = "float32", device: str | None = None
) -> Iterator[LiveModel]:
    """The saved output, loaded afresh with the plain libraries, as its users will load it."""
    if name == "safetensors":
        yield load(folder, str(folder), dtype, device)
    elif name == "adapter":
        yield load_adapter(source.folder, folder, str(folder), dtype, device)
    else:
        with TemporaryDirectory(prefix="amnesia-") as scratch:
            convert_gguf(folder / source.require_gguf().name, Path(scratch))
            yield load(Path(scratch), str(folder), dtype, device)
