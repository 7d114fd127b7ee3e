"""The manifest `amnesia.json`: what was edited, in which bytes of which files, and how to take it back.

It is written last, so its presence means that the output is complete. This module knows names, numbers and hashes; it
reads no files, neither weights nor, which `manifest_file` does, the manifest itself.

What the hashes cover, and why it differs by format:

- `base.files[].sha256` has a `scope`. Where a whole file is copied (formats `safetensors` and `gguf`) it is `file`: the
  hash runs beside the copy, so it costs little time, and it lets `undo` prove that every byte came back. An adapter
  copies nothing, and hashing a shard of several gigabytes would take a hundred times as long as writing the adapter, so
  there, and for the same reason where a folder is edited in place, the scope is `header`: all that stands in the file
  before the numbers (names, types, shapes and offsets of all tensors), or of a GGUF its first `GGUF_START` bytes.
- `untouched[].sha256` is taken while a file is copied. Files that are hard-linked, that share disk blocks with their
  source, or that lie in a folder that is edited in place are not read; of these only the size is known.
- `tensors[].before` and `.after` also have a scope. `tensor`: the tensor's complete data before and after the edit.
  `columns` (adapters): `before` covers the original columns, one after the other in the order of `indices`; `after`
  covers the data of the adapter's `lora_B`. `factor` (LoRA files of llama.cpp): `before` covers the tensor's complete
  data, `after` that of `lora_b`.
- `written[].sha256` covers a file that is added, replaces another, is kept in `amnesia-base/`, or holds tensors of a
  wider type than before, if it has no more than `staging.MAX_HASHED` bytes. Older manifests have no such rows. The card
  of a published model, on which people go on writing, is among them, so that nothing removes what they wrote; `verify`
  takes it as it is.
- `edits_sha256` covers `edits`. An adapter's `lora_B` holds the product of a cell's multiplier and column, from which
  nobody tells the multiplier without the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from amnesia.domain import ADAPTERS, Format, ModelRef
from amnesia.edits import EntityEdits, MatrixEdit, Place, columns_of, names_of
from amnesia.errors import InputError
from amnesia.files.companions import BASE_FOLDER, UNDO_NAME, is_written
from amnesia.files.disk import MANIFEST_NAME
from amnesia.files.manifest_form import rows_hash
from amnesia.weights.edit_rows import edit_json

FORMAT_VERSION = 6
MAX_CHAIN = 64
"""Edits on top of each other; beyond that a file is damaged or hostile."""
GGUF_START = 2**16
"""Bytes of a GGUF that are told from another file's where its weights are not read."""

FileScope = Literal["file", "header"]
TensorScope = Literal["tensor", "columns", "factor"]


@dataclass(frozen=True)
class BaseFile:
    """A source file that holds an edited tensor: name relative to the model folder, size in bytes, and hash."""

    file: str
    size: int
    sha256: str
    scope: FileScope = "file"


@dataclass(frozen=True)
class UntouchedFile:
    """A file of the model that the edit leaves as it is, with its size in bytes.

    `sha256` is known where all of its bytes were copied, and None where the disk shares them with the source.
    """

    file: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class WrittenFile:
    """A file that lies beside the model because of the edit, with its size in bytes.

    `sha256` is that of its content, or None where it is too long to be hashed whenever somebody looks.
    """

    file: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Base:
    """The model that was edited, as its user called it, and the files that the edit touches."""

    ref: ModelRef
    files: tuple[BaseFile, ...]

    def __str__(self) -> str:
        return str(self.ref)


@dataclass(frozen=True)
class TensorEdit(MatrixEdit):
    """One edited tensor, whose indices lie along `axis`.

    The name `x[3]` means matrix 3 of the tensor `x`, in which a file keeps all experts of a layer. `file` is relative
    to the model folder. All that follows from the edits of the manifest and the tensor's `place` in them, and the file
    does not say it again. `before` and `after` are sha256 of the tensor's data as `scope` says. `share` is, where codes
    of a GGUF tensor were chosen, how much of the directions' change they make at the entity's name; it is no promise.
    """

    name: str
    file: str
    axis: int
    place: Place
    before: str
    after: str
    scope: TensorScope = "tensor"
    share: float | None = field(default=None, compare=False)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that take part in writing bytes."""
    return {name: version_of(name) for name in ("ml_dtypes", "numpy")}


def tool_version() -> str:
    """Name and version of this package."""
    return f"amnesia {version_of('amnesia')}"


def version_of(distribution: str) -> str:
    """The installed version of a distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "from a source tree"


@dataclass(frozen=True)
class Manifest:
    """Everything that `verify` and `undo` need.

    `untouched` lists the files of the model without an edited tensor; an adapter has none. `undo` names the file with
    original values of columns that cannot be computed back: the multiplier does not invert exactly, or a direction was
    added. `added` lists files of the output that the base does not have; `replaced` those whose original lies under
    `amnesia-base/`; `written` says what is known of both, and of these originals; `left_out` lists files of the base
    that were not copied. `scores` maps names of aggregates to means. `previous` is the manifest of the edited model on
    which this edit was made. `tensor_type` is the type in which a GGUF stores each edited `ffn_down`, if not in
    its own. `in_place` says that the folder is the model that was edited, not a copy of it.
    """

    format: Format
    base: Base
    edits: tuple[EntityEdits, ...]
    tensors: tuple[TensorEdit, ...]
    untouched: tuple[UntouchedFile, ...] = ()
    undo: str | None = None
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    written: tuple[WrittenFile, ...] = field(default=(), compare=False)
    left_out: tuple[str, ...] = ()
    recipe: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    previous: Manifest | None = None
    tensor_type: str | None = None
    in_place: bool = False
    tool: str = field(default_factory=tool_version)
    libraries: Mapping[str, str] = field(default_factory=library_versions)

    @property
    def names_written(self) -> tuple[str, ...]:
        """Names that `written` may have: of all files but the manifest itself, which cannot tell its own hash.

        Weights are among them only where they have another size than those of the base.
        """
        replaced = (name for name in self.replaced if name != MANIFEST_NAME)
        resized = () if self.tensor_type is None else (row.file for row in self.base.files)
        return (*self.added, *replaced, *(f"{BASE_FOLDER}/{name}" for name in self.replaced), *resized)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the files of weights that the output holds, sorted; of an adapter its own, not those of its base."""
        rows = (*self.base.files, *self.untouched)
        names = {*self.added} - {UNDO_NAME} if self.format in ADAPTERS else {row.file for row in rows}
        return tuple(sorted(name for name in names if name.lower().endswith((".safetensors", ".gguf"))))

    @property
    def entity(self) -> str:
        """Names of the entities that this edit makes the model forget."""
        return names_of(self.edits)

    def history(self) -> Iterator[Manifest]:
        """This manifest and the earlier ones, newest first."""
        manifest: Manifest | None = self
        while manifest is not None:
            yield manifest
            manifest = manifest.previous

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, with the names that the file uses."""
        return {
            "format_version": FORMAT_VERSION,
            "tool": self.tool,
            "libraries": dict(self.libraries),
            "format": self.format,
            "base": {
                **self.base.ref.to_json(),
                "files": [
                    {"file": row.file, "size": row.size, "sha256": row.sha256, "scope": row.scope}
                    for row in self.base.files
                ],
            },
            "edits": _rows_of(self.edits),
            "edits_sha256": edits_hash(self.edits),
            "tensors": [
                {
                    "name": row.name,
                    "file": row.file,
                    "axis": row.axis,
                    "layer": row.place.layer,
                    **({} if row.place.expert is None else {"expert": row.place.expert}),
                    **({} if row.place.part == "all" else {"part": row.place.part}),
                    **({} if row.place.first == 0 else {"first": row.place.first}),
                    "sha256": {"before": row.before, "after": row.after, "scope": row.scope},
                    **({} if row.share is None else {"share": float(row.share)}),
                }
                for row in self.tensors
            ],
            "untouched": [{"file": row.file, "size": row.size, "sha256": row.sha256} for row in self.untouched],
            "undo": self.undo,
            "added": list(self.added),
            "replaced": list(self.replaced),
            **(
                {"written": [{"file": row.file, "size": row.size, "sha256": row.sha256} for row in self.written]}
                if self.written
                else {}
            ),
            "left_out": list(self.left_out),
            "recipe": self.recipe,
            "scores": {name: None if score is None else float(score) for name, score in self.scores.items()},
            "previous": None if self.previous is None else self.previous.to_json(),
            "tensor_type": self.tensor_type,
            "in_place": self.in_place,
        }


def forgotten(manifest: Manifest | None) -> tuple[str, ...]:
    """Names of the entities of this edit and of all before it, newest first, each once; none without a manifest.

    What the model says of them tells nothing of what must stay.
    """
    steps = () if manifest is None else manifest.history()
    return tuple(dict.fromkeys(group.entity for step in steps for group in step.edits))


def same_edits(one: Manifest | None, other: Manifest | None) -> bool:
    """Whether two histories are the same edits of the same weights, whatever names they give to anything."""
    first, second = ([step.tensors for step in found.history()] if found else [] for found in (one, other))
    return first == second


def declared_files(manifest: Manifest | None) -> frozenset[str]:
    """Names that files beside the weights may have by the manifest of an edit, whose own name is one of them."""
    if manifest is None:
        return frozenset()
    undo = () if manifest.undo is None else (manifest.undo,)
    kept = (f"{BASE_FOLDER}/{name}" for name in manifest.replaced)
    of_earlier = (row.file for row in manifest.untouched if is_written(row.file))
    return frozenset((MANIFEST_NAME, *undo, *manifest.added, *manifest.replaced, *kept, *of_earlier))


def _rows_of(groups: Sequence[EntityEdits]) -> list[dict[str, Any]]:
    return [{"entity": row.entity, **edit_json(edit)} for row in groups for edit in row.edits]


def edits_hash(groups: Sequence[EntityEdits]) -> str:
    """sha256 of all edits as the rows of the manifest, in compact JSON with sorted keys."""
    return rows_hash(_rows_of(groups))


def check_earlier(
    earlier: Manifest, groups: Sequence[EntityEdits], name: Format, *, allow_overlap: bool = False
) -> None:
    """Raises InputError when `earlier`, which lies beside weights of format `name`, is of another, or the last of
    `MAX_CHAIN` edits, and, unless `allow_overlap`, for a cell that an earlier edit of the same model has scaled;
    directions add up with any."""
    if earlier.format != name:
        raise InputError(
            f"the amnesia.json beside the model is of format {earlier.format}, not of these weights: move them to a "
            "folder of their own"
        )
    if len([*earlier.history()]) >= MAX_CHAIN:
        raise InputError(
            f"the model has {MAX_CHAIN} edits on top of each other already, the most that there may be: give them all "
            "to the original model at once"
        )
    if allow_overlap:
        return
    owners = {
        edit.cell: group.entity
        for step in earlier.history()
        for group in step.edits
        for edit in columns_of(group.edits)
    }
    for group in groups:
        for edit in columns_of(group.edits):
            if edit.cell in owners:
                raise InputError(
                    f"cell {edit.cell} is edited for {group.entity!r}, but this model already has it edited for "
                    f"{owners[edit.cell]!r}: undo that first, choose another cell, or write the edit with "
                    "`amnesia edit --allow-overlap`"
                )
