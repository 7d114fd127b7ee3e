"""A model on the Hub of which only the headers and the edited tensors are read, by HTTP range requests.

Nothing is stored. A column of a matrix lies in pieces of a few bytes, one in each row, and a server answers one range
at a time, so a whole tensor passes through the network; its columns are picked out on the way.

What is fetched is not hashed as a whole file, since that would need the whole file. The revision is resolved to a
commit first and everything is read from this commit, small files are checked against the hashes that the Hub gives for
them, and of weights the manifest holds the hash of the header, as it does for an adapter that is written from a folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from amnesia.architectures import MlpShape, configured, find_shape
from amnesia.domain import ModelRef
from amnesia.errors import CheckpointError, SourceError
from amnesia.files.disk import BLOCK, git_hash
from amnesia.files.staging import MANIFEST_NAME
from amnesia.guessing import guess
from amnesia.sources.hub_errors import DEFAULT_REMEDY, hub_errors, reason
from amnesia.sources.source import check_weights
from amnesia.weights.checkpoint import check_headers
from amnesia.weights.configuration import MAX_CONFIG, parse_config
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import MAX_MANIFEST, parse_manifest
from amnesia.weights.plan import TensorPlan
from amnesia.weights.safetensors import (
    INDEX_FILE,
    MAX_INDEX,
    SINGLE_FILE,
    SafetensorsHeader,
    TensorInfo,
    WeightFiles,
    check_matrix,
    columns_of,
    header_of,
    weight_files,
)

# A connection that breaks is taken up again where it broke, this often without a new byte.
_MAX_RETRIES = 3


class RangesRefusedError(SourceError):
    """A server sends whole files only."""


@dataclass(frozen=True)
class HubFile:
    """What the Hub says about a file: size in bytes, git's hash of its blob, and sha256 of a large one."""

    size: int
    blob_id: str
    sha256: str | None

    def holds(self, content: bytes) -> bool:
        """Whether these are the bytes of the file, by its hash."""
        if self.sha256 is None:
            return git_hash(content) == self.blob_id
        return hashlib.sha256(content).hexdigest() == self.sha256


@dataclass(frozen=True)
class HubFiles:
    """The files of the repository `ref`, whose revision is a commit.

    `remedy` is what errors advise when the Hub does not give them.
    """

    ref: ModelRef
    files: Mapping[str, HubFile]
    remedy: str = DEFAULT_REMEDY

    def __str__(self) -> str:
        return str(self.ref)

    def content(self, name: str, limit: int) -> bytes:
        """A small file, checked against its hash; raises SourceError when it is not what the Hub announced.

        Of a file with more than `limit` bytes one byte more than that is read, and nothing checked.
        """
        file = self.files[name]
        if file.size > limit:
            return self.read(name, 0, limit + 1)
        content = self.read(name, 0, file.size)
        if file.sha256 is None:
            found, expected = git_hash(content), file.blob_id
        else:
            found, expected = hashlib.sha256(content).hexdigest(), file.sha256
        if found != expected:
            raise SourceError(f"{name} of {self} arrived with hash {found}, the Hub announced {expected}: try again")
        return content

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a file; raises SourceError."""
        return b"".join(self.stream(name, offset, size))

    def stream(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        """`size` bytes at `offset` of a file, piece by piece; raises SourceError when the Hub does not give them."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        end, failures = offset + size, 0
        with hub_errors(str(self), self.remedy):
            while offset < end:
                why = "it ended early"
                try:
                    for piece in self._pieces(name, offset, end):
                        yield piece
                        offset += len(piece)
                        failures = 0
                except HfHubHTTPError:
                    raise  # An answer that says no; the client has already asked again where that can help.
                except HTTPError as error:
                    why = reason(error)
                if offset == end:
                    return
                failures += 1
                if failures > _MAX_RETRIES:
                    raise SourceError(f"the connection broke at byte {offset} of {name} of {self} ({why}): try again")
                time.sleep(failures)

    def _pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` from one request, as far as it gives them."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with http_stream_backoff(
            "GET",
            hf_hub_url(self.ref.name, name, revision=self.ref.revision),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=_MAX_RETRIES,
            # Breaks are dealt with above, where it is known how far the file was read.
            retry_on_exceptions=(),
        ) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise RangesRefusedError(
                    f"the server of {self} sends whole files only (status {response.status_code} for a range): "
                    "download the model and give its folder"
                )
            expected = f"bytes {start}-{end - 1}/{self.files[name].size}"
            if (found := response.headers.get("Content-Range")) != expected:
                raise SourceError(f"the server of {self} sent {found} of {name}, expected {expected}: try again")
            left = end - start
            for piece in response.iter_bytes(BLOCK):
                if len(piece) > left:
                    raise SourceError(f"the server of {self} sent more of {name} than {expected}: try again")
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A model on the Hub that has been looked over, as `plan.Weights` describes it."""

    files: HubFiles
    shape: MlpShape
    weights: WeightFiles
    manifest: Manifest | None

    @property
    def name(self) -> str:
        return str(self.files)

    @property
    def ref(self) -> ModelRef:
        """The repository and the commit that is read."""
        return self.files.ref

    def check_unchanged(self) -> None:
        """Nothing to check: a commit stays what it is."""

    def read_columns(self, plan: TensorPlan) -> dict[int, bytes]:
        """The columns that a plan edits: the whole tensor is fetched for columns, single rows for rows (GPT-2)."""
        tensor, indices = plan.tensor, tuple(plan.multipliers)
        check_matrix(tensor, plan.axis, indices)
        if plan.axis == 1:
            return columns_of(tensor, indices, self._row_blocks(plan.file, tensor))
        row_size = tensor.shape[1] * tensor.item_size
        return {index: self.files.read(plan.file, tensor.offset + index * row_size, row_size) for index in indices}

    def _row_blocks(self, file: str, tensor: TensorInfo) -> Iterator[tuple[int, bytes]]:
        """The tensor's rows in blocks of whole rows: (first row, bytes)."""
        row_size = tensor.shape[1] * tensor.item_size
        first, rest = 0, b""
        for piece in self.files.stream(file, tensor.offset, tensor.size):
            rest += piece
            count = len(rest) // row_size
            if count:
                yield first, rest[: count * row_size]
                first, rest = first + count, rest[count * row_size :]


def list_hub_files(ref: ModelRef, *, remedy: str = DEFAULT_REMEDY) -> HubFiles:
    """The files of a repository, at the commit that its revision means now; for `remedy` see HubFiles.

    Raises SourceError when the repository cannot be seen or has no such revision.
    """
    from huggingface_hub import HfApi, constants

    with hub_errors(str(ref), remedy):
        info = HfApi().model_info(
            ref.name, revision=ref.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    files = {
        row.rfilename: HubFile(row.size, row.blob_id, None if row.lfs is None else row.lfs.sha256)
        for row in info.siblings or ()
        if row.size is not None and row.blob_id is not None
    }
    if info.sha is None:
        raise SourceError(f"{ref} has no commits: give a repository with a model")
    return HubFiles(replace(ref, revision=info.sha), files, remedy)


def open_remote(ref: ModelRef) -> RemoteCheckpoint:
    """Read `config.json`, the index and the headers of all shards of a model on the Hub; no weights.

    Raises SourceError when the Hub does not give them, and what `checkpoint.open_source` raises.
    """
    hub = list_hub_files(ref)
    check_weights(list(hub.files), str(hub))
    if "config.json" not in hub.files:
        raise SourceError(f"{hub} has no config.json: give the repository of a Hugging Face model")
    config = parse_config(f"{hub}/config.json", hub.content("config.json", MAX_CONFIG))

    @cache
    def read() -> WeightFiles:
        index = hub.content(INDEX_FILE, MAX_INDEX) if INDEX_FILE in hub.files else None
        if index is None and SINGLE_FILE not in hub.files:
            raise CheckpointError(f"{hub} has neither {SINGLE_FILE} nor {INDEX_FILE}: give a repository that has them")
        return weight_files(str(hub), index, hub.files.__contains__, lambda name: header_on_hub(hub, name))

    guess(config, lambda: read().shapes, str(hub))
    expected = configured(config)  # Refuses what it must before a header is fetched.
    weights = read()
    check_headers(str(hub), expected, weights)
    shape = find_shape(config, weights.sizes, str(hub))
    earlier = hub.content(MANIFEST_NAME, MAX_MANIFEST) if MANIFEST_NAME in hub.files else None
    return RemoteCheckpoint(hub, shape, weights, None if earlier is None else parse_manifest(earlier))


def header_on_hub(hub: HubFiles, name: str) -> SafetensorsHeader:
    """The header of a file of weights; raises CheckpointError, and SourceError when the Hub does not give it."""
    return header_of(Path(name), hub.files[name].size, lambda offset, size: hub.read(name, offset, size))
