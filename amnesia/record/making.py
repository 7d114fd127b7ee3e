"""Make an erasure record from a finished output, its reports, and what was asked."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from amnesia.domain import ADAPTERS, name_key
from amnesia.edits import by_projection, edit_at
from amnesia.errors import InputError, RecipeError, os_errors_as
from amnesia.evaluation.aggregation import aggregates
from amnesia.evaluation.bounds import Check, checks
from amnesia.evaluation.labels import facts_label
from amnesia.evaluation.results import ALL
from amnesia.files.disk import MANIFEST_NAME, hash_file, read_small
from amnesia.files.staging import REPORT_NAME
from amnesia.files.strict_json import StrictJson
from amnesia.outputs.proofs import outputs_in, prove_against, weight_hashes
from amnesia.progress import SILENT, Tracker
from amnesia.recipe import Accept, Recipe
from amnesia.recipe_file import parse_recipe
from amnesia.record.content import (
    ChangedTensor,
    Document,
    Original,
    Record,
    Restored,
    RightAnswers,
    Saved,
    Scope,
    Tested,
)
from amnesia.record.request import read_request
from amnesia.record.returning import returns_of
from amnesia.report.content import Report, read_report
from amnesia.weights.manifest import Manifest, tool_version
from amnesia.weights.manifest_file import read_manifest

_MAX_REPORT = 2**28


def make_record(
    output: Path,
    reports: Sequence[Path] = (),
    request: Path | None = None,
    base: str | None = None,
    tracker: Tracker = SILENT,
) -> Record:
    """The erasure record of the output in folder `output`, of all its formats; the same files give the same record.

    Every byte is proven first, as `verify` does, with `base` against the model that was edited. `reports` are further
    files `report.json` about the same weights, as `evaluate -o` writes them; `request` is a TOML file.

    Raises VerificationError for an output that is not what its manifest says; InputError for a report that is about
    another edit, other weights or none, for a request that cannot be read, and for formats with different edits.
    """
    fields = () if request is None else read_request(request)
    folders = outputs_in(output)
    manifests = {folder: read_manifest(folder) for folder in folders}
    # An adapter knows less of the files that it is for than a whole model does.
    first = min(manifests.values(), key=lambda manifest: manifest.format == "adapter")
    if any(row.edits != first.edits for row in manifests.values()):
        raise InputError(f"{output} holds outputs of different edits: record one of {', '.join(map(str, folders))}")
    saved = tuple(_saved(folder, manifest, base, tracker) for folder, manifest in manifests.items())
    measured = _Measured(manifests)
    found = _told_apart([*_own_reports(output, measured)], [_further(path, measured) for path in reports])
    read = {document.file: report for document, report in found}
    documents = [_document(output, folder / MANIFEST_NAME) for folder in folders] + [row for row, _ in found]
    recipes = _recipes(first)
    return Record(
        request=fields,
        scope=replace(_scope(first, recipes, list(read.values())), restored=_restored(manifests, saved)),
        original=Original(first.base.ref.portable.name, first.base.ref.revision, first.base.files),
        saved=saved,
        tested=tuple(
            _tested(name, report, [group.entity for group in first.edits], recipes) for name, report in read.items()
        ),
        returns=returns_of(list(read.values())),
        documents=tuple(documents),
        versions=_versions(first, list(read.values())),
    )


def _saved(folder: Path, manifest: Manifest, base: str | None, tracker: Tracker) -> Saved:
    with tracker.task(f"proving {folder.name}", 0):
        proof = prove_against(folder, base, tracker.notice)
    return Saved(
        format=manifest.format,
        tensors=tuple(
            ChangedTensor(row.name, row.file, row.axis, tuple(row.indices), row.before, row.after, row.scope)
            for row in manifest.tensors
        ),
        n_files_proven=proof.n_files,
        base_compared=proof.base_read,
        unproven=proof.unproven,
        undo=manifest.undo,
        undo_sha256=None if manifest.undo is None else hash_file(folder / manifest.undo),
        restored=tuple(
            Restored(name, tuple(index for _, index in rows))
            for name, rows in itertools.groupby(proof.restored, key=lambda place: place[0])
        ),
    )


def _restored(manifests: Mapping[Path, Manifest], saved: Sequence[Saved]) -> tuple[str, ...]:
    """The entities of whose columns none differs, in any whole model, from what it was before all edits."""
    differing: dict[str, bool] = {}
    for manifest, one in zip(manifests.values(), saved, strict=True):
        if manifest.format in ADAPTERS:
            continue
        same = {(row.name, index) for row in one.restored for index in row.indices}
        for step in manifest.history():
            for group in step.edits:
                own = by_projection((group,), allow_overlap=True)
                places = {(row.name, index) for row in step.tensors for index in edit_at(row.place, own).indices}
                differing[group.entity] = differing.get(group.entity, False) or not places <= same
    return tuple(name for name, differs in differing.items() if not differs)


class _Measured:
    """The outputs that reports may be about; their weights are hashed when a report says what it measured."""

    def __init__(self, manifests: Mapping[Path, Manifest]) -> None:
        self.manifests = manifests
        self._hashes = functools.cache(lambda folder: weight_hashes(folder, manifests[folder]))

    def check(self, path: Path, report: Report, folders: Collection[Path]) -> None:
        """Raise InputError unless the report in the file `path` is about the weights in one of the folders."""
        weights = None if report.changed is None else report.changed.weights
        if weights is not None and not any(weights == self._hashes(folder) for folder in folders):
            raise InputError(
                f"{path} is about other weights than those in {', '.join(map(str, folders))}: evaluate this output, "
                "and give the report of that"
            )


def _own_reports(output: Path, measured: _Measured) -> Iterator[tuple[Document, Report]]:
    for folder, manifest in measured.manifests.items():
        if REPORT_NAME in (*manifest.added, *manifest.replaced):
            report = _read(folder / REPORT_NAME)
            measured.check(folder / REPORT_NAME, report, [folder])
            yield _document(output, folder / REPORT_NAME), report


def _further(path: Path, measured: _Measured) -> tuple[Document, Report]:
    path = path / REPORT_NAME if path.is_dir() else path
    report = _read(path)
    changed = () if report.changed is None else report.changed.tensors
    about = [(row.name, row.before, row.after) for row in changed]
    folders = [
        folder
        for folder, manifest in measured.manifests.items()
        if [(row.name, row.before, row.after) for row in manifest.tensors] == about
    ]
    if report.changed is None or not folders:
        raise InputError(f"{path} is not about this edit: evaluate this output, and give the report of that")
    if report.changed.weights is None:
        raise InputError(
            f"{path} does not say which weights it is about, as reports of earlier versions do not: evaluate this "
            "output again, and give the report of that"
        )
    measured.check(path, report, folders)
    return Document(f"{path.absolute().parent.name}/{path.name}", hash_file(path)), report


def _told_apart(
    own: Sequence[tuple[Document, Report]], further: Sequence[tuple[Document, Report]]
) -> list[tuple[Document, Report]]:
    """The reports, numbered where folders share a name; raises InputError for one that is there already."""
    known = {document.sha256 for document, _ in own}
    found, names = list(own), {document.file for document, _ in own}
    for document, report in further:
        if document.sha256 in known:
            raise InputError(f"one report was given twice ({document.file}): give each once, and not the output's own")
        known.add(document.sha256)
        numbered = (f"{document.file} ({n})" for n in itertools.count(2))
        name = next(name for name in itertools.chain([document.file], numbered) if name not in names)
        names.add(name)
        found.append((replace(document, file=name), report))
    return found


def _read(path: Path) -> Report:
    with os_errors_as(InputError, f"report {path} cannot be read", "give a report.json of `run` or `evaluate -o`"):
        content = read_small(path, _MAX_REPORT)
    return read_report(StrictJson(str(path), InputError, "make the report again").parse(content), str(path))


def _document(output: Path, path: Path) -> Document:
    folder = output.parent if output.is_file() else output
    return Document(path.relative_to(folder).as_posix(), hash_file(path))


def _recipes(manifest: Manifest) -> list[Recipe]:
    """The recipe of each entity, as far as the manifest has it."""
    found = []
    for group in manifest.edits:
        try:
            found += [] if manifest.recipe is None else [parse_recipe(manifest.recipe, group.entity)]
        except RecipeError:
            continue  # Of an edit that was made without a recipe, or whose name was given by hand.
    return found


def _scope(manifest: Manifest, recipes: Sequence[Recipe], reports: Sequence[Report]) -> Scope:
    chosen = next((report.extraction for report in reports if report.extraction is not None), None)
    earlier = [group.entity for step in manifest.history() if step is not manifest for group in step.edits]
    translations: dict[str, list[str]] = defaultdict(list)
    for row in (row for recipe in recipes for row in recipe.target.translations):
        translations[row.language].append(row.name)
    return Scope(
        entities=tuple(group.entity for group in manifest.edits),
        earlier=tuple(dict.fromkeys(earlier)),
        aliases=tuple(name for recipe in recipes for name in recipe.target.aliases),
        translations={language: ", ".join(dict.fromkeys(names)) for language, names in translations.items()},
        forms=() if chosen is None else chosen.forms,
        neighbors=() if chosen is None else chosen.neighbors,
    )


def _tested(name: str, report: Report, entities: Sequence[str], recipes: Sequence[Recipe]) -> Tested:
    found = _checks(report, entities, recipes)
    if (ability := report.damage.ability) is not None:
        change = ability.change
        shown = "general ability: change of right answers"
        found.append(Check(shown, ability.n, change.mean, change.low, change.high, False, None, None))
    answers = (
        RightAnswers(facts_label(row.role, row.split), row.n, row.before.exact_match, row.after.exact_match)
        for row in report.aggregates
        if row.group == ALL and row.before.exact_match is not None and row.after.exact_match is not None
    )
    return Tested(name, report.edited, report.accepted, report.findings, tuple(found), tuple(answers))


def _checks(report: Report, entities: Sequence[str], recipes: Sequence[Recipe]) -> list[Check]:
    """What a report measured beside the bounds of the recipe, of several entities each beside its own.

    Of what all of them share, the closest bound counts.
    """
    if len(entities) == 1:
        return list(checks(report.aggregates, report.damage, recipes[0].accept if recipes else None))
    found = []
    bounds = {name_key(recipe.target.entity): recipe.accept for recipe in recipes}
    for name in entities:
        key = name_key(name)
        own = [row for row in report.prompts if row.role == "target" and name_key(row.entity) == key]
        part = checks(aggregates(own), replace(report.damage, languages=()), bounds.get(key))
        found += [replace(row, name=f"{row.name}: {name}") for row in part]
    shared = Accept(
        min_control=max((row.min_control for row in bounds.values()), default=Accept.min_control),
        max_perplexity=min((row.max_perplexity for row in bounds.values()), default=Accept.max_perplexity),
    )
    others = [row for row in report.aggregates if row.role != "target"]
    return [*found, *checks(others, report.damage, shared if bounds else None)]


def _versions(manifest: Manifest, reports: Sequence[Report]) -> dict[str, str]:
    edited_by, _, version = manifest.tool.partition(" ")
    found = {f"{edited_by} (edit)": version, **manifest.libraries}
    for report in reports:
        found |= {f"{name} (evaluation)": version for name, version in report.tool.items()}
    recorded_by, _, version = tool_version().partition(" ")
    return {**found, f"{recorded_by} (record)": version}
