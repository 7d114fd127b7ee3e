"""The first layers of a model on the Hub whose weights are one file, of which only their bytes are fetched.

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
from amnesia.files.disk import MANIFEST_NAME, copy_file
from amnesia.files.listing import list_files
from amnesia.sources.conversion import made_once
from amnesia.sources.remote import HubFiles, RangesRefusedError, header_on_hub, list_hub_files
from amnesia.weights.configuration import read_config
from amnesia.weights.parts import part_names
from amnesia.weights.safetensors import INDEX_FILE, SINGLE_FILE, NewTensor, TensorInfo, new_file, read_header

_MOST = 0.5
"""Share of a file from which the whole is fetched, which other programs find in the client's cache; set by hand."""


def fetched_part(snapshot: Path, ref: ModelRef, n_layers: int) -> Path | None:
    """A folder with what the first `n_layers` layers of the repository `ref` need, made once.

    `snapshot` holds the small files of its commit, after which it is named. None where the weights are in several
    files, are on this disk as a whole, or are better fetched so: where most of them are needed, where the server sends
    no ranges, and where something is wrong with them, which is found when the whole is looked over. Raises SourceError.
    """
    if (snapshot / INDEX_FILE).exists() or (snapshot / SINGLE_FILE).exists():
        return None
    with contextlib.suppress(CheckpointError, LayoutError, RangesRefusedError):
        wanted = configured(read_config(snapshot), n_layers)
        key = hashlib.sha256(f"{ref.name} {snapshot.name} {wanted.n_layers}".encode()).hexdigest()[:32]
        folder = cache_folder() / "parts" / key
        is_there = folder.exists()
        if is_there and _is_whole(folder, wanted):
            return folder
        hub = list_hub_files(ModelRef(ref.name, snapshot.name))
        if SINGLE_FILE not in hub.files:
            return None
        header = header_on_hub(hub, SINGLE_FILE)
        names = part_names(wanted, header.tensors)
        tensors = sorted((header.tensors[name] for name in names), key=lambda tensor: (tensor.offset, tensor.size))
        if not tensors or sum(tensor.size for tensor in tensors) > _MOST * header.file_size:
            return None
        with made_once(folder, anew=is_there) as made:
            # Other programs may have put further weights there.
            for name in list_files(snapshot):
                if is_copied(snapshot, name) or name == MANIFEST_NAME:
                    copy_file(snapshot / name, made / name)
            with (made / SINGLE_FILE).open("xb") as file:
                file.writelines(new_file(_read(hub, tensors)))
        return folder
    return None


def _is_whole(folder: Path, wanted: Configured) -> bool:
    """Whether the kept files are there in full; that their bytes are those of the Hub can no longer be told."""
    with contextlib.suppress(CheckpointError, LayoutError):
        read_config(folder)
        tensors = read_header(folder / SINGLE_FILE).tensors
        return part_names(wanted, tensors) == frozenset(tensors)
    return False


def _read(hub: HubFiles, tensors: Sequence[TensorInfo]) -> Iterator[NewTensor]:
    """Tensors in the order of their data, where those that lie side by side come in one answer."""
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    begins = [place for place, tensor in enumerate(tensors) if place == 0 or tensor.offset != ends[place]]
    for first, following in itertools.pairwise([*begins, len(tensors)]):
        start, end = tensors[first].offset, ends[following]
        for tensor in tensors[first:following]:
            # The first one brings the bytes of all.
            blocks = hub.stream(SINGLE_FILE, start, end - start) if tensor is tensors[first] else ()
            yield NewTensor(tensor.name, tensor.dtype, tensor.shape, blocks)
