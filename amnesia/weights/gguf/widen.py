"""GGUF files in which the matrices that are edited by columns are stored in a wider type than before.

Such a matrix grows, so that everything after it moves. The undo file holds the matrices as they were; from them and the
new file alone the old file is put together again.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from amnesia.domain import WIDER_TYPES
from amnesia.edits import EditSpec
from amnesia.errors import InputError, NumericalError, OutputError, VerificationError, os_errors_as
from amnesia.files.disk import check_empty, read_range, write_new
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import Strided, stream
from amnesia.progress import Progress, counted, ignore_progress, whole
from amnesia.weights.checkpoint import UNDO_NAME
from amnesia.weights.gguf.codes import to_bfloat16
from amnesia.weights.gguf.container import GgufFile, GgufModel, GgufTensor, read_model
from amnesia.weights.gguf.edit import check_unchanged, copy_untouched, find_pieces, opened, own_manifest
from amnesia.weights.gguf.layout import gguf_shape
from amnesia.weights.gguf.pieces import Down, PieceHashes, RowEdit, UpRow
from amnesia.weights.gguf.rewrite import ResizedTensor, padding_of, rewritten_blocks
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit, UntouchedFile
from amnesia.weights.safetensors import NewTensor, new_file, read_header


@dataclass(frozen=True)
class WidePlan:
    """An edit that was checked: rows that are scaled, in the order of bytes, and matrices that are stored wider.

    `stamps` are sizes and times of the files, from before anything but their headers was read.
    """

    spec: EditSpec
    model: GgufModel
    rows: tuple[RowEdit, ...]
    downs: tuple[Down, ...]
    tensor_type: str
    stamps: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Room for the output: the files, the matrices as they were, and as they become, with four bytes at most."""
        tensors = [down.tensor for down in self.downs]
        grown = sum(tensor.n_bytes + 4 * math.prod(tensor.shape) for tensor in tensors)
        return sum(file.size for file in self.model.files) + grown

    @property
    def kind(self) -> GGMLQuantizationType:
        """The type of the plan as the `gguf` package names it."""
        return GGMLQuantizationType[self.tensor_type.upper()]

    def n_written(self, *, link: bool) -> int:
        """Bytes of the model's files that the writer writes, and tells of."""
        copied = sum(file.size for file in self.model.files if not link or self.touches(file))
        return copied + sum(_growth(down, self.kind) for down in self.downs)

    def touches(self, file: GgufFile) -> bool:
        """Whether the edit changes anything in a file."""
        return any(piece.file is file for piece in (*self.rows, *self.downs))


def plan_widened_gguf(
    source: Path, spec: EditSpec, tensor_type: str, *, expected: tuple[int, int, int] | None = None
) -> WidePlan:
    """Check an edit that stores each matrix edited by columns as `tensor_type`, and read the rows that it scales.

    Raises as `edit.plan_gguf`, and InputError for an output of earlier edits: give all edits at once.
    """
    if tensor_type not in WIDER_TYPES:
        raise InputError(f"tensor type {tensor_type!r} is unknown: use one of {', '.join(WIDER_TYPES)}")
    model, stamps, shape = opened(source, expected)
    if own_manifest(model) is not None:
        raise InputError(f"{source.parent} is edited already: undo that, then give all edits at once")
    rows, downs = find_pieces(model, shape, spec.groups, None, allow_overlap=spec.allow_overlap)
    if not downs:
        raise InputError(
            "the edit changes no ffn_down, but rows of ffn_up: drop the tensor type, which is for the former"
        )
    for tensor in (down.tensor for down in downs):
        if "[" in tensor.name:
            raise InputError(
                f"{tensor.name} is the matrix of one expert of many, of the same type: drop the tensor type"
            )
        kind = GGMLQuantizationType[tensor_type.upper()]
        if kind is not tensor.tensor_type and _bits(kind) <= _bits(tensor.tensor_type):
            raise InputError(
                f"{tensor.name} is stored as {tensor.tensor_type.name}, which {tensor_type} is not wider than: choose "
                "a wider type, or drop it"
            )
    edits = sorted((row.edit(multiplier) for row, multiplier in rows), key=lambda edit: edit.row.offset)
    return WidePlan(spec, model, tuple(edits), tuple(downs), tensor_type, stamps)


def _bits(kind: GGMLQuantizationType) -> float:
    """Bits that a weight of this type takes."""
    n, size = GGML_QUANT_SIZES[kind]
    return 8 * size / n


def write_widened_gguf(
    plan: WidePlan, folder: Path, *, link: bool = False, progress: Progress = ignore_progress
) -> Manifest:
    """Write the edited model into the empty `folder`, each matrix edited by columns as the type of the plan.

    Everything else is as in `edit.write_edited_gguf`.
    """
    spec, model = plan.spec, plan.model
    check_empty(folder)
    kind = plan.kind
    files: list[BaseFile] = []
    untouched: list[UntouchedFile] = []
    tensors: list[TensorEdit] = []
    saved: list[NewTensor] = []
    for file in model.files:
        name = file.path.name
        here = [edit for edit in plan.rows if edit.file is file]
        grown = [(down, *_widen(down, _content(down), kind)) for down in plan.downs if down.file is file]
        if not plan.touches(file):
            with whole(ignore_progress if link else progress, file.size) as advance:
                untouched.append(copy_untouched(file, folder / name, link=link, advance=advance))
            continue
        hashes = PieceHashes(file, here)
        patches = [patch for edit in here for patch in edit.changes()]
        stream(file.path, patches=patches, hashes=hashes.ranges())
        files.append(hashes.base_file())
        tensors.extend(hashes.entries())
        for edit in here:
            saved.append(NewTensor(f"{edit.tensor.name}:{edit.row.index}", "U8", (len(edit.before),), (edit.before,)))
        replacements = []
        for down, content, share in grown:
            before = _content(down)
            saved.append(NewTensor(_key(down.tensor), "U8", (len(before),), (before,)))
            tensors.append(_entry(down, before, content, share))
            padding = bytes(padding_of(file, len(before), len(content)))
            replacements.append(ResizedTensor(down.tensor, kind, content + padding, len(before)))
        _write(folder / name, counted(rewritten_blocks(file, replacements, patches), progress))
    check_unchanged(model, plan.stamps)
    _write(folder / UNDO_NAME, new_file(saved))
    return Manifest(
        format="gguf",
        base=Base(spec.base, tuple(files)),
        edits=spec.groups,
        tensors=tuple(tensors),
        untouched=tuple(untouched),
        undo=UNDO_NAME,
        added=(UNDO_NAME,),
        recipe=spec.recipe_text,
        tensor_type=plan.tensor_type,
    )


def verify_widened(
    folder: Path, manifest: Manifest, base: Path | None = None, *, progress: Progress = ignore_progress
) -> None:
    """Prove an output of `write_widened_gguf`; raises VerificationError that names the first difference.

    Its matrices and rows must be what the writer makes of the saved ones, and with those put back each file must have
    the sha256 of its source, or with `base` be the same byte by byte.
    """
    for restored in _restore(folder, manifest):
        path, found = restored.file.path, hashlib.sha256()
        source = None if base is None else (base if base.is_dir() else base.parent) / path.name
        if source is not None and (not source.is_file() or source.stat().st_size != restored.size):
            raise VerificationError(f"{path} was not made from {source}: give the model that was edited")
        with (source or path).open("rb") as reader:
            for block in counted(restored.blocks(), progress):
                found.update(block)
                if source is not None and reader.read(len(block)) != block:
                    raise VerificationError(
                        f"{path} with its tensors put back is not {source}: the output is damaged, or this is not its "
                        "base"
                    )
        if restored.sha256 is not None and found.hexdigest() != restored.sha256:
            raise VerificationError(f"{path} differs from its source outside of what was declared: write it again")


def undo_widened(folder: Path, manifest: Manifest, target: Path, *, progress: Progress = ignore_progress) -> None:
    """Write the files from before the edit into the empty folder `target`; raises as `verify_widened`.

    `progress` is called with numbers of bytes as they are written.
    """
    for restored in _restore(folder, manifest):
        digest = hashlib.sha256()

        def blocks(restored: Restored = restored, digest: hashlib._Hash = digest) -> Iterator[bytes]:
            for block in restored.blocks():
                digest.update(block)
                yield block

        _write(target / restored.file.path.name, counted(blocks(), progress))
        if restored.sha256 not in (None, digest.hexdigest()):
            raise VerificationError(
                f"{restored.file.path} with its tensors put back is not the file that was edited: "
                "the output was changed since; use the base model"
            )


@dataclass(frozen=True)
class Restored:
    """A file of the output as it was before the edit: its size, its sha256 where that is known, and its bytes."""

    file: GgufFile
    size: int
    sha256: str | None
    blocks: Callable[[], Iterator[bytes]]


def _restore(folder: Path, manifest: Manifest) -> list[Restored]:
    """All files as they were, after checking that rows and matrices are what the writer makes of the saved ones."""
    model = read_model(folder / manifest.base.files[0].file)
    rows, downs = find_pieces(model, gguf_shape(model), manifest.edits, None, allow_overlap=True)
    saved = _saved(folder / UNDO_NAME)
    kind = GGMLQuantizationType[str(manifest.tensor_type).upper()]
    sizes = {row.file: row for row in (*manifest.base.files, *manifest.untouched)}
    if {*sizes} != {file.path.name for file in model.files}:
        raise VerificationError(
            f"{MANIFEST_NAME} lists other files than {folder} has: the output is damaged, make it again"
        )
    patches, entries = _rows_before(folder, rows, saved)
    replacements, wider = _matrices_before(folder, downs, saved, kind)
    if entries | wider != {entry.name: entry for entry in manifest.tensors}:
        raise VerificationError(
            f"{MANIFEST_NAME} in {folder} lists other tensors than its edits: it is damaged, make the output again"
        )
    result = []
    for file in model.files:
        name = file.path.name
        change = replacements.get(name, [])
        size = file.size + sum(len(row.content) - row.size for row in change)
        if size != sizes[name].size:
            raise VerificationError(f"{file.path} has not the size that {MANIFEST_NAME} implies: write it again")
        for row in change:
            gap = row.size - row.tensor.n_bytes
            if any(read_range(file.path, gap, row.tensor.offset + row.tensor.n_bytes)):
                raise _damaged(folder, f"the padding after {row.tensor.name}")
        result.append(
            Restored(
                file,
                size,
                sizes[name].sha256,
                lambda file=file, change=change, name=name: rewritten_blocks(file, change, patches.get(name, [])),
            )
        )
    return result


def _rows_before(
    folder: Path, rows: list[tuple[UpRow, float]], saved: Mapping[str, bytes]
) -> tuple[dict[str, list[Strided]], dict[str, TensorEdit]]:
    """What puts the saved rows back, by file, and the entries of their tensors as the manifest must have them."""
    patches: dict[str, list[Strided]] = {}
    entries: dict[str, TensorEdit] = {}
    rows.sort(key=lambda row: (row[0].file.path.name, row[0].offset))
    groups = itertools.groupby(rows, key=lambda row: row[0].tensor)
    for tensor, group in groups:
        edits = []
        for row, multiplier in group:
            before = saved.get(f"{tensor.name}:{row.index}", b"")
            edit = RowEdit(row, multiplier, before, row.read())
            if len(before) != tensor.row_bytes or row.scale(before, multiplier) != edit.after:
                raise _damaged(folder, f"row {row.index} of {tensor.name}")
            edits.append(edit)
            patches.setdefault(row.file.path.name, []).extend(edit.originals())
        hashes = PieceHashes(edits[0].file, edits)
        back = [patch for edit in edits for patch in edit.originals()]
        stream(edits[0].file.path, patches=back, hashes=hashes.ranges())
        (entry,) = hashes.entries()
        entries[tensor.name] = _backwards(entry)
    return patches, entries


def _matrices_before(
    folder: Path, downs: Sequence[Down], saved: Mapping[str, bytes], kind: GGMLQuantizationType
) -> tuple[dict[str, list[ResizedTensor]], dict[str, TensorEdit]]:
    """The saved matrices in place of the wider ones, by file, and the entries of these for the manifest."""
    replacements: dict[str, list[ResizedTensor]] = {}
    entries: dict[str, TensorEdit] = {}
    for down in downs:
        tensor = down.tensor
        old = next((key for key in saved if key.rpartition("@")[0] == tensor.name), None)
        if old is None or tensor.tensor_type is not kind:
            raise VerificationError(f"{folder} lacks the saved matrix {tensor.name}: use the base model")
        before = saved[old]
        original = GgufTensor(tensor.name, _type_of(old), tensor.shape, tensor.offset, len(before))
        if original.row_bytes * tensor.shape[0] != len(before):
            raise VerificationError(f"{folder / UNDO_NAME} holds {old} in an unexpected form: use the base model")
        now = _content(down)
        made, share = _widen(replace(down, tensor=original), before, kind)
        if made != now:
            raise _damaged(folder, tensor.name)
        entries[tensor.name] = _entry(down, before, now, share)
        size = len(now) + padding_of(down.file, len(before), len(now))
        replacements.setdefault(down.file.path.name, []).append(
            ResizedTensor(tensor, original.tensor_type, before, size)
        )
    return replacements, entries


def _backwards(entry: TensorEdit) -> TensorEdit:
    """An entry whose hashes were taken while going back: what came first there is the newer."""
    return replace(entry, before=entry.after, after=entry.before)


def _damaged(folder: Path, what: str) -> VerificationError:
    return VerificationError(
        f"{what} in {folder} is not what the declared edit makes of the original: the output is damaged, write it again"
    )


def _widen(down: Down, content: bytes, kind: GGMLQuantizationType) -> tuple[bytes, float | None]:
    """The matrix `content`, of the type of `down.tensor`, with the edit made, as numbers of type `kind`.

    Also returns `share` of DownEdit.
    """
    tensor = down.tensor
    raw = np.frombuffer(content, np.uint8).reshape(tensor.shape[0], -1)
    with np.errstate(all="ignore"):  # What is not finite is reported below.
        old = down.multiply(dequantize(raw, tensor.tensor_type).astype(np.float64))
        target = down.add(old.copy())
        if kind is GGMLQuantizationType.BF16:
            numbers = to_bfloat16(target)
            new = (numbers.astype(np.uint32) << 16).view(np.float32)
        elif kind is GGMLQuantizationType.Q8_0:
            numbers = quantize(target.astype(np.float32), kind)
            new = dequantize(numbers, kind)
        else:
            new = numbers = target.astype("<f2" if kind is GGMLQuantizationType.F16 else "<f4")
    if not np.isfinite(new).all():
        raise NumericalError(
            f"{tensor.name} has numbers that are not finite, or too large for {kind.name}: use another type"
        )
    return numbers.tobytes(), down.share(old, target, new.astype(np.float64))


def _growth(down: Down, kind: GGMLQuantizationType) -> int:
    """Bytes by which a file grows, with padding, when the matrix is stored as `kind`."""
    size, n_bytes = GGML_QUANT_SIZES[kind]
    after = math.prod(down.tensor.shape) // size * n_bytes
    return after + padding_of(down.file, down.tensor.n_bytes, after) - down.tensor.n_bytes


def _content(down: Down) -> bytes:
    return read_range(down.file.path, down.tensor.n_bytes, down.tensor.offset)


def _entry(down: Down, before: bytes, after: bytes, share: float | None) -> TensorEdit:
    return down.entry(hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest(), share)


def _key(tensor: GgufTensor) -> str:
    return f"{tensor.name}@{tensor.tensor_type.name}"


def _type_of(key: str) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[key.rpartition("@")[2]]
    except KeyError:
        raise VerificationError(f"{UNDO_NAME} holds {key} of an unknown type: use the base model") from None


def _saved(path: Path) -> dict[str, bytes]:
    return {name: read_range(path, tensor.size, tensor.offset) for name, tensor in read_header(path).tensors.items()}


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    with os_errors_as(OutputError, f"{path} cannot be written", "free space or choose another disk"):
        write_new(path, blocks)
