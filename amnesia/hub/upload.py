"""Which files a push must send, which the Hub can copy from the base, and which it must remove. No traffic."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from amnesia.domain import ModelRef
from amnesia.errors import PublishError
from amnesia.files.companions import MODELFILE_NAME
from amnesia.files.disk import git_hash, hash_file, read_small
from amnesia.files.staging import MANIFEST_NAME, PAGE_NAME, REPORT_NAME
from amnesia.hub.contents import Content, Publication
from amnesia.sources.remote import HubFile, HubFiles
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True)
class UploadPlan:
    """What one commit does, and the digests of all files: sha256 of large ones on the Hub, else git's blob hash."""

    add: Mapping[str, Content]
    copy: Mapping[str, ModelRef]
    delete: tuple[str, ...]
    n_unchanged: int
    hashes: Hashes

    @property
    def operations(self) -> int:
        return len(self.add) + len(self.copy) + len(self.delete)


class Hashes:
    """Hashes of what is published, each computed once."""

    def __init__(self, files: Mapping[str, Content]) -> None:
        self._files = files
        self._known: dict[str, str] = {}

    def is_same(self, name: str, other: HubFile) -> bool:
        """Whether a file on the Hub has the bytes of the file `name` that is published."""
        content = self._files[name]
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size != other.size:
            return False
        if other.sha256 is not None:
            return self.sha256(name) == other.sha256
        return git_hash(content if isinstance(content, bytes) else read_small(content, size)) == other.blob_id

    def sha256(self, name: str) -> str:
        if name not in self._known:
            content = self._files[name]
            self._known[name] = (
                hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else hash_file(content)
            )
        return self._known[name]


def plan_upload(publication: Publication, there: HubFiles, origin: HubFiles | None, repo_id: str) -> UploadPlan:
    """Which files must be sent, which the Hub can copy from the base, and which of an earlier push are stale.

    Raises PublishError when the repository holds something else than an earlier push.
    """
    if MANIFEST_NAME not in there.files:
        weights = sorted(name for name in there.files if is_ours(name) and name != MODELFILE_NAME)
        if weights:
            raise PublishError(
                f"{repo_id} holds {weights[0]}, which was not put there by a push: choose another repository, or a "
                "branch of its own"
            )
    hashes = Hashes(publication.files)
    add: dict[str, Content] = {}
    copy: dict[str, ModelRef] = {}
    n_unchanged = 0
    for name, content in publication.files.items():
        if name in there.files and hashes.is_same(name, there.files[name]):
            n_unchanged += 1
            continue
        source = None if origin is None else origin.files.get(name)
        if origin is not None and source is not None and source.sha256 is not None and hashes.is_same(name, source):
            copy[name] = origin.ref
        else:
            add[name] = content
    delete = tuple(sorted(name for name in there.files if is_ours(name) and name not in publication.files))
    return UploadPlan(add, copy, delete, n_unchanged, hashes)


def is_ours(name: str) -> bool:
    """Whether a file belongs to a model and its edit, so that it is stale when a push does not bring it."""
    path = PurePosixPath(name)
    return (
        path.suffix in (".safetensors", ".gguf")
        or name.endswith(".safetensors.index.json")
        or name.startswith(f"{BASE_FOLDER}/")
        or name in (MANIFEST_NAME, UNDO_NAME, REPORT_NAME, PAGE_NAME, MODELFILE_NAME, "adapter_config.json")
    )


def commit_operations(plan: UploadPlan, publication: Publication, copying: bool) -> list[Operation]:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    rows: list[Operation] = [CommitOperationDelete(name, is_folder=False) for name in plan.delete]
    add = dict(plan.add)
    for name, ref in plan.copy.items():
        if copying:
            rows.append(
                CommitOperationCopy(name, name, src_revision=ref.revision, src_repo_id=ref.name, src_repo_type="model")
            )
        else:
            add[name] = publication.files[name]
    return rows + [CommitOperationAdd(name, content) for name, content in add.items()]
