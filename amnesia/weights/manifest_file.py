"""The file `amnesia.json`: manifests as bytes, and back, with every field checked before it is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from amnesia.domain import ADAPTERS, FORMATS, WIDER_TYPES, ModelRef
from amnesia.edits import Edit, EntityEdits, Part, Place, Projections, by_projection, edit_at
from amnesia.errors import InputError, VerificationError, os_errors_as
from amnesia.files.companions import ADAPTER_NAMES, LORA_NAME, UNDO_NAME, is_written
from amnesia.files.disk import check_settled, hash_file, read_small
from amnesia.files.manifest_form import (
    BASE_FILE_KEYS,
    BASE_KEYS,
    FILE_KEYS,
    HASH_KEYS,
    MANIFEST_KEYS,
    TENSOR_KEYS,
    manifest_text,
)
from amnesia.files.staging import MANIFEST_NAME, MAX_HASHED
from amnesia.files.strict_json import StrictJson, shown, utf8_bytes
from amnesia.weights.edit_rows import read_edit
from amnesia.weights.manifest import (
    FORMAT_VERSION,
    MAX_CHAIN,
    Base,
    BaseFile,
    FileScope,
    Manifest,
    TensorEdit,
    TensorScope,
    UntouchedFile,
    WrittenFile,
    edits_hash,
)

# A bound that no real manifest reaches; beyond it a file is damaged or hostile.
MAX_MANIFEST = 64 * 2**20

_JSON = StrictJson(MANIFEST_NAME, VerificationError, "the output is damaged, make it again")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's bytes: the same manifest always gives the same bytes, and nothing in them is a time.

    Raises VerificationError when a value could not be read back, InputError for a name that is not UTF-8.
    """
    try:
        text = manifest_text(manifest.to_json())
    except ValueError as error:
        raise VerificationError(f"the manifest cannot be written ({error}): every number must be finite") from error
    content = utf8_bytes(text)
    if parse_manifest(content) != manifest:
        raise VerificationError("the manifest cannot be read back: give each entity once, with at least one cell")
    return content


def parse_manifest(content: bytes) -> Manifest:
    """Read the bytes of a manifest; raises VerificationError for anything that `manifest_bytes` would not write."""
    return _manifest(_JSON.parse(content), MAX_CHAIN)


def write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write `amnesia.json` into `folder`, which says what the files beside the model are now; do it last.

    Returns the manifest as it was written.
    """
    names = dict.fromkeys(name for name in manifest.names_written if (folder / name).is_file())
    manifest = replace(manifest, written=tuple(written_file(name, folder / name) for name in names))
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return manifest


def written_file(name: str, content: Path | bytes) -> WrittenFile:
    """What a manifest says of the file `name` with this content."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size > MAX_HASHED:
        return WrittenFile(name, size)
    sha256 = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else hash_file(content)
    return WrittenFile(name, size, sha256)


def read_manifest(folder: Path) -> Manifest:
    """Read `amnesia.json` of `folder`; raises VerificationError when it is missing or malformed."""
    check_settled(folder)
    path = folder / MANIFEST_NAME
    with os_errors_as(
        VerificationError, f"{path} cannot be read", f"{folder} is not a complete output of amnesia, give one"
    ):
        return parse_manifest(read_small(path, MAX_MANIFEST))


def _manifest(value: object, depth: int) -> Manifest:
    if depth == 0:
        raise _JSON.fail(f"has more than {MAX_CHAIN} edits on top of each other")
    written = _JSON.mapping(value, "manifest").get("format_version")
    if written != FORMAT_VERSION or isinstance(written, bool):
        raise VerificationError(
            f"{MANIFEST_NAME} has format_version {shown(written)}, but this version of amnesia reads {FORMAT_VERSION}: "
            "make the output again with this version"
        )
    row = _object(value, "manifest", MANIFEST_KEYS)
    base = _object(row["base"], "base", BASE_KEYS)
    files = tuple(_base_file(item) for item in _JSON.list(base["files"], "base.files"))
    edits = _edits(_JSON.list(row["edits"], "edits"))
    try:
        joined = by_projection(edits, allow_overlap=True)
    except InputError as error:
        raise _JSON.fail(f"has edits that contradict each other ({error})") from None
    manifest = Manifest(
        format=_JSON.choice(row["format"], "format", FORMATS),
        base=Base(
            ModelRef(_JSON.text(base["id"], "base.id"), _JSON.optional_text(base["revision"], "base.revision")), files
        ),
        edits=edits,
        tensors=_tensors(_JSON.list(row["tensors"], "tensors"), joined),
        untouched=tuple(_untouched(item) for item in _JSON.list(row["untouched"], "untouched")),
        undo=_JSON.choice(row["undo"], "undo", (None, UNDO_NAME)),
        added=_written(row["added"], "added", (*ADAPTER_NAMES, LORA_NAME) if row["format"] in ADAPTERS else ()),
        replaced=_written(row["replaced"], "replaced"),
        written=tuple(WrittenFile(*_known(item, "written")) for item in _JSON.list(row.get("written", []), "written")),
        left_out=_JSON.file_names(row["left_out"], "left_out"),
        recipe=_JSON.optional_text(row["recipe"], "recipe"),
        scores={
            name: None if score is None else _JSON.number(score, f"scores.{name}")
            for name, score in _JSON.mapping(row["scores"], "scores").items()
        },
        previous=None if row["previous"] is None else _manifest(row["previous"], depth - 1),
        tensor_type=_JSON.choice(row["tensor_type"], "tensor_type", (None, *WIDER_TYPES)),
        in_place=_JSON.choice(row["in_place"], "in_place", (False, True)) is True,
        tool=_JSON.text(row["tool"], "tool"),
        libraries={
            name: _JSON.text(text, f"libraries.{name}")
            for name, text in _JSON.mapping(row["libraries"], "libraries").items()
        },
    )
    if edits_hash(edits) != _JSON.sha256(row["edits_sha256"], "edits_sha256"):
        raise _JSON.fail("has other edits than its edits_sha256 says")
    _check(manifest)
    return manifest


def _object(value: object, key: str, keys: str) -> Mapping[str, Any]:
    needed, _, optional = keys.partition(" | ")
    return _JSON.object(value, key, needed, optional=optional)


def _check(manifest: Manifest) -> None:
    """Raises VerificationError when parts of a manifest contradict each other."""
    files = {item.file for item in manifest.base.files}
    if not manifest.edits or not manifest.tensors or not files:
        raise _JSON.fail("has an empty list of edits, tensors or base.files")
    for tensor in manifest.tensors:
        if tensor.file not in files:
            raise _JSON.fail(f"places tensor {shown(tensor.name)} in {shown(tensor.file)}, which base.files lacks")
    names = [item.file for item in (*manifest.base.files, *manifest.untouched)]
    if len({*names}) != len(names) or len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise _JSON.fail("lists a file or a tensor twice")
    if files & {*manifest.added, *manifest.replaced} or {*names} & {*manifest.left_out}:
        raise _JSON.fail("says of one file that it was edited and added or replaced, or that it was left out and not")
    written = [row.file for row in manifest.written]
    if len({*written}) != len(written) or {*written} - {*manifest.names_written}:
        raise _JSON.fail("lists in written a file twice, or one that it neither added nor replaced")
    if manifest.undo is not None and manifest.undo not in manifest.added:
        raise _JSON.fail(f"names {shown(manifest.undo)} for undoing, which added lacks")
    earlier = manifest.previous
    if earlier is not None and earlier.format != ("safetensors" if manifest.format == "adapter" else manifest.format):
        raise _JSON.fail(f"has format {manifest.format}, and an earlier edit of format {earlier.format}")


def _written(value: object, key: str, also: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of files that this package writes: `undo` removes what was added, and no output may bring other files."""
    names = _JSON.file_names(value, key)
    for name in names:
        if not is_written(name) and name not in also:
            raise _JSON.fail(f"has {shown(name)} in {key}, which no edit writes")
    return names


def _edits(rows: Sequence[Any]) -> tuple[EntityEdits, ...]:
    groups: dict[str, list[Edit]] = {}
    for item in rows:
        row = dict(_JSON.mapping(item, "edits"))
        group = groups.setdefault(_JSON.text(row.pop("entity", None), "edits.entity"), [])
        group.append(read_edit(_JSON, row))
    return tuple(EntityEdits(entity, tuple(edits)) for entity, edits in groups.items())


def _base_file(value: object) -> BaseFile:
    row = _object(value, "base.files", BASE_FILE_KEYS)
    return BaseFile(
        _JSON.file_name(row["file"], "base.files.file"),
        _JSON.integer(row["size"], "base.files.size"),
        _JSON.sha256(row["sha256"], "base.files.sha256"),
        _JSON.choice(row["scope"], "base.files.scope", get_args(FileScope)),
    )


def _untouched(value: object) -> UntouchedFile:
    return UntouchedFile(*_known(value, "untouched"))


def _known(value: object, key: str) -> tuple[str, int, str | None]:
    """Name, size and, if that is known, sha256 of a file."""
    row = _object(value, key, FILE_KEYS)
    return (
        _JSON.file_name(row["file"], f"{key}.file"),
        _JSON.integer(row["size"], f"{key}.size"),
        None if row["sha256"] is None else _JSON.sha256(row["sha256"], f"{key}.sha256"),
    )


def _tensors(rows: Sequence[object], joined: Projections) -> tuple[TensorEdit, ...]:
    """The edited tensors; two of the same part of a layer would be one, and many take time without bounds."""
    found, parts = [], set()
    for row in rows:
        place = _place(row)
        part = (place.layer, place.expert, place.part)
        if part in parts:
            raise _JSON.fail(
                f"lists tensors that do not follow from its edits, two of layer {place.layer} for the same part of them"
            )
        parts.add(part)
        found.append(_tensor(row, place, joined))
    return tuple(found)


def _place(value: object) -> Place:
    row = _object(value, "tensors", TENSOR_KEYS)
    return Place(
        _JSON.integer(row["layer"], "tensors.layer"),
        _JSON.integer(row["expert"], "tensors.expert") if "expert" in row else None,
        _JSON.choice(row.get("part", "all"), "tensors.part", get_args(Part)),
        _JSON.integer(row.get("first", 0), "tensors.first"),
    )


def _tensor(value: object, place: Place, joined: Projections) -> TensorEdit:
    row = _JSON.mapping(value, "tensors")
    hashes = _object(row["sha256"], "tensors.sha256", HASH_KEYS)
    change = edit_at(place, joined)
    if not change.indices:
        raise _JSON.fail(f"lists tensor {shown(row['name'])} of layer {place.layer}, in which its edits change nothing")
    return TensorEdit(
        name=_JSON.text(row["name"], "tensors.name"),
        file=_JSON.file_name(row["file"], "tensors.file"),
        axis=_JSON.choice(_JSON.integer(row["axis"], "tensors.axis"), "tensors.axis", (0, 1)),
        place=place,
        before=_JSON.sha256(hashes["before"], "tensors.sha256.before"),
        after=_JSON.sha256(hashes["after"], "tensors.sha256.after"),
        scope=_JSON.choice(hashes["scope"], "tensors.sha256.scope", get_args(TensorScope)),
        share=_JSON.number(row["share"], "tensors.share") if "share" in row else None,
        **vars(change),
    )
