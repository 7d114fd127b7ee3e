"""What the commands `edit`, `verify` and `undo` do, without a terminal: models and folders as their users name them."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia.domain import OF_GGUF, Format, ModelRef, is_gguf_path
from amnesia.edits import Edits, groups_in
from amnesia.errors import InputError
from amnesia.files.disk import check_settled
from amnesia.files.journal import recover
from amnesia.files.staging import check_output
from amnesia.outputs import write
from amnesia.progress import SILENT, Progress, Tracker
from amnesia.sources.built_in import BUILT_IN
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
    else "safetensors"; of a model on the Hub, an "adapter" needs only the edited tensors; "gguf-lora", the LoRA file of
    llama.cpp, is made for a `.gguf` file. `tensor_type` stores each edited `ffn_down` of a GGUF in a wider type.
    With `link` untouched files are hard-linked; with `allow_overlap` columns may be edited again; `force` replaces
    an earlier output. Returns the manifest, which is in the folder, too.

    Edits without an entity are named after their cells in the manifest, as the command does.

    Raises InputError for an edit that does not fit the model, SourceError when the model cannot be had, OutputError
    when the folder cannot be written, and the other errors of this package for damaged files.
    """
    output, groups = Path(output), groups_in(edits)
    if isinstance(model, ModelSource):
        is_gguf = model.gguf is not None and model.ref.name not in BUILT_IN
    else:
        is_gguf = is_gguf_path(str(model))
    name: Format = format if format is not None else "gguf" if is_gguf else "safetensors"
    write.check_format(name)
    if tensor_type is not None and name != "gguf":
        raise InputError(f"tensor_type is for GGUF files, not for format {name}: drop it")
    # Checked again with the model; a large one must not be fetched for nothing.
    check_output(output, force=force)
    source = _source(model, name, tracker.notice)
    if isinstance(source, ModelSource):
        from amnesia.outputs.proofs import check_unaltered

        check_unaltered(source.origin, partial(tracker.task, "proving the edit before"))
    rest = "" if isinstance(source, ModelSource) else " from the Hub, of which only the edited tensors are read"
    manifest = write.save(
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
    for line in filter(None, (write.rounding_notice(manifest), write.left_out_notice(manifest))):
        tracker.notice(line)
    return manifest


def _source(model: ModelSource | ModelRef | Path | str, name: Format, notice: Notice) -> ModelSource | RemoteCheckpoint:
    if isinstance(model, ModelSource):
        return model
    spec = str(model)
    if name == "adapter" and not is_on_disk(spec):
        from amnesia.sources.remote import open_remote

        return open_remote(hub_ref(spec))
    return resolve_file(spec, notice) if name in OF_GGUF else resolve(model, notice)


def verify(
    folder: Path | str, base: ModelSource | ModelRef | Path | str | None = None, *, tracker: Tracker = SILENT
) -> dict[Path, VerificationReport]:
    """Prove from the bytes that exactly the declared columns of an output changed, and nothing else.

    With `base`, the model that was edited, every byte is compared with it; without, copied files are proven by their
    hashes. Returns what was proven, by folder: `folder` itself, or its subfolders where a run wrote several formats.
    Raises VerificationError that names the first difference, SourceError when the base cannot be had, CheckpointError
    when an edit in place was interrupted.
    """
    from amnesia.outputs import proofs

    folder = Path(folder)
    check_settled(folder_of(folder))
    reports = {}
    for path in proofs.outputs_in(folder):

        def watch(n_bytes: int, path: Path = path) -> contextlib.AbstractContextManager[Progress]:
            return tracker.task(f"proving {path}", n_bytes)

        if isinstance(base, ModelSource):
            reports[path] = proofs.prove(path, base, watch)
        else:
            reports[path] = proofs.prove_against(path, None if base is None else str(base), tracker.notice, watch)
    return reports


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
    for adapters, OutputError when `output` cannot be written, CheckpointError when an edit in place was interrupted.
    """
    from amnesia.outputs import proofs

    folder = Path(folder)
    check_settled(folder_of(folder))
    return proofs.take_back(
        folder,
        Path(output),
        force=force,
        every_step=every_step,
        watch=lambda n_bytes: tracker.task("restoring", n_bytes),
        notice=tracker.notice,
    )


def take_back_interrupted(path: Path, notice: Notice) -> bool:
    """Take back an edit in place of a folder, or of the file `path` in it, that was interrupted, if there was one.

    For commands that write there, and for no other: the journal may have come with the folder.
    """
    folder = folder_of(path)
    found = recover(folder)
    if found:
        notice(f"an interrupted edit of {folder} was taken back: its files are as before")
    return found


def folder_of(path: Path) -> Path:
    """The folder of a model: itself, or where its `.gguf` file is."""
    return path.parent if path.is_file() else path
