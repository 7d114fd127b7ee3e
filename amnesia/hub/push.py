"""Publish an output: repository, card, one commit with everything in it, and a look at what has arrived.

Everything goes through the Hub's own client, which also finds the token; no token passes through this package. One
commit adds, replaces and deletes all files at once, so that a repository never holds half of a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia.domain import ADAPTERS, ModelRef, is_gguf_name
from amnesia.errors import CheckpointError, InputError, PublishError, SourceError
from amnesia.files.disk import check_settled
from amnesia.files.staging import MANIFEST_NAME, REPORT_NAME
from amnesia.hub.base import MAX_SMALL, find_base, licence_files, start_of
from amnesia.hub.card import licence_notice, missed_bounds, naming_duty
from amnesia.hub.contents import Publication, prepare, report_in, secret_key
from amnesia.hub.space import check_space, publish_space, space_files
from amnesia.hub.upload import UploadPlan, commit_operations, is_ours, plan_upload
from amnesia.outputs.proofs import outputs_in, prove
from amnesia.plain_text import for_terminal
from amnesia.sources.hub_errors import hub_errors, reason
from amnesia.sources.remote import HubFiles, list_hub_files
from amnesia.weights.manifest_file import read_manifest

_REMEDY = "check the network and push again"


@dataclass(frozen=True)
class Published:
    """What a push did. `n_copied` files were taken from the base's repository without traffic of ours; `space` is the
    address of the Space with the report."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None
    n_files: int
    n_sent: int
    n_copied: int
    n_unchanged: int
    n_deleted: int
    space: str | None = None


def push(
    output: Path,
    repo_id: str,
    *,
    base_name: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    private_targets: bool = False,
    leave_out: bool = False,
    allow_failed: bool = False,
    space: bool = False,
    notice: Callable[[str], None] = lambda _: None,
) -> Published:
    """Publish the output in folder `output` as the repository `repo_id`, and check what has arrived.

    `base_name` is `repo_id[@revision]` of the base where the manifest knows only a path. Repeating a push that was
    interrupted sends only what is missing. Files of the folder that are no part of the output are refused, or with
    `leave_out` not published; an output whose report says that bounds were missed is refused, unless `allow_failed`.
    With `space`, the report becomes a static Space of the same name.
    `notice` is told every file and its size before the first is sent.

    Raises VerificationError when the output is not what its manifest says, InputError and PublishError for what can be
    mended here, and SourceError when the Hub cannot be reached.
    """
    if create_pr and branch:
        raise InputError("a pull request is made against the main branch: drop --branch or --create-pr")
    if space and (create_pr or branch):
        raise InputError("a Space shows the main branch: drop --space, or --branch and --create-pr")
    folder = _the_output(output)
    proof = prove(folder, with_others=True)  # Those are refused by name below, unless they are left out.
    manifest = read_manifest(folder)
    if proof.n_unchanged and not proof.n_cells:
        raise InputError(
            f"every column that was edited in {folder} is as before the edits, so that nothing is suppressed, as a "
            "card would claim: edit other columns, or publish nothing"
        )
    if not allow_failed and missed_bounds(report_in(folder, manifest)):
        raise InputError(
            f"{folder} missed the bounds of its recipe, as its {REPORT_NAME} says: choose another edit, or publish it "
            "as it is with --allow-failed (in Python: allow_failed=True), which the card then says first"
        )
    _require_token()
    with _stating("nothing was published"):
        base = find_base(manifest, base_name, notice)
        # A `.gguf` file stands alone, and a folder may come from a place that had left the licence out.
        extra = licence_files(base.files) if base.files is not None and manifest.format not in ADAPTERS else {}
    key = secret_key() if private_targets else None
    publication = prepare(
        folder,
        repo_id,
        base.card,
        matched=base.matched,
        earlier=base.earlier,
        there=None if base.files is None else base.files.files,
        key=key,
        extra=extra,
        leave_out=leave_out,
    )
    for remark in (naming_duty(base.card, repo_id), licence_notice(base.card)):
        if remark:
            notice(remark)
    shown = space_files(publication) if space else {}
    with _stating("nothing was published"):
        repo_id = _create(repo_id, public, branch, notice)
        if space:
            check_space(repo_id, public)
        before = list_hub_files(ModelRef(repo_id, branch), remedy=_REMEDY)
    published = _send(publication, before, base.files, repo_id, branch, create_pr, notice)
    if not space:
        return published
    with _stating(f"the model is at {published.url}, with all files"):
        return replace(published, space=publish_space(shown, repo_id, public, publication.title))


def _send(
    publication: Publication,
    before: HubFiles,
    origin: HubFiles | None,
    repo_id: str,
    branch: str | None,
    create_pr: bool,
    notice: Callable[[str], None],
) -> Published:
    """Send what the repository lacks in one commit, and look at what has arrived."""
    plan = plan_upload(publication, before, origin, repo_id)
    for line in _listing(publication, plan, repo_id):
        notice(line)
    if not plan.operations:
        with _stating(f"all files are at {before} already, but could not be read back"):
            _check_arrived(publication, before, plan)
        return _published(publication, plan, before.ref.name, str(before.ref.revision), None)
    commit, pull_request, revision = _commit(plan, publication, before, branch, create_pr, repo_id)
    with _stating(f"commit {commit} is in {repo_id} with all files, but could not be read back"):
        after = list_hub_files(ModelRef(repo_id, revision), remedy=_REMEDY)
        if after.ref.revision != commit:
            raise PublishError(f"{repo_id} moved on to {after.ref.revision} while {commit} was checked: push again")
        _check_arrived(publication, after, plan)
    return _published(publication, plan, repo_id, commit, pull_request)


def _listing(publication: Publication, plan: UploadPlan, repo_id: str) -> Iterator[str]:
    """A line for each file, with its bytes and whether it is sent, and for each that is not published."""
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in publication.files.items()
    }
    for name in sorted(sizes):
        how = "sent" if name in plan.add else "copied by the Hub" if name in plan.copy else "there already"
        yield f"{sizes[name]:>16,} bytes  {for_terminal(name)}  ({how})"
    for name in publication.left_out:
        yield f"{'left out':>22}  {for_terminal(name)}"
    sent = sum(sizes[name] for name in plan.add)
    yield f"{sum(sizes.values()):>16,} bytes in {len(sizes)} files for {repo_id}, of which {sent:,} are sent"


@contextlib.contextmanager
def _stating(state: str) -> Generator[None]:
    """Let errors of the Hub say what the repository holds now."""
    try:
        yield
    except SourceError as error:
        raise PublishError(f"{error}; {state}") from error


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
    with hub_errors(repo_id, _REMEDY):
        repo_id = api.create_repo(repo_id, private=not public, exist_ok=True).repo_id
        private = api.model_info(repo_id).private
        if not private and not public:
            raise PublishError(f"{repo_id} is public already: push with --public, or choose another repository")
        if private and public:
            notice(f"{repo_id} exists and is private, and stays so: its settings on the Hub can make it public")
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    return repo_id


def _commit(
    plan: UploadPlan, publication: Publication, there: HubFiles, branch: str | None, create_pr: bool, repo_id: str
) -> tuple[str, str | None, str]:
    """Send everything in one commit; returns it, the address of the pull request, and the revision to look at."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    def send(copying: bool) -> Any:
        return HfApi().create_commit(
            repo_id,
            commit_operations(plan, publication, copying),
            commit_message=publication.title,
            revision=branch,
            create_pr=create_pr,
            parent_commit=there.ref.revision,
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
        now = list_hub_files(ModelRef(there.ref.name, branch)).ref.revision
    except SourceError:
        return "what it holds now cannot be seen"
    if now == there.ref.revision:
        return "nothing was published, it is as it was"
    return f"commit {now} is there now, maybe this one"


def _check_arrived(publication: Publication, there: HubFiles, plan: UploadPlan) -> None:
    """Compare what the Hub holds with what was published: names, sizes, hashes, and the headers as they are served."""
    remedy = "push again, or remove the repository"
    for name, content in publication.files.items():
        if name not in there.files:
            raise PublishError(f"{there} lacks {name} after the push: {remedy}")
        if not plan.hashes.is_same(name, there.files[name]):
            raise PublishError(f"{there} holds another {name} than was published: {remedy}")
        if name.endswith(".safetensors") or is_gguf_name(name):
            try:
                found = start_of(there, name)
            except CheckpointError:
                found = b""
            local = content[: len(found)] if isinstance(content, bytes) else _first_bytes(content, len(found))
            if not found or found != local:
                raise PublishError(f"{there} serves another beginning of {name} than was published: {remedy}")
    stale = sorted(name for name in there.files if is_ours(name) and name not in publication.files)
    if stale:
        raise PublishError(f"{there} still holds {stale[0]}, which does not belong to this model: {remedy}")
    manifest = publication.files[MANIFEST_NAME]
    if there.content(MANIFEST_NAME, MAX_SMALL) != manifest:
        raise PublishError(f"{there} serves another {MANIFEST_NAME} than was published: {remedy}")


def _first_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _published(
    publication: Publication, plan: UploadPlan, repo_id: str, commit: str, pull_request: str | None
) -> Published:
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
