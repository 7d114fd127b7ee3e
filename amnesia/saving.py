"""From a chosen edit to a complete output in any format. Reads and writes bytes; never builds the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia.adapter import write_adapter
from amnesia.checkpoint import add_file, needed_bytes, open_source, write_edited
from amnesia.domain import Cell, ColumnEdit, Format, directions_of
from amnesia.edit_rows import read_edit
from amnesia.edits import EditSpec, EntityEdits, names_of
from amnesia.errors import InputError
from amnesia.files import read_small, staged_output
from amnesia.manifest import Manifest, write_manifest
from amnesia.modelfile import MODELFILE_NAME, modelfile
from amnesia.plan import plan_edits
from amnesia.sources import ModelSource
from amnesia.strict_json import StrictJson

if TYPE_CHECKING:
    from amnesia.remote import RemoteCheckpoint

_MAX_EDIT_FILE = 2**24
# An edit of which a twentieth is lost is hardly the one that was chosen.
_ENOUGH_KEPT = 0.95


def edits_from_file(path: Path) -> tuple[EntityEdits, ...]:
    """Read an edit file as `extract -o` writes it, for one entity or for several that were searched together.

    Of these, one for which no edit of its own was needed is left out. Raises InputError when the file cannot be read,
    is malformed, or holds no edits because no handle was found.
    """
    check = StrictJson(str(path), InputError, "give a file that `amnesia extract -o` wrote")
    try:
        content = read_small(path, _MAX_EDIT_FILE)
    except OSError as error:
        raise InputError(f"edit file {path} cannot be read ({error.strerror}): give an existing file") from error
    if len(content) > _MAX_EDIT_FILE:
        raise check.fail(f"has more than {_MAX_EDIT_FILE} bytes")
    document = check.mapping(check.parse(content), "the file")
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
    return found


def edits_from_cells(cells: Sequence[str], multiplier: float, entity: str | None) -> EntityEdits:
    """Edits for cells as `Cell.parse` reads them; without a name the entity is named after its cells."""
    edits = tuple(ColumnEdit(Cell.parse(text), multiplier) for text in cells)
    return EntityEdits(entity or "cells " + ", ".join(str(edit.cell) for edit in edits), edits)


def spec_of(
    source: ModelSource | RemoteCheckpoint,
    groups: Sequence[EntityEdits],
    *,
    recipe_text: str | None = None,
    allow_overlap: bool = False,
) -> EditSpec:
    """Edits of a model that the manifest names as the user did; raises InputError when an entity comes twice."""
    return EditSpec(tuple(groups), source.id, source.revision, recipe_text, allow_overlap)


def write_format(
    name: Format,
    source: ModelSource | RemoteCheckpoint,
    spec: EditSpec,
    folder: Path,
    *,
    link: bool = False,
    tensor_type: str | None = None,
) -> Manifest:
    """Write one format of an edit into the empty `folder`, everything but the manifest, which is returned.

    `tensor_type` is for format "gguf": the type of the tensors that get a direction, their own by default. Of a model
    on the Hub only an adapter can be written. A GGUF must have the sizes of the model in the source's
    folder, if that is another one. Raises InputError when the source has no `.gguf` file for format "gguf", and what
    the format's writer raises.
    """
    if name == "adapter":
        return write_adapter(open_source(source.folder) if isinstance(source, ModelSource) else source, spec, folder)
    assert isinstance(source, ModelSource), "models are fetched for the other formats"
    if name == "safetensors":
        return write_edited(open_source(source.folder), spec, folder, link=link)
    from amnesia.gguf_edit import write_edited_gguf

    path, sizes = source.require_gguf(), _sizes(source)
    if tensor_type is not None:
        from amnesia.gguf_widen import write_widened_gguf

        manifest = write_widened_gguf(path, spec, folder, tensor_type, link=link, expected=sizes)
    else:
        manifest = write_edited_gguf(path, spec, folder, link=link, expected=sizes)
    text = modelfile(sorted(path.name for path in folder.glob("*.gguf")))
    return manifest if text is None else add_file(manifest, folder, MODELFILE_NAME, text)


def rounding_notice(manifest: Manifest) -> str | None:
    """One line for the user where the codes of a GGUF tensor cannot hold the edit, or None."""
    rows = [(row.kept, row.name) for row in manifest.tensors if row.kept is not None]
    if not rows or min(rows)[0] >= _ENOUGH_KEPT:
        return None
    kept, name = min(rows)
    return (
        f"{name} keeps only {kept:.2f} of the edit, because its codes leave too little room: store it in a wider type "
        "with --tensor-type q8_0 or f16, or spread the edit over more columns"
    )


def _sizes(source: ModelSource) -> tuple[int, int, int] | None:
    """(n_layers, d_model, d_mlp) of the float model on which the edit was found, where there is one."""
    if source.folder == source.require_gguf().parent:
        return None
    shape = open_source(source.folder).shape
    return shape.n_layers, shape.d_model, shape.d_mlp


def output_bytes(
    name: Format,
    source: ModelSource | RemoteCheckpoint,
    spec: EditSpec,
    *,
    link: bool = False,
    tensor_type: str | None = None,
) -> int:
    """Bytes that one format of the output takes on the disk; adapters count as nothing."""
    if name == "adapter" or not isinstance(source, ModelSource):
        return 0
    if name == "gguf":
        from amnesia.gguf_file import read_model

        model = read_model(source.require_gguf())
        layers = {edit.layer for group in spec.groups for edit in directions_of(group.edits)}
        # The original bytes of what directions change are kept too, and a wider type has four bytes at most.
        downs = [found[1] for layer in layers if (found := model.find(f"blk.{layer}.ffn_down.weight"))]
        kept = sum(tensor.n_bytes for tensor in downs)
        grown = sum(4 * math.prod(tensor.shape) for tensor in downs) if tensor_type else 0
        return sum(part.size for part in model.files) + kept + grown
    checkpoint = open_source(source.folder)
    return needed_bytes(checkpoint, plan_edits(checkpoint, spec.groups, allow_overlap=spec.allow_overlap), link=link)


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
) -> Manifest:
    """Write a complete output: it appears at once, or not at all.

    Raises what `spec_of`, `write_format` and `staged_output` raise.
    """
    spec = spec_of(source, groups, allow_overlap=allow_overlap)
    with staged(name, source, spec, output, force=force, link=link, tensor_type=tensor_type) as staging:
        manifest = write_format(name, source, spec, staging, link=link, tensor_type=tensor_type)
        write_manifest(manifest, staging)
    return manifest


def staged(
    name: Format,
    source: ModelSource | RemoteCheckpoint,
    spec: EditSpec,
    output: Path,
    *,
    force: bool = False,
    link: bool = False,
    tensor_type: str | None = None,
) -> AbstractContextManager[Path]:
    """`files.staged_output` for one format, with room for it, and away from its source."""
    size = output_bytes(name, source, spec, link=link, tensor_type=tensor_type)
    origin = source.origin if isinstance(source, ModelSource) else None
    return staged_output(output, force=force, needed_bytes=size, source=origin)
