"""Proof that two checkpoints are one model beside the tensors of an edit.

Every byte of the other tensors is compared, whatever file they are in, and of the files that are read along with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from amnesia.errors import VerificationError, os_errors_as
from amnesia.files.companions import REPOSITORY_FILE, is_companion, is_written
from amnesia.files.disk import BLOCK, read_exactly, read_small
from amnesia.progress import Progress, Watch, unwatched
from amnesia.weights.checkpoint import CheckpointSource
from amnesia.weights.safetensors import TensorInfo, WeightFiles, split_name


def check_rest(
    base: CheckpointSource, edited: CheckpointSource, changed: Collection[str], watch: Watch = unwatched
) -> None:
    """Raise VerificationError naming the first tensor or file, beside the tensors `changed`, that the two do not share.

    Of a changed tensor, which is proven elsewhere, type and shape must be the same. `watch` gets the bytes that will be
    read of `edited`; what both have in one file on the disk is not read.
    """
    one, two = base.weights, edited.weights
    if different := sorted(one.location.keys() ^ two.location.keys()):
        raise _other(base, edited, f"only one of them has the tensor {different[0]}")
    for name in sorted(_read_along(base) | _read_along(edited)):
        with os_errors_as(VerificationError, f"{name} cannot be read", "check the permissions of both folders"):
            alike = _content(base, name) == _content(edited, name)
        if not alike:
            raise _other(base, edited, f"they differ in {name}")
    size = sum(header.file_size for header in two.headers.values())
    with watch(size) as progress:
        for name in sorted(one.location):
            first, second = _tensor(one, name), _tensor(two, name)
            alike = (first.dtype, first.shape) == (second.dtype, second.shape)
            if not alike or not all(
                _same(base.folder / one.location[name], own, edited.folder / two.location[name], other, progress)
                for own, other in zip(_unchanged(first, changed), _unchanged(second, changed), strict=True)
            ):
                raise _other(base, edited, f"they differ in the tensor {name}, which no edit changed")


def _other(base: CheckpointSource, edited: CheckpointSource, how: str) -> VerificationError:
    return VerificationError(
        f"{edited.folder} is not {base.folder} with the edits of its manifest, as {how}: give the model that was "
        f"edited, or make {edited.folder} again"
    )


def _read_along(source: CheckpointSource) -> set[str]:
    """Names of the files that say, with the weights, what a model answers; papers, which an edit may write, do not."""
    return {name for name in source.files if is_companion(name) and not is_written(name) and name != REPOSITORY_FILE}


def _content(source: CheckpointSource, name: str) -> bytes | None:
    """The bytes of a file that is copied along with the weights, which has a bounded size; None where there is none."""
    path = source.folder / name
    return read_small(path, path.stat().st_size) if name in source.files else None


def _tensor(weights: WeightFiles, name: str) -> TensorInfo:
    return weights.headers[weights.location[name]].tensors[name]


def _unchanged(tensor: TensorInfo, changed: Collection[str]) -> Iterator[TensorInfo]:
    """What of a tensor no edit changed: all, nothing, or some of the matrices of one that holds many experts."""
    if tensor.name in changed:
        return
    places = {place for stem, place in map(split_name, changed) if stem == tensor.name and place is not None}
    if not places:
        yield tensor
        return
    size = tensor.size // tensor.shape[0]
    for place in range(tensor.shape[0]):
        if place not in places:
            name = f"{tensor.name}[{place}]"
            yield TensorInfo(name, tensor.dtype, tensor.shape[1:], tensor.offset + place * size, size)


def _same(one: Path, first: TensorInfo, two: Path, second: TensorInfo, progress: Progress) -> bool:
    """Whether two tensors of the same type and shape have the same bytes."""
    if first.offset == second.offset and one.samefile(two):
        progress(second.size)
        return True
    with one.open("rb", buffering=0) as this, two.open("rb", buffering=0) as that:
        for start in range(0, first.size, BLOCK):
            count = min(BLOCK, first.size - start)
            blocks = (
                read_exactly(this.fileno(), count, first.offset + start, str(one)),
                read_exactly(that.fileno(), count, second.offset + start, str(two)),
            )
            if blocks[0] != blocks[1]:
                return False
            progress(count)
    return True
