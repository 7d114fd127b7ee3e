"""`verify` and `undo` for any output folder, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amnesia.domain import ADAPTERS, OF_GGUF, is_gguf_name
from amnesia.errors import CheckpointError, InputError, VerificationError, os_errors_as
from amnesia.files.companions import LORA_NAME, REPOSITORY_FILE, may_hold_weights, output_instead
from amnesia.files.disk import hash_file
from amnesia.files.listing import list_files
from amnesia.files.staging import MANIFEST_NAME, staged_output
from amnesia.outputs.lora import prove_lora
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import VerificationReport, check_alone, files_of_base, verify, verify_adapter
from amnesia.progress import Watch, unwatched
from amnesia.sources.remote import open_remote
from amnesia.sources.resolve import hub_ref, is_fetched, is_local, is_on_disk, resolve, resolve_file
from amnesia.sources.source import ModelSource, Notice
from amnesia.weights.adapter import WEIGHTS_NAME, below_prefix
from amnesia.weights.gguf.container import read_header as read_gguf_header
from amnesia.weights.gguf.container import read_model
from amnesia.weights.gguf.edit import own_manifest
from amnesia.weights.gguf.layout import is_projector
from amnesia.weights.gguf.proof import as_verification_error, prove_gguf, read_output, steps_since, undo_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.safetensors import read_header, read_weight_files
from amnesia.weights.steps import names_in

_N_SHOWN = 4
"""Names in a line."""


def output_of(path: Path) -> Path:
    """The folder of an output: `path` itself, or that of the file `path`, which must be one of its files of weights.

    Raises VerificationError for another file beside an output, which says nothing of it, and what `read_manifest` does.
    """
    if not path.is_file():
        return path
    folder = path.parent
    if (folder / MANIFEST_NAME).exists() and path.name not in (names := read_manifest(folder).weight_names):
        shown = ", ".join(names[:_N_SHOWN]) + (f" and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else "")
        raise VerificationError(
            f"{path} is none of the weights of the output {folder}, which are {shown}: give one of these, or the folder"
        )
    return folder


def outputs_in(folder: Path) -> list[Path]:
    """The folders with a manifest: `folder` itself, or its subfolders where a run wrote several formats.

    A file of weights stands for the output it is in. Raises VerificationError when there is none, because the output is
    incomplete or was not made by this package, and what `output_of` raises.
    """
    folder = output_of(folder)
    if (folder / MANIFEST_NAME).exists():
        return [folder]
    if (output := output_instead(folder)) is not None:
        raise VerificationError(f"{folder} does not exist: the output has one format and is {output} itself; give that")
    if not folder.exists():
        raise VerificationError(f"{folder} does not exist: give the folder of an output")
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if not found:
        raise VerificationError(f"{folder} has no {MANIFEST_NAME}: it is not a complete output; make it again")
    return found


def model_in(folder: Path) -> Path:
    """The output in `folder` that is a whole model; it may hold several formats, as a run writes them.

    Raises InputError when several are, and what `outputs_in` raises.
    """
    found = outputs_in(folder)
    whole = [path for path in found if read_manifest(path).format not in ADAPTERS]
    if len(whole) > 1:
        raise InputError(f"{folder} holds {len(whole)} edited models: undo one of {', '.join(map(str, whole))}")
    return (whole or found)[0]


def is_gguf(folder: Path) -> bool:
    """Whether the output in `folder` is an edited GGUF."""
    return read_manifest(folder).format == "gguf"


def prove_against(folder: Path, base: str | None, notice: Notice, watch: Watch = unwatched) -> VerificationReport:
    """`prove` with a base as a user names it; of one on the Hub, an adapter needs no more than the edited tensors.

    Raises SourceError when the base cannot be had.
    """
    if base is None:
        return prove(folder, watch=watch)
    manifest = read_manifest(folder)
    if manifest.format == "adapter" and not is_local(base):
        there = is_on_disk(base)
        return verify_adapter(folder, resolve(base, notice).checkpoint if there else open_remote(hub_ref(base)))
    if manifest.format in OF_GGUF:
        return prove(folder, resolve_file(base, notice, name=manifest.base.files[0].file), watch)
    if is_local(base):
        return prove(folder, resolve(base, notice=notice), watch)
    # The Hub's cache may hold further files of the repository, which other programs have fetched.
    names = files_of_base(folder)
    source = resolve(base, notice=notice, also=names)
    return verify(folder, source.folder, is_of_base=lambda name: name in names or is_fetched(name), watch=watch)


def prove(
    folder: Path, base: ModelSource | None = None, watch: Watch = unwatched, *, with_others: bool = False
) -> VerificationReport:
    """Prove that the output differs from its base as declared; raises VerificationError for the first difference.

    `watch` gets the bytes that will be read of the output. `with_others` says that files that may be other weights may
    lie in its folder.
    """
    manifest = read_manifest(folder)
    if manifest.format == "gguf-lora":
        return _lora_report(folder, None if base is None else base.require_gguf())
    if manifest.format != "gguf":
        return verify(folder, None if base is None else base.folder, watch=watch, with_others=with_others)
    if not with_others:
        check_alone(folder, manifest, _other_models(folder, manifest))
    path = None if base is None else base.require_gguf()
    manifest, model, unchanged, restored = prove_gguf(folder, path, watch=watch)
    steps = [*manifest.history()][: steps_since(path, manifest)]
    cells = {(row.name, index) for step in steps for row in step.tensors for index in row.indices}
    sizes = {part.path.name: part.size for part in model.files}
    # Parts that were linked have no hash in the manifest; only the base can prove them.
    hashed = {row.file for step in steps for row in (*step.base.files, *step.untouched) if row.sha256 is not None}
    proven = hashed if base is None else sizes.keys()
    return VerificationReport(
        format="gguf",
        entity=manifest.entity,
        n_cells=len(cells - unchanged),
        n_tensors=len({name for name, _ in cells - unchanged}),
        n_files=len(proven),
        n_bytes=sum(sizes[name] for name in proven),
        base_read=base is not None,
        unproven=tuple(sorted(sizes.keys() - proven)),
        tensor_type=manifest.tensor_type,
        n_unchanged=len(unchanged),
        restored=tuple(sorted(restored)),
    )


def _other_models(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files of a GGUF output that may be other weights; none where it is its user's folder, edited in place."""
    if all(step.in_place for step in manifest.history()):
        return ()
    names = {*list_files(folder)} - {*names_in(folder, manifest), REPOSITORY_FILE}
    with os_errors_as(VerificationError, f"{folder} cannot be read", "check its permissions"):
        return tuple(name for name in sorted(names) if _may_be_model(folder, name))


def _may_be_model(folder: Path, name: str) -> bool:
    if not is_gguf_name(name):
        return may_hold_weights(folder, name)
    try:
        return not is_projector(read_gguf_header(folder / name))
    except CheckpointError:
        return True


def check_edited(folder: Path) -> None:
    """The edited tensors of an output must be those that its manifests declare; of a whole model nothing else is read.

    Raises VerificationError naming the first that is not: the folder then holds another model than its manifest says.
    """
    manifest = read_manifest(folder)
    if manifest.format == "adapter":
        verify_adapter(folder)
        return
    if manifest.format == "gguf-lora":
        prove_lora(folder)
        return
    declared: dict[str, str] = {}
    for step in manifest.history():  # The newest first, whose hashes hold.
        for row in step.tensors:
            declared.setdefault(row.name, row.after)
    gguf = read_output(folder)[1] if manifest.format == "gguf" else None
    plain = None if gguf is not None else read_weight_files(folder)
    for name, after in declared.items():
        found = None
        if gguf is not None and (in_gguf := gguf.find(name)) is not None:
            found = hash_file(in_gguf[0].path, in_gguf[1].offset, in_gguf[1].n_bytes)
        elif plain is not None and (in_plain := plain.find(name)) is not None:
            found = hash_file(folder / in_plain[0], in_plain[1].offset, in_plain[1].size)
        if found != after:
            raise VerificationError(
                f"the tensor {name} in {folder} is not the one that {MANIFEST_NAME} "
                f"declares, so this is not the model of its edit: see `amnesia verify {folder}`, or make it again"
            )


def check_unaltered(path: Path, watch: Watch = unwatched) -> None:
    """Prove a model that is itself an output, a folder or `.gguf` file, before a further edit is built upon it.

    Models without a manifest pass. `watch` gets the bytes that will be read. Raises VerificationError when it was
    changed since, because no proof of the further edit could hold then.
    """
    folder = path.parent if path.is_file() else path
    if not (folder / MANIFEST_NAME).exists():
        return
    try:
        if path.is_file():
            with as_verification_error():
                manifest = own_manifest(read_model(path))
        else:
            manifest = read_manifest(folder)
        if manifest is not None and manifest.format == ("gguf" if path.is_file() else "safetensors"):
            prove(folder, watch=watch, with_others=True)
    except VerificationError as error:
        raise VerificationError(
            f"{folder} was changed since its edit, so that a further one could not be proven ({error}); to edit it as "
            f"a new model, move {MANIFEST_NAME} out of it"
        ) from error


def matrix_shape(folder: Path, name: str) -> tuple[int, int] | None:
    """Shape of an edited tensor of an output, which its manifest calls `name`; None where the output has none of it.

    Of an adapter that of the product of its factors. Raises what the readers of headers raise.
    """
    manifest = read_manifest(folder)
    if manifest.format == "gguf":
        found = read_output(folder)[1].find(name)
        return None if found is None else _matrix(found[1].shape)
    if manifest.format == "gguf-lora":
        return None
    if manifest.format == "safetensors":
        plain = read_weight_files(folder).find(name)
        return None if plain is None else _matrix(plain[1].shape)
    factors = read_header(folder / WEIGHTS_NAME).tensors
    stem = below_prefix(name.removesuffix(".weight"))
    ends = (f"{stem}.lora_B.weight", f"{stem}.lora_A.weight")
    b, a = (next((row.shape for key, row in factors.items() if key.endswith(end)), None) for end in ends)
    return None if a is None or b is None else (b[0], a[1])


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return shape[-2], shape[-1]


def weight_hashes(folder: Path, manifest: Manifest, watch: Watch = unwatched) -> dict[str, str]:
    """The sha256 of all files of weights of an output, by their names; of an adapter those of the adapter alone.

    `watch` gets the bytes that will be read. Raises what the readers of headers raise.
    """
    if manifest.format == "gguf":
        names = [file.path.name for file in read_model(folder / manifest.base.files[0].file).files]
    elif manifest.format in ADAPTERS:
        names = [LORA_NAME if manifest.format == "gguf-lora" else WEIGHTS_NAME]
    else:
        names = sorted(read_weight_files(folder).headers)
    with watch(sum((folder / name).stat().st_size for name in names)) as progress:
        return {name: hash_file(folder / name, progress=progress) for name in names}


def _lora_report(folder: Path, base: Path | None) -> VerificationReport:
    manifest = prove_lora(folder, base)
    return VerificationReport(
        format=manifest.format,
        entity=manifest.entity,
        n_cells=sum(len(row.indices) for row in manifest.tensors),
        n_tensors=len(manifest.tensors),
        n_files=1,
        n_bytes=(folder / LORA_NAME).stat().st_size,
        base_read=base is not None,
        unproven=(),
    )


def take_back(
    folder: Path,
    output: Path,
    *,
    force: bool = False,
    every_step: bool = False,
    watch: Watch = unwatched,
    notice: Notice = lambda _: None,
) -> Manifest:
    """Restore the original files of an edited model into `output`, bit for bit; returns the manifest of the edit.

    `watch` gets the bytes that will be written, `notice` a line about files that stay behind. `folder` is what
    `model_in` takes. Raises VerificationError when it is not what its manifest says, InputError for adapters.
    """
    folder = model_in(folder)
    if not is_gguf(folder):
        return undo(folder, output, force=force, every_step=every_step, watch=watch, notice=notice)
    manifest = read_manifest(folder)
    size = sum(row.size for row in (*manifest.base.files, *manifest.untouched))
    with watch(size) as progress, staged_output(output, force=force, needed_bytes=size, source=folder) as staging:
        return undo_gguf(folder, staging, every_step=every_step, progress=progress)
