"""Proof, from the bytes on disk, that an output is exactly what its manifest says.

Hashes prove the edited tensors, taking the edit back in memory must give the sha256 that each touched shard had before,
and the other files must have the sha256 with which they were copied. Of files whose bytes are shared with the base only
the size is known: they stay unproven and are listed, unless the base is at hand, with which every byte is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia.domain import Format, ModelRef
from amnesia.edit_checks import check_edits
from amnesia.edits import Place, by_projection
from amnesia.errors import InputError, VerificationError, os_errors_as
from amnesia.files.companions import REPOSITORY_FILE
from amnesia.files.disk import hash_file, read_small
from amnesia.files.listing import list_files
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.strict_json import StrictJson, shown
from amnesia.guessing import as_declared
from amnesia.outputs.history import State, check, check_blocks, check_files, go_back, recorder
from amnesia.progress import Watch, unwatched, whole
from amnesia.sources.remote import RemoteCheckpoint
from amnesia.sources.served import as_served, check_found
from amnesia.weights.adapter import (
    CONFIG_NAME,
    DTYPES,
    KEY_PREFIX,
    README_NAME,
    WEIGHTS_NAME,
    adapter_rank,
    base_files,
    below_prefix,
    check_mergeable,
    config_bytes,
    is_base,
    read_rows,
    target_modules,
    weights_blocks,
)
from amnesia.weights.checkpoint import CheckpointSource, open_source, other_weights
from amnesia.weights.configuration import MAX_CONFIG
from amnesia.weights.manifest import Manifest, TensorEdit, same_edits
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.plan import direction_factor, plan_edits
from amnesia.weights.safetensors import TensorInfo, read_header, read_vectors
from amnesia.weights.steps import check_written, own_files, trace_back


@dataclass(frozen=True)
class VerificationReport:
    """What was proven about an output.

    `n_cells` and `n_tensors` count the columns and tensors that differ from the base's (of an adapter: that it is to
    change), `n_unchanged` the edited columns that do not: later edits took them back, or rounding left them as they
    were; `restored` are tensor and index of those that are as before all edits, of whole models. `n_files` counts the
    files whose every byte was proven, `n_bytes` the bytes in them. `base_read` says whether the base was compared.
    `unproven` lists files of the model that only the base could prove. `tensor_type` is that in which edited tensors of
    a GGUF were stored anew.
    """

    format: Format
    entity: str
    n_cells: int
    n_tensors: int
    n_files: int
    n_bytes: int
    base_read: bool
    unproven: tuple[str, ...]
    tensor_type: str | None = None
    n_unchanged: int = 0
    restored: tuple[tuple[str, int], ...] = ()


@as_declared()
def verify(
    folder: Path,
    base: Path | None = None,
    *,
    is_of_base: Callable[[str], bool] = lambda _: True,
    watch: Watch = unwatched,
    with_others: bool = False,
) -> VerificationReport:
    """Re-read an output and prove that exactly the declared columns changed, by exactly the declared edits.

    `base` is the folder that was edited; after several edits on top of each other, the folder before any of them.
    Without it, files that were put into the output later by somebody else are left unproven, not refused.
    `is_of_base` tells which files of `base` the output must have, where others have put more into that folder. `watch`
    gets the bytes that will be read of the output; an adapter is small, and read without it. Unless it may lie there
    `with_others`, nothing that may be other weights is accepted beside the output.
    Raises VerificationError naming the first difference, CheckpointError for damaged weights, and InputError for a
    GGUF output.
    """
    manifest = read_manifest(folder)
    if manifest.format == "adapter":
        return verify_adapter(folder, None if base is None else open_source(base))
    if manifest.format != "safetensors":
        raise InputError(f"{folder} holds an edited {manifest.format} file: verify that file instead")
    states = go_back(folder, manifest)
    if not with_others:
        check_alone(folder, manifest, other_weights(open_source(folder)))
    restored = tuple(sorted(place for place, differs in _columns(states).items() if not differs))
    size = sum(path.stat().st_size for path in {path for state in states for path in state.files.values()})
    if base is None:
        check(states)
        with watch(size) as progress, whole(progress, size) as advance:
            check_files(states, progress=advance)
        proven = {name: path for name, path in states[-1].files.items() if name in states[-1].hashes}
        unproven = states[-1].files.keys() - proven.keys() - {REPOSITORY_FILE}
    else:
        count = _steps_since(base, manifest)
        proven = {name: path for name, path in states[count - 1].files.items() if name != REPOSITORY_FILE}
        copied = {name for name in open_source(base).files if name != REPOSITORY_FILE and is_of_base(name)}
        # The output may be a model that was edited in place, with files beside it that no copy gets.
        names = copied | (proven.keys() & {*list_files(base)})
        if different := sorted(names ^ proven.keys()):
            what = "lacks" if different[0] in names else "has, beyond the base and the manifest,"
            raise VerificationError(f"the output {what} the file {different[0]}: make the output again")
        if unlisted := sorted((proven.keys() & copied) - states[count - 1].declared):
            raise VerificationError(
                f"{MANIFEST_NAME} does not list {unlisted[0]}, which the base and the output have, so that `undo` "
                "would leave it out: make the output again"
            )
        # Bytes first, because they tell where something differs, and hashes only that.
        with watch(size) as progress, whole(progress, size) as advance:
            check_files(states, {name: base / name for name in proven}, count, advance)
        check(states)
        states, unproven = states[:count], frozenset()
    check_written(folder, manifest)
    differs = _columns(states)
    return VerificationReport(
        format=manifest.format,
        entity=manifest.entity,
        n_cells=sum(differs.values()),
        n_tensors=len({name for (name, _), found in differs.items() if found}),
        n_files=len(proven),
        n_bytes=sum(path.stat().st_size for path in proven.values()),
        base_read=base is not None,
        unproven=tuple(sorted(unproven)),
        n_unchanged=len(differs) - sum(differs.values()),
        restored=restored,
    )


def check_alone(folder: Path, manifest: Manifest, others: Sequence[str]) -> None:
    """Raises VerificationError for the first of the files `others` of an output, which may be other weights.

    Where a file of the output is missing, that one is named: the other may be it, under another name.
    """
    if not others:
        return
    declared = {*own_files(manifest), *(row.file for row in (*manifest.base.files, *manifest.untouched))}
    if missing := sorted(name for name in declared if not (folder / name).is_file()):
        raise VerificationError(
            f"{folder / missing[0]} is missing, but {MANIFEST_NAME} declares it: put it back ({others[0]}, "
            "which is not declared, may be it under another name), or make the output again"
        )
    raise VerificationError(
        f"{folder / others[0]} is no part of the output, and may hold weights that were not edited, or an adapter "
        "that is put on them: remove it"
    )


def _columns(states: Sequence[State]) -> dict[tuple[str, int], bool]:
    """Edited columns by tensor and index, and whether they differ now from what the oldest of the edits found."""
    now: dict[tuple[str, int], bytes] = {}
    then: dict[tuple[str, int], bytes] = {}
    for row in (row for state in states for row in state.tensors):  # The newest first.
        for index in row.edit.indices:
            now.setdefault((row.edit.name, index), row.after.vectors[index])
            then[row.edit.name, index] = row.before.vectors[index]
    return {place: vector != then[place] for place, vector in now.items()}


def files_of_base(folder: Path) -> frozenset[str]:
    """Names of all files that an output has from its base, or from one of several on top of each other.

    Raises what `read_manifest` raises, and VerificationError when declared files are missing.
    """
    return frozenset().union(*(step.before for step in trace_back(folder, read_manifest(folder))))


def _steps_since(base: Path, manifest: Manifest) -> int:
    """How many edits lie between `base` and the output."""
    if not (base / MANIFEST_NAME).exists():
        return len(list(manifest.history()))
    earlier = read_manifest(base)
    for count, step in enumerate(manifest.history(), start=1):
        if step.previous == earlier:
            return count
    raise VerificationError(
        f"{base} has an edit for {earlier.entity!r} that this output does not build on: give the model that was edited"
    )


def verify_adapter(folder: Path, source: CheckpointSource | RemoteCheckpoint | None = None) -> VerificationReport:
    """`verify` for an adapter; `source` is the model that it was made for, which need not be on this disk."""
    manifest = read_manifest(folder)
    names = {*list_files(folder)} - {REPOSITORY_FILE}
    expected = {MANIFEST_NAME, *manifest.added, CONFIG_NAME, WEIGHTS_NAME}
    if different := sorted((names ^ expected) - {README_NAME}):
        raise VerificationError(
            f"{folder} and {MANIFEST_NAME} disagree on the file {different[0]}: make the adapter again"
        )
    weights = folder / WEIGHTS_NAME
    if source is None:
        modules, rank = _check_factors(weights, manifest)
    else:
        source = as_served(source)
        plans = plan_edits(source, manifest.edits, allow_overlap=True)
        check_mergeable(source, plans)
        # Names of entities are other ones where somebody has published the model.
        if not same_edits(source.manifest, manifest.previous) or base_files(source, plans) != manifest.base.files:
            raise VerificationError(
                f"{source.name} is not the model that the adapter was made for: give {manifest.base} as it was then"
                + ("" if manifest.previous is None else f", with the edit for {manifest.previous.entity!r}")
            )
        modules, rank = target_modules(source, plans), adapter_rank(max(plan.rank for plan in plans))
        tensors: list[TensorEdit] = []
        check_blocks(weights_blocks(source, plans, rank, recorder(tensors, manifest, source.name)), weights)
        if tuple(tensors) != manifest.tensors:
            raise VerificationError(f"{MANIFEST_NAME} does not list the tensors and hashes of its edits: make it again")
    config = config_bytes(modules, manifest.tensors[0].axis, rank, _base_of(folder, manifest.base.ref))
    check_blocks(iter([config]), folder / CONFIG_NAME)
    if source is not None:
        check_found(source, folder)
    check_written(folder, manifest)
    return VerificationReport(
        format=manifest.format,
        entity=manifest.entity,
        n_cells=sum(len(edit.indices) for edit in manifest.tensors),
        n_tensors=len(manifest.tensors),
        n_files=2,
        n_bytes=weights.stat().st_size + len(config),
        base_read=source is not None,
        unproven=(),
    )


def _base_of(folder: Path, base: ModelRef) -> ModelRef:
    """The base as the settings of an adapter call it, if that may be so."""
    path = folder / CONFIG_NAME
    check = StrictJson(str(path), VerificationError, "the adapter is damaged, make it again")
    with os_errors_as(VerificationError, f"{path} cannot be read", "the adapter is damaged, make it again"):
        name = check.mapping(check.parse(read_small(path, MAX_CONFIG)), "settings").get("base_model_name_or_path")
    if not isinstance(name, str) or not is_base(name, base):
        raise check.fail(f"is for the base {shown(name)}, {MANIFEST_NAME} for {base}")
    return replace(base, name=name)


def _check_factors(weights: Path, manifest: Manifest) -> tuple[list[str], int]:
    """Without the base: A must be one-hot at the declared neurons and then hold u of the directions, B hold their v.

    B must also have the declared sha256, since its other columns are known only where the base is. Returns the module
    paths and the rank.
    """
    header = read_header(weights)
    by_matrix = by_projection(manifest.edits, allow_overlap=True)
    if any(expert is not None for _, expert in by_matrix):
        raise VerificationError(f"{MANIFEST_NAME} names cells of experts, which no adapter can edit: make it again")
    if [Place(*place) for place in by_matrix] != [row.place for row in manifest.tensors]:
        raise VerificationError(
            f"{MANIFEST_NAME} lists tensors that do not follow from its edits: make the adapter again"
        )
    rank = adapter_rank(max(edit.rank for edit in manifest.tensors))
    modules = []
    for edit in manifest.tensors:
        scaled = tuple(edit.scaled)
        stem = edit.name.removesuffix(".weight")
        paths = [
            path
            for name in header.tensors
            if name.startswith(KEY_PREFIX) and name.endswith(".lora_A.weight")
            if below_prefix(path := name.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight")) == below_prefix(stem)
        ]
        if len(paths) != 1 or f"{KEY_PREFIX}{paths[0]}.lora_B.weight" not in header.tensors:
            raise VerificationError(f"{weights} lacks the factors of tensor {edit.name}: make the adapter again")
        a = header.tensors[f"{KEY_PREFIX}{paths[0]}.lora_A.weight"]
        b = header.tensors[f"{KEY_PREFIX}{paths[0]}.lora_B.weight"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank or a.dtype != b.dtype:
            raise VerificationError(f"{weights} has factors of {edit.name} that are not of rank {rank}: make it again")
        if a.dtype not in DTYPES:
            raise VerificationError(
                f"{weights} has factors of {edit.name} as {a.dtype}, no type of adapters: make it again"
            )
        if edit.indices[-1] >= a.shape[1]:
            raise VerificationError(f"{MANIFEST_NAME} names neuron {edit.indices[-1]} of {edit.name}, beyond its width")
        if edit.directions:
            layer = edit.directions[0].layer
            check_edits(edit.directions, layer + 1, b.shape[0], a.shape[1], str(weights))
        rows = hashlib.sha256(read_rows(a.dtype, scaled, edit.directions, rank, a.shape[1])).hexdigest()
        for factor, digest in ((a, rows), (b, edit.after)):
            if hash_file(weights, factor.offset, factor.size) != digest:
                raise VerificationError(f"{weights} has another {factor.name} than the manifest says: make it again")
        for place, direction in enumerate(edit.directions, start=len(scaled)):
            if _column(weights, b, place) != direction_factor(direction, b).tobytes():
                raise VerificationError(f"{weights} has another {b.name} than its direction means: make it again")
        modules.append(paths[0])
    if len(header.tensors) != 2 * len(modules):
        raise VerificationError(
            f"{weights} holds tensors that {MANIFEST_NAME} does not declare: make the adapter again"
        )
    return sorted(modules), rank


def _column(path: Path, tensor: TensorInfo, index: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return read_vectors(file.fileno(), tensor, 1, (index,))[index]
