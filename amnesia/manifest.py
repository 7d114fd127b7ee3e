"""The manifest `amnesia.json`: what was edited, in which bytes of which files, and how to take it back.

It is written last, so its presence means that the output is complete. This module knows names, numbers and hashes; it
does not read weights.

What the hashes cover, and why it differs by format:

- `base.files[].sha256` has a `scope`. Where a whole file is copied (formats `safetensors` and `gguf`) it is `file`: the
  hash runs beside the copy, so it costs little time, and it lets `undo` prove that every byte came back. An adapter
  copies nothing, and hashing a shard of several gigabytes would take a hundred times as long as writing the adapter, so
  there, and for the same reason where a folder is edited in place, the scope is `header`: the file's safetensors header
  (names, types, shapes and offsets of all tensors).
- `untouched[].sha256` is taken while a file is copied. Files that are hard-linked, that share disk blocks with their
  source, or that lie in a folder that is edited in place are not read; of these only the size is known.
- `tensors[].before` and `.after` also have a scope. `tensor`: the tensor's complete data before and after the edit.
  `columns` (adapters): `before` covers the original columns, one after the other in the order of `indices`; `after`
  covers the data of the adapter's `lora_B`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from amnesia.domain import FORMATS, WIDER_TYPES, DirectionEdit, Edit, Format, columns_of, directions_of
from amnesia.edit_rows import edit_json, read_edit
from amnesia.edits import EntityEdits, names_of
from amnesia.errors import InputError, VerificationError
from amnesia.files import check_settled, read_small
from amnesia.own_outputs import MANIFEST_NAME
from amnesia.strict_json import StrictJson, shown

FORMAT_VERSION = 3
FileScope = Literal["file", "header"]
TensorScope = Literal["tensor", "columns"]

# Bounds that no real manifest reaches; beyond them a file is damaged or hostile.
MAX_MANIFEST = 64 * 2**20
_MAX_CHAIN = 64

_JSON = StrictJson(MANIFEST_NAME, VerificationError, "the output is damaged, make it again")


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
class Base:
    """The model that was edited: Hub id or path, revision, and the files that the edit touches."""

    id: str
    revision: str | None
    files: tuple[BaseFile, ...]

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True)
class TensorEdit:
    """One edited tensor: `multipliers[i]` was applied to index `indices[i]` along `axis`, then `directions` were added.

    `indices` are all that changed, ascending and unique; those that only a direction changes have multiplier 1. The
    name `x[3]` means matrix 3 of the tensor `x`, in which a file keeps all experts of a layer. `file` is relative to
    the model folder. `before` and `after` are sha256 of the tensor's data as `scope` says. `kept` is, where codes of a
    GGUF tensor were chosen, the share of the directions' change that they make at the entity's name; it is no promise.
    """

    name: str
    file: str
    axis: int
    indices: tuple[int, ...]
    multipliers: tuple[float, ...]
    before: str
    after: str
    scope: TensorScope = "tensor"
    directions: tuple[DirectionEdit, ...] = ()
    kept: float | None = field(default=None, compare=False)

    @property
    def scaled(self) -> dict[int, float]:
        """Multipliers of the scaled cells alone."""
        return {index: m for index, m in zip(self.indices, self.multipliers, strict=True) if m != 1.0}

    @property
    def rank(self) -> int:
        """How many matrices of rank one the edit adds: one for each scaled cell and each direction."""
        return len(self.scaled) + len(self.directions)


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
    added. `added` lists files of the output that the base
    does not have; `replaced` those whose original lies under `amnesia-base/`; `left_out` files of the base that were
    not copied. `scores` maps names of aggregates to means. `previous` is the manifest of the already edited model on
    which this edit was made. `tensor_type` is the type in which a GGUF stores the tensors that get a direction,
    if not in their own.
    """

    format: Format
    base: Base
    edits: tuple[EntityEdits, ...]
    tensors: tuple[TensorEdit, ...]
    untouched: tuple[UntouchedFile, ...] = ()
    undo: str | None = None
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    recipe: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    previous: Manifest | None = None
    tensor_type: str | None = None
    tool: str = field(default_factory=tool_version)
    libraries: Mapping[str, str] = field(default_factory=library_versions)

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
        directions = _directions(self.edits)
        return {
            "format_version": FORMAT_VERSION,
            "tool": self.tool,
            "libraries": dict(self.libraries),
            "format": self.format,
            "base": {
                "id": self.base.id,
                "revision": self.base.revision,
                "files": [
                    {"file": row.file, "size": row.size, "sha256": row.sha256, "scope": row.scope}
                    for row in self.base.files
                ],
            },
            "entity": self.entity,
            "edits": [{"entity": row.entity, **edit_json(edit)} for row in self.edits for edit in row.edits],
            "tensors": [
                {
                    "name": row.name,
                    "file": row.file,
                    "axis": row.axis,
                    "indices": list(row.indices),
                    "multipliers": [float(multiplier) for multiplier in row.multipliers],
                    "directions": [directions.index(edit) for edit in row.directions],
                    "sha256": {"before": row.before, "after": row.after, "scope": row.scope},
                    **({} if row.kept is None else {"kept": float(row.kept)}),
                }
                for row in self.tensors
            ],
            "untouched": [{"file": row.file, "size": row.size, "sha256": row.sha256} for row in self.untouched],
            "undo": self.undo,
            "added": list(self.added),
            "replaced": list(self.replaced),
            "left_out": list(self.left_out),
            "recipe": self.recipe,
            "scores": {name: None if score is None else float(score) for name, score in self.scores.items()},
            "previous": None if self.previous is None else self.previous.to_json(),
            "tensor_type": self.tensor_type,
        }

    def to_bytes(self) -> bytes:
        """The file's bytes: the same manifest always gives the same bytes, and nothing in them is a time.

        Raises VerificationError when a value could not be read back.
        """
        try:
            text = json.dumps(self.to_json(), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            content = text.encode("utf-8")
        except ValueError as error:
            raise VerificationError(f"the manifest cannot be written ({error}): every number must be finite") from error
        if Manifest.from_bytes(content) != self:
            raise VerificationError("the manifest cannot be read back: give each entity once, with at least one cell")
        return content

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Read plain JSON values; raises VerificationError naming the first field that is malformed."""
        return _manifest(value, _MAX_CHAIN)

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read the bytes of a manifest; raises VerificationError for anything that `to_bytes` would not write."""
        return cls.from_json(_JSON.parse(content))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `amnesia.json` into `folder`; do it last."""
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def read_manifest(folder: Path) -> Manifest:
    """Read `amnesia.json` of `folder`; raises VerificationError when it is missing or malformed."""
    check_settled(folder)
    path = folder / MANIFEST_NAME
    try:
        content = read_small(path, MAX_MANIFEST)
    except OSError as error:
        raise VerificationError(
            f"{path} cannot be read ({error.strerror}): {folder} is not a complete output of amnesia"
        ) from error
    if len(content) > MAX_MANIFEST:
        raise VerificationError(f"{path} has more than {MAX_MANIFEST} bytes: this is not a manifest")
    return Manifest.from_bytes(content)


def check_earlier(earlier: Manifest, groups: Sequence[EntityEdits]) -> None:
    """Raises InputError for a cell that an earlier edit of the same model has scaled; directions add up with any."""
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
                    f"{owners[edit.cell]!r}: undo that first, choose another cell, or allow the overlap"
                )


def _manifest(value: object, depth: int) -> Manifest:
    if depth == 0:
        raise _JSON.fail(f"has more than {_MAX_CHAIN} edits on top of each other")
    written = _JSON.mapping(value, "manifest").get("format_version")
    if written != FORMAT_VERSION or isinstance(written, bool):
        raise VerificationError(
            f"{MANIFEST_NAME} has format_version {shown(written)}, but this version of amnesia reads {FORMAT_VERSION}: "
            "use the version that wrote it"
        )
    row = _JSON.object(
        value,
        "manifest",
        "format_version tool libraries format base entity edits tensors untouched undo added replaced left_out recipe "
        "scores previous tensor_type",
    )
    base = _JSON.object(row["base"], "base", "id revision files")
    files = tuple(_base_file(item) for item in _JSON.list(base["files"], "base.files"))
    edits = _edits(_JSON.list(row["edits"], "edits"))
    manifest = Manifest(
        format=_JSON.choice(row["format"], "format", FORMATS),
        base=Base(_JSON.text(base["id"], "base.id"), _JSON.optional_text(base["revision"], "base.revision"), files),
        edits=edits,
        tensors=tuple(_tensor(item, _directions(edits)) for item in _JSON.list(row["tensors"], "tensors")),
        untouched=tuple(_untouched(item) for item in _JSON.list(row["untouched"], "untouched")),
        undo=None if row["undo"] is None else _JSON.file_name(row["undo"], "undo"),
        added=_JSON.file_names(row["added"], "added"),
        replaced=_JSON.file_names(row["replaced"], "replaced"),
        left_out=_JSON.file_names(row["left_out"], "left_out"),
        recipe=_JSON.optional_text(row["recipe"], "recipe"),
        scores={
            name: None if score is None else _JSON.number(score, f"scores.{name}")
            for name, score in _JSON.mapping(row["scores"], "scores").items()
        },
        previous=None if row["previous"] is None else _manifest(row["previous"], depth - 1),
        tensor_type=_JSON.choice(row["tensor_type"], "tensor_type", (None, *WIDER_TYPES)),
        tool=_JSON.text(row["tool"], "tool"),
        libraries={
            name: _JSON.text(text, f"libraries.{name}")
            for name, text in _JSON.mapping(row["libraries"], "libraries").items()
        },
    )
    if not manifest.edits or not manifest.tensors or not files:
        raise _JSON.fail("has an empty list of edits, tensors or base.files")
    if row["entity"] != manifest.entity:
        raise _JSON.fail(f"names the entity {shown(row['entity'])}, but its edits are for {shown(manifest.entity)}")
    known = {item.file for item in files}
    for tensor in manifest.tensors:
        if tensor.file not in known:
            raise _JSON.fail(f"places tensor {shown(tensor.name)} in {shown(tensor.file)}, which base.files lacks")
    names = [item.file for item in (*files, *manifest.untouched)]
    if len({*names}) != len(names) or len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise _JSON.fail("lists a file or a tensor twice")
    return manifest


def _directions(groups: Sequence[EntityEdits]) -> list[DirectionEdit]:
    """All directions of an edit; a tensor names its own by their places here."""
    return [edit for group in groups for edit in directions_of(group.edits)]


def _edits(rows: Sequence[Any]) -> tuple[EntityEdits, ...]:
    groups: dict[str, list[Edit]] = {}
    for item in rows:
        row = dict(_JSON.mapping(item, "edits"))
        group = groups.setdefault(_JSON.text(row.pop("entity", None), "edits.entity"), [])
        group.append(read_edit(_JSON, row))
    return tuple(EntityEdits(entity, tuple(edits)) for entity, edits in groups.items())


def _base_file(value: object) -> BaseFile:
    row = _JSON.object(value, "base.files", "file size sha256 scope")
    return BaseFile(
        _JSON.file_name(row["file"], "base.files.file"),
        _JSON.integer(row["size"], "base.files.size"),
        _JSON.sha256(row["sha256"], "base.files.sha256"),
        _JSON.choice(row["scope"], "base.files.scope", get_args(FileScope)),
    )


def _untouched(value: object) -> UntouchedFile:
    row = _JSON.object(value, "untouched", "file size sha256")
    return UntouchedFile(
        _JSON.file_name(row["file"], "untouched.file"),
        _JSON.integer(row["size"], "untouched.size"),
        None if row["sha256"] is None else _JSON.sha256(row["sha256"], "untouched.sha256"),
    )


def _tensor(value: object, directions: Sequence[DirectionEdit]) -> TensorEdit:
    row = _JSON.object(value, "tensors", "name file axis indices multipliers directions sha256", optional="kept")
    hashes = _JSON.object(row["sha256"], "tensors.sha256", "before after scope")
    indices = tuple(_JSON.integer(item, "tensors.indices") for item in _JSON.list(row["indices"], "tensors.indices"))
    multipliers = tuple(
        _JSON.number(item, "tensors.multipliers") for item in _JSON.list(row["multipliers"], "multipliers")
    )
    if not indices or len(indices) != len(multipliers) or list(indices) != sorted(set(indices)):
        raise _JSON.fail(
            f"gives tensor {shown(row['name'])} {len(indices)} indices and {len(multipliers)} multipliers, expected as "
            "many of each and ascending indices"
        )
    places = [_JSON.integer(item, "tensors.directions") for item in _JSON.list(row["directions"], "tensors.directions")]
    if any(place >= len(directions) for place in places):
        raise _JSON.fail(f"gives tensor {shown(row['name'])} direction {max(places)} of {len(directions)}")
    return TensorEdit(
        name=_JSON.text(row["name"], "tensors.name"),
        file=_JSON.file_name(row["file"], "tensors.file"),
        axis=_JSON.choice(_JSON.integer(row["axis"], "tensors.axis"), "tensors.axis", (0, 1)),
        indices=indices,
        multipliers=multipliers,
        before=_JSON.sha256(hashes["before"], "tensors.sha256.before"),
        after=_JSON.sha256(hashes["after"], "tensors.sha256.after"),
        scope=_JSON.choice(hashes["scope"], "tensors.sha256.scope", get_args(TensorScope)),
        directions=tuple(directions[place] for place in places),
        kept=_JSON.number(row["kept"], "tensors.kept") if "kept" in row else None,
    )
