"""Proof, from the bytes on disk, that a LoRA file of llama.cpp holds the edit that its manifest declares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from amnesia.edit_checks import check_edits
from amnesia.edits import EditSpec, Place, by_projection
from amnesia.errors import VerificationError
from amnesia.files.companions import LORA_NAME, README_NAME, REPOSITORY_FILE
from amnesia.files.listing import list_files
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.history import check_blocks, recorder
from amnesia.weights.adapter import adapter_rank, read_rows
from amnesia.weights.gguf.container import read_header
from amnesia.weights.gguf.lora import (
    DTYPE,
    base_files,
    direction_column,
    entry,
    factors_in,
    lora_blocks,
    plan_lora,
    planned_blocks,
)
from amnesia.weights.manifest import Manifest, TensorEdit
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.steps import check_written


def prove_lora(folder: Path, base: Path | None = None) -> Manifest:
    """Prove that the product of the factors in `folder` is the declared edit; with `base`, the GGUF, of its columns.

    Without it, what is written into the columns of cells is proven by its hash in the manifest. Returns the manifest.
    Raises VerificationError that names the first difference.
    """
    manifest = read_manifest(folder)
    names = {*list_files(folder)} - {README_NAME, REPOSITORY_FILE}
    if different := sorted(names ^ ({MANIFEST_NAME, LORA_NAME, *manifest.added} - {README_NAME})):
        raise VerificationError(f"{folder} and {MANIFEST_NAME} disagree on the file {different[0]}: make it again")
    path = folder / LORA_NAME
    if base is None:
        check_blocks(_declared_blocks(path, manifest), path)
        check_written(folder, manifest)
        return manifest
    plan = plan_lora(base, EditSpec(manifest.edits, manifest.base.ref, allow_overlap=True))
    if base_files(plan) != manifest.base.files:
        raise VerificationError(
            f"{base} is not the model that the adapter was made for: give {manifest.base} as it was then"
        )
    tensors: list[TensorEdit] = []
    check_blocks(planned_blocks(plan, recorder(tensors, manifest, str(base))), path)
    if tuple(tensors) != manifest.tensors:
        raise VerificationError(f"{MANIFEST_NAME} does not list the tensors and hashes of its edits: make it again")
    check_written(folder, manifest)
    return manifest


def _declared_blocks(path: Path, manifest: Manifest) -> Iterator[bytes]:
    """The bytes that the file must have by its manifest, where B of cells is that of the file, if its hash is."""
    header = read_header(path)
    rows = manifest.tensors
    places = list(by_projection(manifest.edits, allow_overlap=True))
    # What multiplies which column follows from the edits and the place, which `read_manifest` has checked.
    if [Place(*place) for place in places] != [row.place for row in rows] or rows != tuple(
        entry(row, row.file, row.place.layer, row.before, row.after) for row in rows
    ):
        raise VerificationError(f"{MANIFEST_NAME} lists tensors that do not follow from its edits: make it again")
    rank = adapter_rank(max(row.rank for row in rows))
    data: list[bytes] = []
    sizes: dict[str, tuple[int, ...]] = {}
    for row in rows:
        a, b = factors_in(header, row.name)
        sizes[row.name] = d_model, d_mlp = len(b), a.shape[1]
        if row.directions:
            check_edits(row.directions, row.place.layer + 1, d_model, d_mlp, str(path))
        if row.indices[-1] >= d_mlp or b.shape[1] != rank:
            raise VerificationError(f"{path} has factors of {row.name} that are not of its edits: make it again")
        factor = b.copy()
        for place, edit in enumerate(row.directions, start=len(row.scaled)):
            factor[:, place] = direction_column(edit, row.name)
        if hashlib.sha256(factor.tobytes()).hexdigest() != row.after:
            raise VerificationError(f"{path} has another {row.name}.lora_b than the manifest says: make it again")
        data += [read_rows(DTYPE, tuple(row.scaled), row.directions, rank, d_mlp), factor.tobytes()]
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise VerificationError(f"{path} does not name its architecture: make it again")
    return lora_blocks(architecture, rank, sizes, iter(data))
