"""The report of a published model as a static Space beside it: one page, which the Hub serves as it is.

A Space has names of its own, so that it bears that of the model's repository.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amnesia.errors import PublishError
from amnesia.files.disk import git_hash, read_small
from amnesia.files.staging import PAGE_NAME, REPORT_NAME
from amnesia.hub.contents import Publication
from amnesia.plain_text import for_terminal
from amnesia.sources.hub_errors import hub_errors

_TYPE = "space"
_INDEX = "index.html"
_CARD = "README.md"
_GIT = ".gitattributes"
_MAX_PAGE = 2**28
_REMEDY = "check the network and push again, which sends what is missing"


def space_files(publication: Publication) -> dict[str, bytes]:
    """The page and its numbers as they are published with the model.

    Raises PublishError for an output without a page.
    """
    if PAGE_NAME not in publication.files:
        raise PublishError(
            f"the output has no {PAGE_NAME} that a Space could show: make it with `run`, or drop --space"
        )
    files = {_INDEX: _bytes(publication, PAGE_NAME)}
    if REPORT_NAME in publication.files:
        files[REPORT_NAME] = _bytes(publication, REPORT_NAME)
    return files


def check_space(repo_id: str, public: bool) -> None:
    """Raise PublishError where a Space of that name is there already and is another, or is public unasked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub_errors(f"the Space {repo_id}", _REMEDY):
        try:
            info = HfApi().space_info(repo_id)
        except RepositoryNotFoundError:
            return
    names = {row.rfilename for row in info.siblings or ()} - {_GIT, _CARD}
    if names and not names >= {_INDEX, REPORT_NAME}:
        raise PublishError(
            f"the Space {repo_id} holds {for_terminal(sorted(names)[0])}, which was not put there by a push: choose "
            "another repository, or drop --space"
        )
    if not info.private and not public:
        raise PublishError(f"the Space {repo_id} is public already: push with --public, or drop --space")


def publish_space(files: Mapping[str, bytes], repo_id: str, public: bool, title: str) -> str:
    """Make the Space if need be, send all files and a card in one commit, and compare what arrived.

    Returns its address.

    Raises SourceError and PublishError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, shown = HfApi(), f"the Space {repo_id}"
    sent = {_CARD: _card(repo_id), **files}
    with hub_errors(shown, _REMEDY):
        made = api.create_repo(repo_id, repo_type=_TYPE, space_sdk="static", private=not public, exist_ok=True)
        done = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(name, content) for name, content in sent.items()],
            commit_message=title,
            repo_type=_TYPE,
        )
        there = api.get_paths_info(made.repo_id, list(sent), revision=done.oid, repo_type=_TYPE)
    found = {row.path: row for row in there}
    for name, content in sent.items():
        row = found.get(name)
        if row is None or not _is_same(row, content):
            raise PublishError(f"{shown} holds another {name} than was published: push again, or remove the Space")
    return str(made)


def _is_same(row: Any, content: bytes) -> bool:
    """Whether a row of the Hub's about a file is about these bytes."""
    if row.lfs is not None:
        return row.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return row.blob_id == git_hash(content)


def _card(repo_id: str) -> bytes:
    rows = {"title": f"Report of {repo_id.split('/')[-1]}", "sdk": "static", "app_file": _INDEX, "models": [repo_id]}
    # JSON is YAML, and needs no rules of its own about quotes.
    lines = [f"{key}: {json.dumps(value)}" for key, value in rows.items()]
    body = f"What was measured of [{repo_id}](https://huggingface.co/{repo_id}), as `amnesia` reports it."
    return "\n".join(["---", *lines, "---", "", body, ""]).encode()


def _bytes(publication: Publication, name: str) -> bytes:
    content = publication.files[name]
    return read_small(content, _MAX_PAGE) if isinstance(content, Path) else content
