"""From a chosen edit to a complete output in any format. Reads and writes bytes; never builds the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amnesia.adapter import write_adapter
from amnesia.checkpoint import add_file, needed_bytes, open_source, plan_edits, write_edited
from amnesia.domain import Cell, ColumnEdit
from amnesia.errors import InputError
from amnesia.files import read_small, staged_output
from amnesia.gguf_edit import write_edited_gguf
from amnesia.gguf_file import read_model
from amnesia.manifest import EntityEdits, Manifest, read_edit, write_manifest
from amnesia.modelfile import MODELFILE_NAME, modelfile
from amnesia.recipe import Format
from amnesia.remote import RemoteCheckpoint
from amnesia.sources import ModelSource
from amnesia.strict_json import StrictJson

_MAX_EDIT_FILE = 2**24


def edits_from_file(path: Path) -> EntityEdits:
    """Read an edit file as `extract -o` writes it.

    Raises InputError when the file cannot be read, is malformed, or holds no edits because no handle was found.
    """
    check = StrictJson(str(path), InputError, "give a file that `amnesia extract -o` wrote")
    try:
        content = read_small(path, _MAX_EDIT_FILE)
    except OSError as error:
        raise InputError(f"edit file {path} cannot be read ({error.strerror}): give an existing file") from error
    if len(content) > _MAX_EDIT_FILE:
        raise check.fail(f"has more than {_MAX_EDIT_FILE} bytes")
    document = check.mapping(check.parse(content), "the file")
    if "entity" not in document or "edits" not in document:
        raise check.fail("lacks `entity` or `edits`")
    entity = check.text(document["entity"], "entity")
    edits = []
    for item in check.list(document["edits"], "edits"):
        edits.append(read_edit(check, check.object(item, "edits", "layer neuron multiplier", optional="expert")))
    if not edits:
        raise InputError(f"{path} holds no edits: no handle on {entity!r} was found; extract with other facts first")
    return EntityEdits(entity, tuple(edits))


def edits_from_cells(cells: Sequence[str], multiplier: float, entity: str | None) -> EntityEdits:
    """Edits for cells as `Cell.parse` reads them; without a name the entity is named after its cells."""
    edits = tuple(ColumnEdit(Cell.parse(text), multiplier) for text in cells)
    return EntityEdits(entity or "cells " + ", ".join(str(edit.cell) for edit in edits), edits)


def write_format(
    name: Format,
    source: ModelSource,
    groups: Sequence[EntityEdits],
    folder: Path,
    *,
    recipe_text: str | None = None,
    link: bool = False,
    allow_overlap: bool = False,
) -> Manifest:
    """Write one format of an edit into the empty `folder`, everything but the manifest, which is returned.

    A GGUF must have the sizes of the model in the source's folder, if that is another one. Raises InputError when the
    source has no `.gguf` file for format "gguf", and what the format's writer raises.
    """
    first, *also = groups
    common: dict[str, Any] = {
        "entity": first.entity,
        "base_id": source.id,
        "revision": source.revision,
        "also": also,
        "recipe_text": recipe_text,
        "allow_overlap": allow_overlap,
    }
    if name == "adapter":
        return write_adapter(open_source(source.folder), first.edits, folder, **common)
    if name == "safetensors":
        return write_edited(open_source(source.folder), first.edits, folder, link=link, **common)
    path = source.require_gguf()
    manifest = write_edited_gguf(path, first.edits, folder, link=link, expected=_sizes(source), **common)
    text = modelfile(sorted(path.name for path in folder.glob("*.gguf")))
    return manifest if text is None else add_file(manifest, folder, MODELFILE_NAME, text)


def _sizes(source: ModelSource) -> tuple[int, int, int] | None:
    """(n_layers, d_model, d_mlp) of the float model on which the edit was found, where there is one."""
    if source.folder == source.require_gguf().parent:
        return None
    shape = open_source(source.folder).shape
    return shape.n_layers, shape.d_model, shape.d_mlp


def output_bytes(
    name: Format,
    source: ModelSource,
    groups: Sequence[EntityEdits],
    *,
    link: bool = False,
    allow_overlap: bool = False,
) -> int:
    """Bytes that one format of the output takes on the disk; adapters count as nothing."""
    if name == "gguf":
        return sum(part.size for part in read_model(source.require_gguf()).files)
    if name == "adapter":
        return 0
    checkpoint = open_source(source.folder)
    return needed_bytes(checkpoint, plan_edits(checkpoint, groups, allow_overlap=allow_overlap), link=link)


def save(
    name: Format,
    source: ModelSource,
    groups: Sequence[EntityEdits],
    output: Path,
    *,
    force: bool = False,
    link: bool = False,
    allow_overlap: bool = False,
) -> Manifest:
    """Write a complete output: it appears at once, or not at all.

    Raises InputError when two groups are for the same entity, and what `write_format` and `staged_output` raise.
    """
    _check_entities(groups)
    size = output_bytes(name, source, groups, link=link, allow_overlap=allow_overlap)
    with staged_output(output, force=force, needed_bytes=size, source=source.origin) as staging:
        manifest = write_format(name, source, groups, staging, link=link, allow_overlap=allow_overlap)
        write_manifest(manifest, staging)
    return manifest


def save_remote_adapter(
    source: RemoteCheckpoint,
    groups: Sequence[EntityEdits],
    output: Path,
    *,
    force: bool = False,
    allow_overlap: bool = False,
) -> Manifest:
    """Write an adapter for a model on the Hub, of which only headers and edited tensors are read and nothing is kept.

    Raises what `save` raises, and SourceError when the Hub does not give the bytes.
    """
    _check_entities(groups)
    first, *also = groups
    repo, revision = source.files.repo, source.files.revision
    with staged_output(output, force=force) as staging:
        manifest = write_adapter(
            source,
            first.edits,
            staging,
            entity=first.entity,
            base_id=repo,
            revision=revision,
            also=also,
            allow_overlap=allow_overlap,
        )
        write_manifest(manifest, staging)
    return manifest


def _check_entities(groups: Sequence[EntityEdits]) -> None:
    for index, group in enumerate(groups):
        if any(group.entity == other.entity for other in groups[:index]):
            raise InputError(f"two edits are for {group.entity!r}: give each entity once, with all of its cells")
