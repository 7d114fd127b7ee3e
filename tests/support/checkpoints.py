"""Finished model folders, written without the command line, and the tensors in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, Edit
from amnesia.files.staging import MANIFEST_NAME, staged_output
from amnesia.weights.checkpoint import add_file, open_source, write_edited
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import write_manifest
from support.tiny import write_with

EDITS = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 47), 0.5), ColumnEdit(Cell(2, 0), -3.0))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of all `model*.safetensors` in a folder."""
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}


def write_output(
    source: Path,
    output: Path,
    edits: Sequence[Edit],
    writer: Callable[..., Manifest] = write_edited,
    *,
    added: Mapping[str, bytes] | None = None,
    **options: object,
) -> Manifest:
    """A complete output, as the command line writes it, with files that are `added`; `options` as of `write_with`."""
    with staged_output(output, source=source) as staging:
        manifest = write_with(writer, open_source(source), edits, staging, **options)
        for name, content in (added or {}).items():
            manifest = add_file(manifest, staging, name, content)
        return write_manifest(manifest, staging)


def edit(
    source: Path, output: Path, edits: Sequence[Edit] = EDITS, entity: str = "Paris", **options: object
) -> Manifest:
    """A complete output of the model a/b; `options` as of `write_output`."""
    return write_output(source, output, edits, entity=entity, **{"base": ModelRef("a/b", "main"), **options})


def tell_otherwise(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` change the manifest's JSON in `folder`, and give the changed edits the hash that belongs to them."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    change(document)
    rows = json.dumps(document["edits"], sort_keys=True, separators=(",", ":"))
    document["edits_sha256"] = hashlib.sha256(rows.encode()).hexdigest()
    path.write_text(json.dumps(document))
