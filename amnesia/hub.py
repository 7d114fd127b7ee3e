"""Publish an output: repository, card, one commit with everything in it, and a look at what has arrived.

Everything goes through the Hub's own client, which also finds the token; no token passes through this package. One
commit adds, replaces and deletes all files at once, so that a repository never holds half of a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from amnesia.base_repo import MAX_SMALL, find_base, licence_files, start_of
from amnesia.card import licence_notice, naming_duty
from amnesia.checkpoint import BASE_FOLDER, UNDO_NAME
from amnesia.errors import CheckpointError, InputError, PublishError, SourceError
from amnesia.files import check_settled, hash_file
from amnesia.hub_errors import hub_errors, reason
from amnesia.manifest import MANIFEST_NAME, read_manifest
from amnesia.modelfile import MODELFILE_NAME
from amnesia.own_outputs import REPORT_NAME
from amnesia.proofs import outputs_in, prove
from amnesia.publication import Content, Publication, prepare, secret_key
from amnesia.remote import HubFile, HubFiles, list_hub_files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True)
class Published:
    """What a push did. `n_copied` files were taken from the base's repository without traffic of ours."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None
    n_files: int
    n_sent: int
    n_copied: int
    n_unchanged: int
    n_deleted: int


def push(
    output: Path,
    repo_id: str,
    *,
    base_name: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    private_targets: bool = False,
    notice: Callable[[str], None] = lambda _: None,
) -> Published:
    """Publish the output in folder `output` as the repository `repo_id`, and check what has arrived.

    `base_name` is `repo_id[@revision]` of the base where the manifest knows only a path. Repeating a push that was
    interrupted sends only what is missing. Raises VerificationError when the output is not what its manifest says,
    InputError and PublishError for what can be mended here, and SourceError when the Hub cannot be reached.
    """
    if create_pr and branch:
        raise InputError("a pull request is made against the main branch: drop --branch or --create-pr")
    folder = _the_output(output)
    prove(folder)
    _require_token()
    manifest = read_manifest(folder)
    base = find_base(manifest, base_name, notice)
    # A model folder has the licence files of its base already, a `.gguf` file stands alone.
    extra = licence_files(base.files) if base.files is not None and manifest.format == "gguf" else {}
    key = secret_key() if private_targets else None
    publication = prepare(folder, repo_id, base.card, matched=base.matched, key=key, extra=extra)
    for remark in (naming_duty(base.card, repo_id), licence_notice(base.card)):
        if remark:
            notice(remark)
    repo_id = _create(repo_id, public, branch, notice)
    before = list_hub_files(repo_id, branch)
    plan = _plan(publication, before, base.files, repo_id)
    if not plan.operations:
        _check_arrived(publication, before, plan)
        return _published(publication, plan, before.repo, before.revision, None)
    commit, pull_request, revision = _commit(plan, publication, before, branch, create_pr, repo_id)
    after = list_hub_files(repo_id, revision)
    if after.revision != commit:
        raise PublishError(f"{repo_id} moved on to {after.revision} while {commit} was checked: push again")
    _check_arrived(publication, after, plan)
    return _published(publication, plan, repo_id, commit, pull_request)


def _the_output(output: Path) -> Path:
    folders = outputs_in(output)
    if len(folders) > 1:
        raise InputError(f"{output} holds {len(folders)} outputs: push one of {', '.join(map(str, folders))}")
    check_settled(folders[0])
    return folders[0]


def _require_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise PublishError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN")


def _create(repo_id: str, public: bool, branch: str | None, notice: Callable[[str], None]) -> str:
    """Make the repository and the branch if need be; returns the repository's full name."""
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(repo_id, "nothing was published; try again"):
        repo_id = api.create_repo(repo_id, private=not public, exist_ok=True).repo_id
        private = api.model_info(repo_id).private
        if not private and not public:
            raise PublishError(f"{repo_id} is public already: push with --public, or choose another repository")
        if private and public:
            notice(f"{repo_id} exists and is private, and stays so: its settings on the Hub can make it public")
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    return repo_id


@dataclass(frozen=True)
class _Plan:
    """What one commit does, and the digests of all files: sha256 of large ones on the Hub, else git's blob hash."""

    add: Mapping[str, Content]
    copy: Mapping[str, tuple[str, str]]
    delete: tuple[str, ...]
    n_unchanged: int
    hashes: _Hashes

    @property
    def operations(self) -> int:
        return len(self.add) + len(self.copy) + len(self.delete)


class _Hashes:
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
        data = content if isinstance(content, bytes) else content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == other.blob_id

    def sha256(self, name: str) -> str:
        if name not in self._known:
            content = self._files[name]
            self._known[name] = (
                hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else hash_file(content)
            )
        return self._known[name]


def _plan(publication: Publication, there: HubFiles, origin: HubFiles | None, repo_id: str) -> _Plan:
    """Which files must be sent, which the Hub can copy from the base, and which of an earlier push are stale.

    Raises PublishError when the repository holds something else than an earlier push.
    """
    if MANIFEST_NAME not in there.files:
        weights = sorted(name for name in there.files if _is_ours(name) and name != MODELFILE_NAME)
        if weights:
            raise PublishError(
                f"{repo_id} holds {weights[0]}, which was not put there by a push: choose another repository, or a "
                "branch of its own"
            )
    hashes = _Hashes(publication.files)
    add: dict[str, Content] = {}
    copy: dict[str, tuple[str, str]] = {}
    n_unchanged = 0
    for name, content in publication.files.items():
        if name in there.files and hashes.is_same(name, there.files[name]):
            n_unchanged += 1
            continue
        source = None if origin is None else origin.files.get(name)
        if origin is not None and source is not None and source.sha256 is not None and hashes.is_same(name, source):
            copy[name] = (origin.repo, origin.revision)
        else:
            add[name] = content
    delete = tuple(sorted(name for name in there.files if _is_ours(name) and name not in publication.files))
    return _Plan(add, copy, delete, n_unchanged, hashes)


def _is_ours(name: str) -> bool:
    """Whether a file belongs to a model and its edit, so that it is stale when a push does not bring it."""
    path = PurePosixPath(name)
    return (
        path.suffix in (".safetensors", ".gguf")
        or name.endswith(".safetensors.index.json")
        or name.startswith(f"{BASE_FOLDER}/")
        or name in (MANIFEST_NAME, UNDO_NAME, REPORT_NAME, "report.html", MODELFILE_NAME, "adapter_config.json")
    )


def _commit(
    plan: _Plan, publication: Publication, there: HubFiles, branch: str | None, create_pr: bool, repo_id: str
) -> tuple[str, str | None, str]:
    """Send everything in one commit; returns it, the address of the pull request, and the revision to look at."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    def send(copying: bool) -> Any:
        return HfApi().create_commit(
            repo_id,
            _operations(plan, publication, copying),
            commit_message=publication.title,
            revision=branch,
            create_pr=create_pr,
            parent_commit=there.revision,
        )

    try:
        try:
            done = send(copying=bool(plan.copy))
        except (HfHubHTTPError, ValueError) as error:
            # A Hub that cannot copy (other regions, gated bases, files in older storage) still takes an upload.
            if not plan.copy or not _is_about_copying(error):
                raise
            done = send(copying=False)
    except (HfHubHTTPError, HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__  # The client says which file it was, and its cause says why.
        raise PublishError(
            f"{repo_id} could not be written ({reason(cause)}): {_state(there, branch)}; push again, and only what is "
            "missing is sent"
        ) from error
    return done.oid, done.pr_url, done.pr_revision or branch or "main"


def _is_about_copying(error: Exception) -> bool:
    from huggingface_hub.errors import FileDuplicationError

    response = getattr(error, "response", None)
    at = "" if response is None else str(response.request.url)
    return isinstance(error, FileDuplicationError) or "/lfs-files/duplicate" in at or "Cannot duplicate" in str(error)


def _state(there: HubFiles, branch: str | None) -> str:
    """What the repository holds after a commit that failed, as far as that can be seen."""
    try:
        now = list_hub_files(there.repo, branch).revision
    except SourceError:
        return "what it holds now cannot be seen"
    if now == there.revision:
        return "nothing was published, it is as it was"
    return f"commit {now} is there now, maybe this one"


def _operations(plan: _Plan, publication: Publication, copying: bool) -> list[Operation]:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    rows: list[Operation] = [CommitOperationDelete(name, is_folder=False) for name in plan.delete]
    add = dict(plan.add)
    for name, (repo, revision) in plan.copy.items():
        if copying:
            rows.append(CommitOperationCopy(name, name, src_revision=revision, src_repo_id=repo, src_repo_type="model"))
        else:
            add[name] = publication.files[name]
    return rows + [CommitOperationAdd(name, content) for name, content in add.items()]


def _check_arrived(publication: Publication, there: HubFiles, plan: _Plan) -> None:
    """Compare what the Hub holds with what was published: names, sizes, hashes, and the headers as they are served."""
    remedy = "push again, or remove the repository"
    for name, content in publication.files.items():
        if name not in there.files:
            raise PublishError(f"{there} lacks {name} after the push: {remedy}")
        if not plan.hashes.is_same(name, there.files[name]):
            raise PublishError(f"{there} holds another {name} than was published: {remedy}")
        if name.endswith((".safetensors", ".gguf")):
            try:
                found = start_of(there, name)
            except CheckpointError:
                found = b""
            local = content[: len(found)] if isinstance(content, bytes) else _first_bytes(content, len(found))
            if not found or found != local:
                raise PublishError(f"{there} serves another beginning of {name} than was published: {remedy}")
    stale = sorted(name for name in there.files if _is_ours(name) and name not in publication.files)
    if stale:
        raise PublishError(f"{there} still holds {stale[0]}, which does not belong to this model: {remedy}")
    manifest = publication.files[MANIFEST_NAME]
    if there.content(MANIFEST_NAME, MAX_SMALL) != manifest:
        raise PublishError(f"{there} serves another {MANIFEST_NAME} than was published: {remedy}")


def _first_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _published(publication: Publication, plan: _Plan, repo_id: str, commit: str, pull_request: str | None) -> Published:
    from huggingface_hub import constants

    return Published(
        repo_id=repo_id,
        commit=commit,
        url=f"{constants.ENDPOINT}/{repo_id}",
        pull_request=pull_request,
        n_files=len(publication.files),
        n_sent=len(plan.add),
        n_copied=len(plan.copy),
        n_unchanged=plan.n_unchanged,
        n_deleted=len(plan.delete),
    )
