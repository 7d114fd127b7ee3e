"""Editing a safetensors checkpoint on disk, without ever building the model.

Only the edited columns change. Every other byte of every tensor and of every other file stays as it is, because files
are copied with these bytes replaced, never parsed and saved again. Memory does not depend on the size of the model: a
few pieces of a file, and the edited columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Protocol

from amnesia.arithmetic import check_dtype, inverts_exactly, scale_bytes
from amnesia.domain import Cell, check_edits
from amnesia.edits import EditSpec, EntityEdits, join_edits
from amnesia.errors import CheckpointError, InputError, LayoutError, NumericalError
from amnesia.files import check_empty, check_settled, copy_file, file_stamp, is_inside_name, list_files, read_small
from amnesia.layouts import MlpShape, shape_from_config
from amnesia.manifest import (
    MANIFEST_NAME,
    Base,
    BaseFile,
    Manifest,
    TensorEdit,
    UntouchedFile,
    check_earlier,
    read_manifest,
)
from amnesia.safetensors_file import (
    NewTensor,
    TensorInfo,
    WeightFiles,
    check_matrix,
    new_file,
    patches_of,
    read_vectors,
    read_weight_files,
)
from amnesia.streams import RangeHash, Strided
from amnesia.strict_json import StrictJson

UNDO_NAME = "amnesia-undo.safetensors"
# Files of the base whose names the output needs for itself are kept in this folder.
BASE_FOLDER = "amnesia-base"
MAX_CONFIG = 2**24
# Further copies of the weights. They would still know the entity, so the output does not get them.
_OTHER_WEIGHTS = (
    "model*.safetensors",
    "consolidated*.safetensors",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "consolidated*.pt",
    "consolidated*.pth",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "rust_model.ot",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.mlmodel",
)


class Weights(Protocol):
    """What an edit must know of a model, wherever its files are: sizes, headers, columns, and an earlier edit."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> MlpShape: ...

    @property
    def weights(self) -> WeightFiles: ...

    @property
    def manifest(self) -> Manifest | None: ...

    def read_columns(self, plan: TensorPlan) -> dict[int, bytes]:
        """The columns that a plan edits, as they are."""


@dataclass(frozen=True)
class CheckpointSource:
    """A model folder that has been looked over: sizes, weights, files to copy, and the manifest of an earlier edit.

    `left_out` are copies of the weights in other formats, which this package cannot edit and does not copy.
    """

    folder: Path
    shape: MlpShape
    weights: WeightFiles
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    manifest: Manifest | None

    @property
    def name(self) -> str:
        return str(self.folder)

    def read_columns(self, plan: TensorPlan) -> dict[int, bytes]:
        with (self.folder / plan.file).open("rb", buffering=0) as file:
            return read_vectors(file.fileno(), plan.tensor, plan.axis, tuple(plan.multipliers))


@dataclass(frozen=True)
class TensorPlan:
    """The edit of one stored matrix: `multipliers` by index along `axis`, ascending.

    `expert` says whose matrix it is in a layer with a mixture of experts.
    """

    layer: int
    file: str
    tensor: TensorInfo
    axis: int
    multipliers: Mapping[int, float]
    expert: int | None = None


def open_source(folder: Path) -> CheckpointSource:
    """Read `config.json`, the headers of all shards and the names of all files; no weights.

    Raises LayoutError for an unsupported architecture, CheckpointError for damaged, missing or pickled weights, and
    VerificationError when the folder holds a malformed manifest.
    """
    check_settled(folder)
    files = list_files(folder)
    shape = shape_from_config(_read_config(folder))
    weights = read_weight_files(folder)
    left_out = tuple(
        name
        for name in files
        if name not in weights.headers
        and name.split("/")[0] != BASE_FOLDER
        and any(fnmatch(PurePosixPath(name).name, pattern) for pattern in _OTHER_WEIGHTS)
    )
    manifest = read_manifest(folder) if MANIFEST_NAME in files else None
    return CheckpointSource(folder, shape, weights, tuple(sorted({*files} - {*left_out})), left_out, manifest)


def _read_config(folder: Path) -> Mapping[str, object]:
    try:
        content = read_small(folder / "config.json", MAX_CONFIG)
    except OSError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({error.strerror}): give the folder of a Hugging Face model"
        ) from error
    return parse_config(str(folder / "config.json"), content)


def parse_config(where: str, content: bytes) -> Mapping[str, object]:
    """A model's `config.json`; raises CheckpointError naming the file `where`."""
    json_file = StrictJson(where, CheckpointError, "fetch the model again")
    if len(content) > MAX_CONFIG:
        raise json_file.fail(f"has more than {MAX_CONFIG} bytes")
    config = json_file.mapping(json_file.parse(content), "configuration")
    json_file.text(config.get("model_type"), "model_type")
    json_file.mapping(config.get("quantization_config") or {}, "quantization_config")
    return config


def plan_edits(
    source: Weights, groups: Sequence[EntityEdits], *, allow_overlap: bool = False
) -> tuple[TensorPlan, ...]:
    """Which indices of which stored tensors change, in the order of layers and experts.

    Raises InputError for cells that do not exist, that two entities share, or that an earlier edit of this checkpoint
    has changed (unless `allow_overlap`); LayoutError when a tensor is missing or has another shape than the
    configuration says; CheckpointError for types that cannot be scaled exactly.
    """
    shape = source.shape
    for group in groups:
        check_edits(group.edits, shape.n_layers, shape.d_mlp, source.name, shape.experts_in)
    cells = join_edits(groups, allow_overlap=allow_overlap)
    if source.manifest is not None and not allow_overlap:
        check_earlier(source.manifest, groups)
    return tuple(_plan_matrix(source, *place, multipliers) for place, multipliers in by_projection(cells).items())


def by_projection(cells: Mapping[Cell, float]) -> dict[tuple[int, int | None], dict[int, float]]:
    """Multipliers by neuron for each edited output projection, which is a layer's or one of its experts'."""
    found: dict[tuple[int, int | None], dict[int, float]] = {}
    for cell, multiplier in cells.items():
        found.setdefault((cell.layer, cell.expert), {})[cell.neuron] = multiplier
    return found


def _plan_matrix(source: Weights, layer: int, expert: int | None, multipliers: Mapping[int, float]) -> TensorPlan:
    shape = source.shape
    names = shape.layout.tensor_names(layer, expert)
    found = [place for name in names if (place := source.weights.find(name)) is not None]
    if len(found) != 1:
        owner = f"layer {layer}" if expert is None else f"expert {expert} of layer {layer}"
        raise LayoutError(
            f"{source.name} has {len(found)} tensors for the output projection of {owner}: expected one of "
            f"{', '.join(names)}; the weights do not belong to this config.json"
        )
    file, tensor = found[0]
    axis = shape.layout.neuron_axis
    experts = shape.experts_in(layer)
    d_mlp = shape.d_mlp if experts is None else experts[1]
    expected = (shape.d_model, d_mlp) if axis == 1 else (d_mlp, shape.d_model)
    if tensor.shape != expected:
        raise LayoutError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}: config.json says {list(expected)}; "
            "the weights do not belong to this config.json"
        )
    check_dtype(tensor.dtype, tensor.name)
    check_matrix(tensor, axis, multipliers)
    return TensorPlan(layer, file, tensor, axis, multipliers, expert)


def needed_bytes(source: CheckpointSource, plans: Iterable[TensorPlan], *, link: bool = False) -> int:
    """Bytes that an edited copy takes on the disk; with `link` only the touched shards are copied."""
    touched = {plan.file for plan in plans}
    return sum((source.folder / name).stat().st_size for name in source.files if not link or name in touched)


def write_edited(
    source: CheckpointSource,
    spec: EditSpec,
    folder: Path,
    *,
    link: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the edited model into the empty `folder`, everything but the manifest, and return the manifest.

    `link` hard-links untouched files instead of copying them. `progress` is called with the bytes written so far and in
    all. Files are hashed, and touched shards edited, while they are copied; where the filesystem shares blocks, the
    hash of the touched shards (1 to 2 GB/s) is most of the time that is spent.

    The caller writes the manifest last, inside `files.staged_output`. Raises what `plan_edits` raises, OutputError when
    `folder` is not empty or the disk is full, and NumericalError when a column holds or would get NaN or infinity.
    """
    plans = plan_edits(source, spec.groups, allow_overlap=spec.allow_overlap)
    check_empty(folder)
    touched = {plan.file for plan in plans}
    stamps = {name: file_stamp(source.folder / name) for name in source.files}
    replaced = tuple(name for name in source.files if is_reserved(name))
    total = needed_bytes(source, plans, link=False)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    columns = tuple(edited_columns(source, plans))
    tensor_hashes = {plan.tensor.name: tensor_range(plan.tensor) for plan in plans}
    base_files, untouched = [], []
    for name in sorted(source.files, key=lambda name: name not in touched):
        before = done
        edited = [row for row in columns if row.plan.file == name]
        whole = RangeHash(0, stamps[name][0])
        hashed = copy_file(
            source.folder / name,
            folder / BASE_FOLDER / name if name in replaced else folder / name,
            link=link and not edited,
            patches=[patch for row in edited for patch in row.patches()],
            hashes=[whole, *(part for row in edited for part in tensor_hashes[row.plan.tensor.name])],
            advance=advance,
        )
        if edited:
            base_files.append(BaseFile(name, whole.size, whole.hexdigest()))
        elif name not in replaced:
            untouched.append(UntouchedFile(name, whole.size, whole.hexdigest() if hashed else None))
        advance(whole.size - (done - before))  # Links and shared disk blocks arrive all at once.
    for name, stamp in stamps.items():
        if stamp != file_stamp(source.folder / name):
            raise CheckpointError(
                f"{source.folder / name} changed while it was copied: wait until nothing writes to it, then repeat"
            )

    saved = [tensor for row in columns for tensor in row.saved()]
    if saved:
        with (folder / UNDO_NAME).open("xb") as file:
            file.writelines(new_file(saved))
    tensors = tuple(row.entry(*(part.hexdigest() for part in tensor_hashes[row.plan.tensor.name])) for row in columns)
    return Manifest(
        format="safetensors",
        base=Base(spec.base_id, spec.revision, tuple(base_files)),
        edits=spec.groups,
        tensors=tensors,
        untouched=tuple(untouched),
        undo=UNDO_NAME if saved else None,
        added=(UNDO_NAME,) if saved else (),
        replaced=replaced,
        left_out=source.left_out,
        recipe=spec.recipe_text,
        previous=source.manifest,
    )


def add_file(manifest: Manifest, folder: Path, name: str, content: bytes) -> Manifest:
    """Write a file that goes with the edit (a report, a model card), and return the manifest that declares it.

    A file of the base with this name is kept in `amnesia-base/`, so that `undo` can put it back. Raises InputError for
    names that are not plain or that belong to the weights or to the manifest.
    """
    weights = {row.file for row in manifest.base.files}
    if not is_inside_name(name) or is_reserved(name) or name in weights or name.endswith(".safetensors"):
        raise InputError(f"{name!r} cannot be added to {folder}: choose a plain name that is not taken by the weights")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name in manifest.added or name in manifest.replaced:
        target.unlink(missing_ok=True)  # It may share its bytes with a hard link; a new file never does.
    elif target.exists():
        original = folder / BASE_FOLDER / name
        original.parent.mkdir(parents=True, exist_ok=True)
        target.rename(original)
        manifest = replace(manifest, replaced=(*manifest.replaced, name))
    else:
        manifest = replace(manifest, added=(*manifest.added, name))
    target.write_bytes(content)
    return manifest


def scale_vectors(
    vectors: Mapping[int, bytes], tensor: TensorInfo, multipliers: Mapping[int, float]
) -> dict[int, bytes]:
    """Columns after the edit; raises NumericalError that names tensor and index."""
    scaled = {}
    for index, raw in vectors.items():
        try:
            scaled[index] = scale_bytes(raw, tensor.dtype, multipliers[index]).raw
        except NumericalError as error:
            raise NumericalError(f"tensor {tensor.name}, neuron {index}: {error}") from None
    return scaled


@dataclass(frozen=True)
class EditedColumns:
    """The columns of one tensor that an edit changes, by index, before and after."""

    plan: TensorPlan
    before: Mapping[int, bytes]
    after: Mapping[int, bytes]

    def patches(self) -> list[Strided]:
        """What the edit writes."""
        return patches_of(self.plan.tensor, self.plan.axis, self.after)

    def saved(self) -> list[NewTensor]:
        """The originals that cannot be computed back."""
        plan = self.plan
        shape = (plan.tensor.shape[1 - plan.axis],)
        return [
            NewTensor(undo_key(plan.tensor.name, index), plan.tensor.dtype, shape, (raw,))
            for index, raw in self.before.items()
            if not inverts_exactly(raw, self.after[index], plan.tensor.dtype, plan.multipliers[index])
        ]

    def entry(self, before: str, after: str) -> TensorEdit:
        """What the manifest says, with the sha256 of the tensor's data before and after."""
        plan = self.plan
        return TensorEdit(
            name=plan.tensor.name,
            file=plan.file,
            axis=plan.axis,
            indices=tuple(plan.multipliers),
            multipliers=tuple(plan.multipliers.values()),
            before=before,
            after=after,
        )


def edited_columns(source: Weights, plans: Sequence[TensorPlan]) -> Iterator[EditedColumns]:
    """Read and scale the columns of each plan, while the caller works on the one before.

    Raises NumericalError when a column holds or would get NaN or infinity.
    """

    def read(plan: TensorPlan) -> EditedColumns:
        before = source.read_columns(plan)
        return EditedColumns(plan, before, scale_vectors(before, plan.tensor, plan.multipliers))

    with ThreadPoolExecutor(1) as worker:
        try:
            yield from worker.map(read, plans)
        finally:
            worker.shutdown(cancel_futures=True)


def tensor_range(tensor: TensorInfo) -> tuple[RangeHash, RangeHash]:
    """Hashes of a tensor's data before and after the patches of a stream."""
    return RangeHash(tensor.offset, tensor.size), RangeHash(tensor.offset, tensor.size, patched=True)


def undo_key(tensor: str, index: int) -> str:
    """Name under which the original of a column is kept in the undo file."""
    return f"{tensor}:{index}"


def is_reserved(name: str) -> bool:
    """Whether a file of an output is written by this package, for `verify` and `undo`."""
    return name in (MANIFEST_NAME, UNDO_NAME) or name.split("/")[0] == BASE_FOLDER
