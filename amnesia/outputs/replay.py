"""Make an output again from its manifest: the same base, the same edits, the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from amnesia.domain import OF_GGUF
from amnesia.edits import EditSpec
from amnesia.errors import InputError, OutputError, VerificationError, os_errors_as
from amnesia.files.cache import scratch_folder
from amnesia.files.disk import read_small
from amnesia.files.staging import MANIFEST_NAME, check_output
from amnesia.guessing import as_declared
from amnesia.outputs.write import plan_formats, staged, write_format
from amnesia.progress import Watch, unwatched
from amnesia.sources.remote import RemoteCheckpoint, open_remote
from amnesia.sources.resolve import hub_ref, is_on_disk, named_base, recorded, resolve, resolve_file
from amnesia.sources.source import ModelSource
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import MAX_MANIFEST, parse_manifest, read_manifest, write_manifest

_GIVE_BASE = ": give that with --base (in Python: base=...)"


@as_declared()
def replay(
    path: Path,
    output: Path,
    *,
    base: str | None = None,
    force: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
) -> Manifest:
    """Write into `output` what the manifest `path` (a file, or a folder that holds one) describes.

    `base` is the model that was edited, before any of its edits; without it the newest one is used of which the
    manifest says where it is: a repository or a built-in model, not a folder. Weights are proven to be the recorded
    ones. Files that an evaluation wrote (reports, charts) are not made again. `watch` gets the bytes that will be
    written, of each edit that must be made. Returns the new manifest.

    Raises VerificationError when the base is another model, InputError when none is known, SourceError when it cannot
    be had, and what `write.save` raises.
    """
    manifest = _read(path)
    check_output(output, force=force)
    name = recorded(named_base(manifest).ref) if base is None else base
    # Fetching it may take minutes.
    notice(f"finding the model that was edited, {name}")
    source = _find(manifest, name, notice)
    return _make(manifest, source, output, force, watch)


def _read(path: Path) -> Manifest:
    if path.is_dir():
        return read_manifest(path)
    with os_errors_as(InputError, f"{path} cannot be read", f"give an {MANIFEST_NAME}, or the folder that holds one"):
        return parse_manifest(read_small(path, MAX_MANIFEST))


def _find(manifest: Manifest, name: str, notice: Callable[[str], None]) -> ModelSource | RemoteCheckpoint:
    if manifest.format in OF_GGUF:
        return resolve_file(name, notice, name=manifest.base.files[0].file)
    if manifest.format == "adapter" and manifest.previous is None and not is_on_disk(name):
        return open_remote(hub_ref(name))
    return resolve(name, notice=notice)


def _make(
    manifest: Manifest, source: ModelSource | RemoteCheckpoint, output: Path, force: bool, watch: Watch
) -> Manifest:
    with ExitStack() as stack:
        if manifest.previous is not None and not _has(source, manifest.previous):
            final = output.resolve()
            with os_errors_as(OutputError, f"{final} cannot be written", "choose another output"):
                final.parent.mkdir(parents=True, exist_ok=True)
                # Not the name of the output itself, for which the last step makes a folder of its own.
                scratch = stack.enter_context(scratch_folder(final.with_name(f"{final.name} earlier")))
            folder = scratch / "earlier"
            _make(manifest.previous, source, folder, False, watch)
            whole = source.gguf if isinstance(source, ModelSource) else None
            gguf = None if whole is None else folder / whole.name
            source = ModelSource(folder, source.ref, gguf)
        spec = EditSpec(manifest.edits, manifest.base.ref, manifest.recipe, allow_overlap=True)
        plan = plan_formats((manifest.format,), source, spec, tensor_type=manifest.tensor_type)[manifest.format]
        progress = stack.enter_context(watch(plan.n_written()))
        staging = stack.enter_context(staged(plan, output, force=force))
        made = write_format(plan, staging, progress=progress)
        _compare(made, manifest)
        return write_manifest(replace(made, scores=manifest.scores), staging)


def _has(source: ModelSource | RemoteCheckpoint, edit: Manifest) -> bool:
    """Whether the base already has an edit: by the hashes of its tensors, whatever its names there are."""
    if not isinstance(source, ModelSource):
        found = source.manifest
    else:
        found = read_manifest(source.folder) if (source.folder / MANIFEST_NAME).exists() else None
    return found is not None and found.tensors == edit.tensors


def _compare(made: Manifest, recorded: Manifest) -> None:
    """The hashes before and after the edit must be those of the first time."""
    for now, then in zip(made.tensors, recorded.tensors, strict=False):
        if now != then:
            raise VerificationError(
                f"tensor {then.name} has other bytes than {MANIFEST_NAME} says: the base is not the one that was "
                f"edited ({recorded.base}){_GIVE_BASE}"
            )
    if len(made.tensors) != len(recorded.tensors):
        raise VerificationError(f"{MANIFEST_NAME} lists other tensors than its edits mean: it is damaged, restore it")
    files = {row.file: row for row in made.base.files}
    for row in recorded.base.files:
        found = files.get(row.file)
        # An edit in place recorded less about its files than a copy does.
        if found is None or (found.scope == row.scope and found != row):
            raise VerificationError(
                f"{row.file} of the base is not the file that was edited ({recorded.base}){_GIVE_BASE}"
            )
