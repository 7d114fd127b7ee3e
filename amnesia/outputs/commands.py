"""What the commands `edit`, `verify` and `undo` do, without a terminal: models and folders as their users name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amnesia.domain import Format, ModelRef, is_gguf_name
from amnesia.edits import Edits, groups_in
from amnesia.errors import InputError
from amnesia.files.journal import recover
from amnesia.files.staging import check_output
from amnesia.outputs import write
from amnesia.progress import SILENT, Tracker
from amnesia.sources.resolve import hub_ref, is_on_disk, resolve, resolve_file
from amnesia.sources.source import ModelSource, Notice
from amnesia.weights.manifest import Manifest

if TYPE_CHECKING:
    from amnesia.outputs.verify import VerificationReport
    from amnesia.sources.remote import RemoteCheckpoint


def save(
    model: ModelSource | ModelRef | Path | str,
    edits: Edits,
    output: Path | str,
    *,
    format: Format | None = None,
    tensor_type: str | None = None,
    link: bool = False,
    allow_overlap: bool = False,
    force: bool = False,
    tracker: Tracker = SILENT,
) -> Manifest:
    """Write an edited copy of a model into the folder `output`, which appears complete or not at all.

    The model is what `resolve` takes or gives, and is never built. The format is by default "gguf" for a `.gguf` file,
    else "safetensors"; of a model on the Hub, an "adapter" needs only the edited tensors. `tensor_type` stores GGUF
    tensors that get a direction in a wider type. With `link` untouched files are hard-linked; with `allow_overlap`
    columns may be edited again; `force` replaces an earlier output. Returns the manifest, which is in the folder, too.

    Edits without an entity are named after their cells in the manifest, as the command does.

    Raises InputError for an edit that does not fit the model, SourceError when the model cannot be had, OutputError
    when the folder cannot be written, and the other errors of this package for damaged files.
    """
    output, groups = Path(output), groups_in(edits)
    origin = str(model.origin if isinstance(model, ModelSource) else model)
    name: Format = format if format is not None else "gguf" if is_gguf_name(origin) else "safetensors"
    write.check_format(name)
    if tensor_type is not None and name != "gguf":
        raise InputError(f"tensor_type is for GGUF files, not for format {name}: drop it")
    take_back_interrupted(Path(origin), tracker.notice)
    # Checked again with the model; a large one must not be fetched for nothing.
    check_output(output, force=force)
    source = _source(model, name, tracker.notice)
    rest = "" if isinstance(source, ModelSource) else " from the Hub, of which only the edited tensors are read"
    return write.save(
        name,
        source,
        groups,
        output,
        force=force,
        link=link,
        allow_overlap=allow_overlap,
        tensor_type=tensor_type,
        watch=lambda n_bytes: tracker.task(f"writing {name}{rest}", n_bytes),
    )


def _source(model: ModelSource | ModelRef | Path | str, name: Format, notice: Notice) -> ModelSource | RemoteCheckpoint:
    if isinstance(model, ModelSource):
        return model
    spec = str(model)
    if name == "adapter" and not is_on_disk(spec):
        from amnesia.sources.remote import open_remote

        return open_remote(hub_ref(spec))
    return resolve_file(spec, notice) if name == "gguf" else resolve(model, notice)


def verify(
    folder: Path | str, base: ModelSource | ModelRef | Path | str | None = None, *, tracker: Tracker = SILENT
) -> dict[Path, VerificationReport]:
    """Prove from the bytes that exactly the declared columns of an output changed, and nothing else.

    With `base`, the model that was edited, every byte is compared with it; without, copied files are proven by their
    hashes. Returns what was proven, by folder: `folder` itself, or its subfolders where a run wrote several formats.
    `tracker` gets notices, of what is fetched and of an interrupted edit that is taken back; a proof is no task of it.
    Raises VerificationError that names the first difference, SourceError when the base cannot be had.
    """
    from amnesia.outputs import proofs

    folder = Path(folder)
    take_back_interrupted(folder, tracker.notice)
    if isinstance(base, ModelSource):
        return {path: proofs.prove(path, base) for path in proofs.outputs_in(folder)}
    spec = None if base is None else str(base)
    return {path: proofs.prove_against(path, spec, tracker.notice) for path in proofs.outputs_in(folder)}


def undo(
    folder: Path | str,
    output: Path | str,
    *,
    every_step: bool = False,
    force: bool = False,
    tracker: Tracker = SILENT,
) -> Manifest:
    """Restore the original files of an edited model into the folder `output`, bit for bit, from its manifest.

    With `every_step` all edits that were made on top of each other are taken back; `force` replaces an earlier output.
    Returns the manifest of the edit. Raises VerificationError when `folder` is not what its manifest says, InputError
    for adapters, OutputError when `output` cannot be written.
    """
    from amnesia.outputs import proofs

    folder = Path(folder)
    take_back_interrupted(folder, tracker.notice)
    return proofs.take_back(
        folder,
        Path(output),
        force=force,
        every_step=every_step,
        watch=lambda n_bytes: tracker.task("restoring", n_bytes),
    )


def take_back_interrupted(path: Path, notice: Notice) -> None:
    """Take back an edit in place of a folder, or of the file `path` in it, that was interrupted.

    This comes before anything reads the files.
    """
    folder = path.parent if path.is_file() else path
    if recover(folder):
        notice(f"an interrupted edit of {folder} was taken back: its files are as before")
