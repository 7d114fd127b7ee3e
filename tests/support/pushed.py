"""What a push has put on the Hub, as its users see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download

from support.folders import files_in


def fetch(repo: str, folder: Path, **options) -> Path:
    """A folder with the files of a repository; `options` as of `snapshot_download`."""
    return Path(snapshot_download(repo, local_dir=folder, **options))


def model_files(folder: Path) -> dict[str, bytes]:
    """All files but the one that the Hub puts into every repository."""
    return {name: content for name, content in files_in(folder).items() if name != ".gitattributes"}


def card_of(files: Mapping[str, bytes]) -> tuple[dict[str, Any], str]:
    """The metadata of the card in some files, and the text below."""
    _, metadata, body = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), body
