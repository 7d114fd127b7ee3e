"""Whether a model was made of another, and by which edits, as their manifests and the bytes of edited tensors tell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from amnesia.domain import OF_GGUF
from amnesia.edits import Edit, EditSpec, EntityEdits, edits_in
from amnesia.errors import InputError
from amnesia.evaluation.earlier import in_one
from amnesia.files.companions import gguf_output
from amnesia.files.disk import hash_file
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.proofs import check_edited
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import EditedColumns, edited_columns
from amnesia.weights.gguf.container import read_model
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.plan import Plan


def edits_between(model: ModelSource, edited: ModelSource) -> tuple[Edit, ...]:
    """All edits that lead from one model to the other, by the manifests of both.

    Raises InputError when `edited` has no manifest, or was not made of `model` as far as manifests and the edited
    tensors tell, and VerificationError when its edited tensors are not those of its manifest.
    """
    steps, earlier = _history(edited), _history(model)
    if not steps:
        raise InputError(
            f"a sweep makes an edit weaker and stronger, and {edited} has no {MANIFEST_NAME} that says what it is: "
            "give an output of this program, or leave the sweep out"
        )
    own = steps[: max(0, len(steps) - len(earlier))]
    if not own or [step.edits for step in steps[len(own) :]] != [step.edits for step in earlier]:
        raise InputError(f"{edited} was not made of {model}, which has edits of its own: give the model it was made of")
    check_edited(edited.folder)
    _check_made_of(model, edited, own[-1])
    return in_one([step.edits for step in reversed(own)])


def _history(model: ModelSource) -> list[Manifest]:
    """The manifests of a model, the newest first, also of a GGUF that is given as the file in its output."""
    folder = model.folder
    if model.gguf is not None and gguf_output(model.gguf.parent) == model.gguf:
        folder = model.gguf.parent
    return [*read_manifest(folder).history()] if (folder / MANIFEST_NAME).exists() else []


def changed_columns(source: ModelSource, edits: Sequence[Edit]) -> tuple[EditedColumns, ...]:
    """The columns of a model as they are, and as edits leave them; raises what `Plan.of` and `edited_columns` raise."""
    spec = EditSpec((EntityEdits("what is edited", tuple(edits)),), source.ref, allow_overlap=True)
    return tuple(edited_columns(source.checkpoint, Plan.of(source.checkpoint, spec).tensors))


def _check_made_of(model: ModelSource, edited: ModelSource, first: Manifest) -> None:
    """Raise InputError unless the tensors of a model are those that the edit `first` of `edited` found."""
    if first.format in OF_GGUF and model.gguf is None:
        raise InputError(f"{edited} was made of the GGUF {first.base.ref}, and {model} is none: give that file")
    found = _found_in_gguf(model, first) if first.format in OF_GGUF else _found_in(model, first)
    for row in first.tensors:
        if found.get(row.name) != row.before:
            raise InputError(
                f"{edited} was made of {first.base.ref}, whose {row.name} is not that of {model}: give the model that "
                "it was made of"
            )


def _found_in(model: ModelSource, step: Manifest) -> dict[str, str]:
    """The sha256 in a model of what an edit found, by the names of its tensors, as far as they are there."""
    columns = {row.plan.tensor.name: row for row in changed_columns(model, edits_in(step.edits))}
    found = {}
    for row in (row for row in step.tensors if row.name in columns):
        there = columns[row.name]
        if row.scope == "columns":
            found[row.name] = hashlib.sha256(b"".join(there.before[index] for index in row.indices)).hexdigest()
        else:
            tensor = there.plan.tensor
            found[row.name] = hash_file(model.folder / there.plan.file, tensor.offset, tensor.size)
    return found


def _found_in_gguf(model: ModelSource, step: Manifest) -> dict[str, str]:
    """The same of the file of a model; a LoRA file names its matrices without their ending."""
    gguf, found = read_model(model.require_gguf()), {}
    for row in step.tensors:
        there = gguf.find(row.name) or gguf.find(f"{row.name}.weight")
        if there is not None:
            found[row.name] = hash_file(there[0].path, there[1].offset, there[1].n_bytes)
    return found
