"""The first layers of a model on the Hub, of whose files only their bytes are fetched where that is less by much.

What is fetched is a model folder in the cache folder, whose `model.safetensors` holds these tensors and no others. As
in `remote`, everything is of one commit, small files are checked against their hashes, and ranges cannot be.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from amnesia.architectures import Configured, configured
from amnesia.domain import ModelRef
from amnesia.errors import CheckpointError, LayoutError
from amnesia.files.cache import cache_folder
from amnesia.files.companions import is_copied
from amnesia.files.disk import MANIFEST_NAME, copy_file, read_small
from amnesia.files.listing import list_files
from amnesia.sources.conversion import made_once
from amnesia.sources.remote import HubFiles, RangesRefusedError, header_on_hub, list_hub_files
from amnesia.weights.configuration import read_config
from amnesia.weights.parts import part_names
from amnesia.weights.safetensors import (
    INDEX_FILE,
    MAX_INDEX,
    SINGLE_FILE,
    NewTensor,
    TensorInfo,
    location_of,
    new_file,
    read_header,
)

_MOST = 0.5
"""Share of bytes from which files are fetched whole, which other programs find in the client's cache; set by hand."""


def fetched_part(snapshot: Path, ref: ModelRef, n_layers: int) -> Path | None:
    """A folder with what the first `n_layers` layers of the repository `ref` need, made once.

    `snapshot` holds the small files of its commit, after which it is named. None where the files that hold something of
    these layers are on this disk, or are better fetched whole: where most of their bytes are needed, where the server
    sends no ranges, and where something is wrong with them, which is found when the whole is looked over. Raises
    SourceError.
    """
    with contextlib.suppress(CheckpointError, LayoutError, RangesRefusedError):
        wanted = configured(read_config(snapshot), n_layers)
        key = hashlib.sha256(f"{ref.name} {snapshot.name} {wanted.n_layers}".encode()).hexdigest()[:32]
        folder = cache_folder() / "parts" / key
        is_there = folder.exists()
        names = _held(snapshot, wanted)
        missing = {name for name in names if not (snapshot / name).exists()}
        if not missing:
            return None
        if is_there and _is_whole(folder, wanted):
            return folder
        hub = list_hub_files(ModelRef(ref.name, snapshot.name))
        if not names.keys() <= hub.files.keys():
            return None
        found = {file: _needed(hub, file, wanted, expected) for file, expected in names.items()}
        needed = sum(tensor.size for tensors in found.values() for tensor in tensors)
        if not all(found.values()) or needed > _MOST * sum(hub.files[name].size for name in missing):
            return None
        with made_once(folder, anew=is_there) as made:
            # Other programs may have put further weights there.
            for name in list_files(snapshot):
                if name != INDEX_FILE and (is_copied(snapshot, name) or name == MANIFEST_NAME):
                    copy_file(snapshot / name, made / name)
            with (made / SINGLE_FILE).open("xb") as file:
                tensors = itertools.chain.from_iterable(_read(hub, name, found[name]) for name in sorted(found))
                file.writelines(new_file(tensors))
        return folder
    return None


def _held(snapshot: Path, wanted: Configured) -> dict[str, frozenset[str] | None]:
    """The files that hold something of the wanted layers, with its names as the index says; None for a single file."""
    if not (snapshot / INDEX_FILE).exists():
        return {SINGLE_FILE: None}
    location = location_of(str(snapshot), read_small(snapshot / INDEX_FILE, MAX_INDEX))
    names = part_names(wanted, location)
    files = {location[name] for name in names}
    return {file: frozenset(name for name in names if location[name] == file) for file in files}


def _needed(hub: HubFiles, file: str, wanted: Configured, names: frozenset[str] | None) -> list[TensorInfo]:
    """The tensors of a file that are needed, in the order of their data; none where the index names others."""
    tensors = header_on_hub(hub, file).tensors
    names = part_names(wanted, tensors) if names is None else names
    if not names <= tensors.keys():
        return []
    return sorted((tensors[name] for name in names), key=lambda tensor: (tensor.offset, tensor.size))


def _is_whole(folder: Path, wanted: Configured) -> bool:
    """Whether the kept files are there in full; that their bytes are those of the Hub can no longer be told."""
    with contextlib.suppress(CheckpointError, LayoutError):
        read_config(folder)
        tensors = read_header(folder / SINGLE_FILE).tensors
        return part_names(wanted, tensors) == frozenset(tensors)
    return False


def _read(hub: HubFiles, file: str, tensors: Sequence[TensorInfo]) -> Iterator[NewTensor]:
    """Tensors of a file in the order of their data, where those that lie side by side come in one answer."""
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    begins = [place for place, tensor in enumerate(tensors) if place == 0 or tensor.offset != ends[place]]
    for first, following in itertools.pairwise([*begins, len(tensors)]):
        start, end = tensors[first].offset, ends[following]
        for tensor in tensors[first:following]:
            # The first one brings the bytes of all.
            blocks = hub.stream(file, start, end - start) if tensor is tensors[first] else ()
            yield NewTensor(tensor.name, tensor.dtype, tensor.shape, blocks)
