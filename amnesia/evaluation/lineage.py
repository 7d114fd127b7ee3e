"""Whether a model was made of another, and by which edits, as their manifests and the bytes of edited tensors tell."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from amnesia.domain import ADAPTERS, OF_GGUF
from amnesia.edits import Edit, EditSpec, EntityEdits, edits_in
from amnesia.errors import InputError
from amnesia.evaluation.earlier import in_one
from amnesia.files.companions import gguf_output
from amnesia.files.disk import hash_file
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.proofs import check_edited
from amnesia.outputs.rest import check_rest
from amnesia.progress import Watch, unwatched
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import EditedColumns, edited_columns
from amnesia.weights.gguf.container import read_model
from amnesia.weights.gguf.proof import prove_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.plan import Plan


def edits_between(model: ModelSource, edited: ModelSource) -> tuple[Edit, ...]:
    """All edits that lead from one model to the other, by the manifests of both, of which `prove_edited` is the proof.

    Raises InputError when `edited` has no manifest, or was not made of `model` as far as manifests and the tensors that
    were edited tell.
    """
    own = _steps_between(model, edited)
    check_made_for(model, edited)
    _check_made_of(model, edited, own)
    return in_one([step.edits for step in reversed(own)])


def prove_edited(model: ModelSource, edited: ModelSource, watch: Watch = unwatched) -> None:
    """Prove that `edited` is `model` with the edits of `edits_between`, so that one can be had of the other.

    All that the edits did not change is compared byte by byte, but of an adapter, which is put on `model` itself.
    `watch` gets the bytes that will be read. Raises VerificationError naming the first difference, and what
    `edits_between` raises.
    """
    own = _steps_between(model, edited)
    if own[0].format == "gguf":
        prove_gguf(edited.folder, model.require_gguf(), watch=watch)
        return
    check_edited(edited.folder)
    if own[0].format not in ADAPTERS:
        check_rest(model.checkpoint, edited.checkpoint, {row.name for step in own for row in step.tensors}, watch)


def check_made_for(model: ModelSource, adapter: ModelSource) -> None:
    """Raise InputError for an adapter of this package that is to be put on another model than it was made for.

    It holds what its edit adds to the columns of that model, and knows nothing of edits that the model has already.
    What has no manifest, and a whole model, passes.
    """
    steps = _history(adapter)
    if not steps or steps[0].format not in ADAPTERS:
        return
    newest, *earlier = steps
    if [step.edits for step in earlier] != [step.edits for step in _history(model)]:
        has = f"has the edit for {earlier[0].entity!r}" if earlier else "has no edit"
        raise InputError(
            f"{adapter} is an adapter for {newest.base.ref}, which {has}, and {model} is another model: give "
            f"{newest.base.ref}"
        )
    _check_made_of(model, adapter, [newest])


def _steps_between(model: ModelSource, edited: ModelSource) -> list[Manifest]:
    """The edits that `edited` has beyond those of `model`, the newest first; raises InputError as `edits_between`."""
    steps, earlier = _history(edited), _history(model)
    if not steps:
        raise InputError(
            f"a sweep makes an edit weaker and stronger, and {edited} has no {MANIFEST_NAME} that says what it is: "
            "give an output of this program, or leave the sweep out"
        )
    own = steps[: max(0, len(steps) - len(earlier))]
    if not own or [step.edits for step in steps[len(own) :]] != [step.edits for step in earlier]:
        raise InputError(f"{edited} was not made of {model}, which has edits of its own: give the model it was made of")
    return own


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


def _check_made_of(model: ModelSource, edited: ModelSource, steps: Sequence[Manifest]) -> None:
    """Raise InputError unless the tensors of a model are those that the edits `steps` of `edited` found, newest first.

    Each as the oldest edit of it found it.
    """
    first = steps[-1]
    if first.format in OF_GGUF and model.gguf is None:
        raise InputError(f"{edited} was made of the GGUF {first.base.ref}, and {model} is none: give that file")
    rows = {row.name: row for step in steps for row in step.tensors}
    if first.format in OF_GGUF:
        found = _found_in_gguf(model, rows)
    elif first.format in ADAPTERS:
        found = _columns_in(model, first)
    else:
        found = _found_in(model, rows)
    for name, row in rows.items():
        if found.get(name) != row.before:
            raise InputError(
                f"{edited} was made of {first.base.ref}, whose {name} is not that of {model}: give the model that it "
                "was made of"
            )


def _found_in(model: ModelSource, names: Collection[str]) -> dict[str, str]:
    """The sha256 of tensors in a model, by their names, as far as they are there."""
    there = {name: place for name in names if (place := model.checkpoint.weights.find(name)) is not None}
    return {name: hash_file(model.folder / file, tensor.offset, tensor.size) for name, (file, tensor) in there.items()}


def _columns_in(model: ModelSource, step: Manifest) -> dict[str, str]:
    """The same of the columns that an adapter changes, which are all that it says of its base."""
    return {
        row.plan.tensor.name: hashlib.sha256(b"".join(row.before.values())).hexdigest()
        for row in changed_columns(model, edits_in(step.edits))
    }


def _found_in_gguf(model: ModelSource, names: Collection[str]) -> dict[str, str]:
    """The same in the file of a model; a LoRA file names its matrices without their ending."""
    gguf, found = read_model(model.require_gguf()), {}
    for name in names:
        there = gguf.find(name) or gguf.find(f"{name}.weight")
        if there is not None:
            found[name] = hash_file(there[0].path, there[1].offset, there[1].n_bytes)
    return found
