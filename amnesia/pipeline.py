"""The main job: localize, choose the edit, save it, and evaluate the saved files with the plain libraries."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from amnesia import report
from amnesia.adapter import CONFIG_NAME
from amnesia.checkpoint import add_file, open_source, plan_edits
from amnesia.domain import Extraction, Format
from amnesia.edits import EntityEdits
from amnesia.errors import LayoutError
from amnesia.evaluation import Evaluation, Question, compare, measure, measure_unknown, questions_of
from amnesia.extraction import choose, select_known
from amnesia.files import check_output, staged_output
from amnesia.layouts import no_hooks
from amnesia.loading import load, load_adapter
from amnesia.manifest import write_manifest
from amnesia.mining import Mined, mine
from amnesia.model import LiveModel, Progress
from amnesia.own_outputs import REPORT_NAME
from amnesia.popqa import control_facts, facts_for, is_about, read_popqa
from amnesia.recipe import Recipe, Scoring
from amnesia.saving import output_bytes, spec_of, write_format
from amnesia.sources import ModelSource, convert_gguf, resolve


class Tracker(Protocol):
    """Where long work reports: one line about what begins, and a context that counts its steps."""

    def notice(self, line: str) -> None: ...

    def task(self, line: str) -> contextlib.AbstractContextManager[Progress]: ...


@dataclass(frozen=True)
class RunResult:
    """What a run chose, what the evaluation of each written format says, and whether the bounds hold.

    `output` is None when no handle on the entity was found, so that nothing was written.
    """

    extraction: Extraction
    evaluations: dict[Format, Evaluation]
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
    """Do what the recipe says and write `output`; nothing is written when no handle on the entity is found.

    One format fills `output` itself; several fill a subfolder each, named after the format. Every format's folder holds
    its manifest and `report.json`. Raises the errors of this package for what the user can mend.
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
        unknown = measure_unknown(live, questions, progress)
        before = measure(live, questions, progress=progress)
    targets, controls = select_known(questions, before.answers, unknown, recipe.scoring)
    extraction = choose(live, recipe, targets, controls, tracker.task)
    if extraction.verdict == "none":
        return RunResult(extraction, {}, False, None)
    del live
    gc.collect()

    spec = spec_of(source, [EntityEdits(recipe.entity, extraction.edits)], recipe_text=recipe.text)
    size = sum(output_bytes(name, source, spec) for name in recipe.formats)
    evaluations: dict[Format, Evaluation] = {}
    with staged_output(output, force=force, needed_bytes=size, source=source.origin) as staging:
        written = []
        for name in recipe.formats:
            folder = staging if len(recipe.formats) == 1 else staging / name
            folder.mkdir(exist_ok=True)
            manifest = write_format(name, source, spec, folder)
            with (
                loaded(name, source, folder, dtype, device) as edited,
                tracker.task(f"asking the saved {name}") as progress,
            ):
                after = measure(edited, questions, progress=progress)
            evaluations[name] = compare(questions, unknown, before, after, recipe.scoring)
            written.append((name, folder, manifest))
        accepted = all(evaluation.accepted(recipe.accept) for evaluation in evaluations.values())
        for name, folder, manifest in written:
            document = run_json(recipe, source, extraction, evaluations[name], accepted)
            manifest = add_file(manifest, folder, REPORT_NAME, report.to_bytes(document))
            write_manifest(replace(manifest, scores=report.scores_summary(evaluations[name])), folder)
    return RunResult(extraction, evaluations, accepted, output)


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


def run_json(
    recipe: Recipe, source: ModelSource, extraction: Extraction, evaluation: Evaluation, accepted: bool
) -> dict[str, Any]:
    """`report.json` of a run."""
    return {
        "model": {"id": source.id, "revision": source.revision},
        "entity": recipe.entity,
        "accepted": accepted,
        "extraction": report.extraction_json(extraction),
        **report.evaluation_json(evaluation),
    }


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


@dataclass(frozen=True)
class FactSet:
    """Questions to evaluate, the bounds of what counts as known, and a remark about what was left out."""

    questions: tuple[Question, ...]
    scoring: Scoring
    note: str | None = None


def facts_of_recipe(recipe: Recipe) -> FactSet:
    """The facts and controls of a recipe."""
    return FactSet(questions_of(recipe), recipe.scoring)


def facts_of_popqa(path: Path, entity: str, n_controls: int) -> FactSet:
    """Cloze and question prompts for a PopQA subject, and control prompts of the same relations for other subjects.

    Raises InputError when the file cannot be used or does not know the subject.
    """
    rows = read_popqa(path)
    own = facts_for(rows, entity)
    relations = {row.relation for row in rows if is_about(row, entity)}
    available = {row.subject.casefold() for row in rows if row.relation in relations and not is_about(row, entity)}
    others = control_facts(rows, entity, relations, min(n_controls, len(available)))
    unworded = Counter(dict(own.n_unknown_relation)) + Counter(dict(others.n_unknown_relation))
    note = ", ".join(f"{relation} ({n})" for relation, n in sorted(unworded.items()))
    targets = tuple(
        Question("target" if fact.split == "search" else "held_out_target", fact, (entity,)) for fact in own.facts
    )
    controls = tuple(
        Question("control" if fact.split == "search" else "held_out_control", fact) for fact in others.facts
    )
    return FactSet(
        targets + controls, Scoring(), f"rows of relations without wording left out: {note}" if note else None
    )


def evaluate_models(
    model: str,
    edited: str | None,
    facts: FactSet,
    tracker: Tracker,
    *,
    dtype: str = "float32",
    device: str | None = None,
) -> Evaluation:
    """Compare two models, whatever made the second; without it, compare the first with itself.

    `edited` may also be the folder of a PEFT adapter for `model`.
    """
    source = resolve(model, notice=tracker.notice)
    other = None if edited is None else resolve(edited, notice=tracker.notice)
    live = load_source(source, dtype, device, hooked=False)
    with tracker.task("asking the original model") as progress:
        unknown = measure_unknown(live, facts.questions, progress)
        before = measure(live, facts.questions, progress=progress)
    after = before
    if other is not None:
        del live
        gc.collect()
        if (other.folder / CONFIG_NAME).exists():
            live = load_adapter(source.folder, other.folder, str(other), dtype, device)
        else:
            live = load(other.folder, str(other), dtype, device)
        with tracker.task("asking the edited model") as progress:
            after = measure(live, facts.questions, progress=progress)
    return compare(facts.questions, unknown, before, after, facts.scoring)


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
