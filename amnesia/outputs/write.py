"""From a chosen edit to a complete output in any format. Reads and writes bytes; never builds the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amnesia.domain import FORMATS, Cell, Format, check_characters, entity_name, is_gguf_name
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits, named_after_cells, names_of
from amnesia.errors import InputError, os_errors_as
from amnesia.files.companions import MODELFILE_NAME
from amnesia.files.disk import read_small
from amnesia.files.staging import staged_output
from amnesia.files.strict_json import StrictJson
from amnesia.plain_text import for_terminal
from amnesia.progress import Progress, Watch, ignore_progress, unwatched
from amnesia.recipe_file import portable_text
from amnesia.sources.resolve import declared
from amnesia.sources.served import as_served, check_found
from amnesia.sources.source import ModelSource
from amnesia.weights.adapter import write_adapter
from amnesia.weights.checkpoint import add_file, needed_bytes, write_edited
from amnesia.weights.edit_rows import read_edit
from amnesia.weights.gguf.modelfile import modelfile
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import write_manifest
from amnesia.weights.plan import Plan
from amnesia.weights.steps import check_whole

if TYPE_CHECKING:
    from amnesia.sources.remote import RemoteCheckpoint
    from amnesia.weights.gguf.edit import GgufPlan
    from amnesia.weights.gguf.lora import LoraPlan
    from amnesia.weights.gguf.widen import WidePlan

_MAX_EDIT_FILE = 2**24
# An edit of which a twentieth is lost is hardly the one that was chosen.
_ENOUGH = 0.95
# Names in a line.
_N_SHOWN = 8


def edits_from_file(path: Path, pick: int | None = None) -> tuple[EntityEdits, ...]:
    """Read an edit file as `extract -o` writes it, for one entity or for several that were searched together.

    Of a file that `run --front` wrote, which holds several edits to choose from, that number `pick`, counted from 1.

    Of these, one for which no edit of its own was needed is left out. Raises InputError when the file cannot be read,
    is malformed, or holds no edits because no handle was found.
    """
    check = StrictJson(str(path), InputError, "give a file that `amnesia extract -o` wrote")
    with os_errors_as(InputError, f"edit file {path} cannot be read", "give an existing file"):
        content = read_small(path, _MAX_EDIT_FILE)
    document = check.mapping(check.parse(content), "the file")
    if ("front" in document and "edits" not in document) or pick is not None:
        document = _picked(check, document, pick)
    rows = [document]
    if "entities" in document:
        rows = [check.mapping(row, "entities") for row in check.list(document["entities"], "entities")]
    groups = []
    for row in rows:
        if "entity" not in row or "edits" not in row:
            raise check.fail("lacks `entity` or `edits`")
        items = check.list(row["edits"], "edits")
        groups.append(EntityEdits(check.text(row["entity"], "entity"), tuple(read_edit(check, item) for item in items)))
    found = tuple(group for group in groups if group.edits)
    if not found:
        raise InputError(
            f"{path} holds no edits: no handle on {names_of(groups)!r} was found; extract with other facts first"
        )
    for group in found:
        check_characters(group.entity)
    return found


def _picked(check: StrictJson, document: dict[str, Any], pick: int | None) -> dict[str, Any]:
    """One edit of a front, as a file of its own would have it."""
    if "front" not in document or "edits" in document:
        raise InputError(f"{check.source} holds one edit, and --pick chooses of several: drop --pick")
    rows = [check.mapping(row, "front") for row in check.list(document["front"], "front")]
    if not rows:
        raise InputError(f"{check.source} holds no edits, because none was measured: extract with other facts first")
    if pick is None or pick > len(rows):
        n = len(rows)
        raise InputError(
            f"{check.source} holds {n} edits to choose from: `amnesia edit --edit FILE --pick N` takes one, 1 to {n}"
        )
    return {**document, **rows[pick - 1]}


def edits_from_cells(cells: Sequence[str], multiplier: float, entity: str | None) -> EntityEdits:
    """Edits for cells as `Cell.parse` reads them; without a name the entity is named after its cells.

    Raises InputError for malformed cells and what `entity_name` raises.
    """
    edits = tuple(ColumnEdit(Cell.parse(text), multiplier) for text in cells)
    return EntityEdits(entity_name(entity), edits) if entity else named_after_cells(edits)


def spec_of(
    source: ModelSource | RemoteCheckpoint,
    groups: Sequence[EntityEdits],
    *,
    recipe_text: str | None = None,
    allow_overlap: bool = False,
) -> EditSpec:
    """Edits of a model that the manifest names as the user did, but for paths.

    Raises InputError for an entity without edits or with a name that no manifest can hold, and what `EditSpec` raises.
    """
    for group in groups:
        check_characters(group.entity)
        if not group.edits:
            raise InputError(f"nothing to edit for {group.entity!r}: give at least one cell, or leave the name out")
    return EditSpec(tuple(groups), declared(source.ref), recipe_text and portable_text(recipe_text), allow_overlap)


@dataclass(frozen=True)
class FormatPlan:
    """What one format of an output will be, checked once: for the size check and for the writer.

    `origin` is what no output may replace; None for a model on the Hub.
    """

    format: Format
    origin: Path | None
    edit: Plan[Any] | GgufPlan | LoraPlan | WidePlan

    def n_bytes(self, *, link: bool = False) -> int:
        """Room that the format needs on the disk, in bytes; adapters count as nothing."""
        if self.format == "adapter":
            return 0
        return needed_bytes(self.edit, link=link) if isinstance(self.edit, Plan) else self.edit.n_bytes

    def n_written(self, *, link: bool = False) -> int:
        """Bytes of which the writer tells: those of the model's files, without what is linked."""
        return self.n_bytes(link=link) if isinstance(self.edit, Plan) else self.edit.n_written(link=link)


def check_format(name: str) -> None:
    """Raises InputError for a format that nobody writes."""
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}: choose one of {', '.join(FORMATS)}")


def plan_formats(
    names: Sequence[Format],
    source: ModelSource | RemoteCheckpoint,
    spec: EditSpec,
    *,
    tensor_type: str | None = None,
) -> dict[Format, FormatPlan]:
    """The plans of an edit in all formats; formats that change the same tensors share one.

    `tensor_type` is for format "gguf": the type of each edited `ffn_down`, its own by default. Of a model
    on the Hub only an adapter can be written. A GGUF must have the sizes of the model in the source's
    folder, if that is another one. Raises InputError for an unknown format, for a part of a model, when the source has
    no `.gguf` file for formats "gguf" and "gguf-lora", and what the planners raise.
    """
    for name in names:
        check_format(name)
    if not isinstance(source, ModelSource):
        assert {*names} == {"adapter"}, "models are fetched for the other formats"
        return {"adapter": FormatPlan("adapter", None, Plan.of(as_served(source), spec))}
    source.require_whole()
    columns = None
    plans: dict[Format, FormatPlan] = {}
    # The weights first, with which an adapter can be compared.
    for name in sorted(names, key=FORMATS.index):
        if name == "gguf":
            plans[name] = FormatPlan(name, source.origin, _plan_gguf(source, spec, tensor_type))
        elif name == "gguf-lora":
            from amnesia.weights.gguf.lora import plan_lora

            plan = plan_lora(source.require_gguf(), spec, expected=_sizes(source))
            plans[name] = FormatPlan(name, source.origin, plan)
        else:
            if name == "safetensors":
                check_whole(source.checkpoint)
            columns = columns or Plan.of(source.checkpoint, spec)
            served = as_served(columns.source) if name == "adapter" else columns.source
            plan = columns if served is columns.source else replace(columns, source=served)
            plans[name] = FormatPlan(name, source.origin, plan)
    return plans


def _plan_gguf(source: ModelSource, spec: EditSpec, tensor_type: str | None) -> GgufPlan | WidePlan:
    path, sizes = source.require_gguf(), _sizes(source)
    if tensor_type is not None:
        from amnesia.weights.gguf.widen import plan_widened_gguf

        return plan_widened_gguf(path, spec, tensor_type, expected=sizes)
    from amnesia.weights.gguf.edit import plan_gguf

    return plan_gguf(path, spec, expected=sizes)


def write_format(
    plan: FormatPlan, folder: Path, *, link: bool = False, progress: Progress = ignore_progress
) -> Manifest:
    """Write one format of an edit into the empty `folder`, everything but the manifest, which is returned.

    `progress` is called with numbers of bytes as they are written, `plan.n_written` in all. Raises what the format's
    writer raises.
    """
    edit = plan.edit
    if isinstance(edit, Plan):
        if plan.format == "adapter":
            manifest = write_adapter(edit, folder)
            check_found(edit.source, folder)
            return manifest
        return write_edited(edit, folder, link=link, progress=progress)
    from amnesia.weights.gguf.edit import GgufPlan, write_edited_gguf
    from amnesia.weights.gguf.lora import LoraPlan, write_lora

    if isinstance(edit, LoraPlan):
        return write_lora(edit, folder, progress=progress)
    if isinstance(edit, GgufPlan):
        manifest = write_edited_gguf(edit, folder, link=link, progress=progress)
    else:
        from amnesia.weights.gguf.widen import write_widened_gguf

        manifest = write_widened_gguf(edit, folder, link=link, progress=progress)
    text = modelfile(sorted(path.name for path in folder.iterdir() if is_gguf_name(path.name)))
    return manifest if text is None else add_file(manifest, folder, MODELFILE_NAME, text)


def rounding_notice(manifest: Manifest) -> str | None:
    """One line for the user where the numbers of a GGUF tensor cannot hold the edit, or None."""
    rows = [(abs(row.share - 1), row.share, row.name) for row in manifest.tensors if row.share is not None]
    if not rows or max(rows)[0] <= 1 - _ENOUGH:
        return None
    _, share, name = max(rows)
    kept = f"keeps only {share:.2f} of" if share < 1 else f"makes {share:.2f} times"
    why = "its codes leave too little room"
    wider = "in a wider type with --tensor-type q8_0 or f16"
    if manifest.tensor_type is not None:
        why = f"the edit is small beside the rounding to {manifest.tensor_type}"
        wider = "with --tensor-type f16 or f32"
    return f"{name} {kept} the edit, because {why}: store it {wider}, or spread the edit over more columns"


def left_out_notice(manifest: Manifest) -> str | None:
    """One line for the user about files of the model that its copy does not have, or None."""
    if not manifest.left_out:
        return None
    shown = ", ".join(map(for_terminal, manifest.left_out[:_N_SHOWN]))
    more = len(manifest.left_out) - _N_SHOWN
    return (
        f"left out, as files that are no part of a model's weights, tokenizer and documents: {shown}"
        f"{f' and {more} more' if more > 0 else ''}"
    )


def _sizes(source: ModelSource) -> tuple[int, int, int] | None:
    """(n_layers, d_model, d_mlp) of the float model on which the edit was found, where there is one."""
    if source.folder == source.require_gguf().parent:
        return None
    shape = source.checkpoint.shape
    return shape.n_layers, shape.d_model, shape.d_mlp


def save(
    name: Format,
    source: ModelSource | RemoteCheckpoint,
    groups: Sequence[EntityEdits],
    output: Path,
    *,
    force: bool = False,
    link: bool = False,
    allow_overlap: bool = False,
    tensor_type: str | None = None,
    watch: Watch = unwatched,
) -> Manifest:
    """Write a complete output: it appears at once, or not at all.

    `watch` gets the bytes that will be written, and gives what is told how many have been. Raises what `spec_of`,
    `plan_formats`, `write_format` and `staged_output` raise.
    """
    spec = spec_of(source, groups, allow_overlap=allow_overlap)
    plan = plan_formats((name,), source, spec, tensor_type=tensor_type)[name]
    with watch(plan.n_written(link=link)) as progress, staged(plan, output, force=force, link=link) as staging:
        return write_manifest(write_format(plan, staging, link=link, progress=progress), staging)


def staged(plan: FormatPlan, output: Path, *, force: bool = False, link: bool = False) -> AbstractContextManager[Path]:
    """`staging.staged_output` for one format, with room for it, and away from its source."""
    return staged_output(output, force=force, needed_bytes=plan.n_bytes(link=link), source=plan.origin)
