"""The files of a model folder by name, and links that must not lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from amnesia.errors import CheckpointError
from amnesia.files.cache import hidden_folders
from amnesia.files.disk import CACHE_PREFIXES, JOURNAL_NAME, is_inside_name

# Folders of git, and of clients of the Hub.
_HIDDEN = (".git", ".cache")


def list_files(folder: Path) -> tuple[str, ...]:
    """Names of all files under `folder`, relative and sorted, without `.git` and `.cache`.

    Nor is there what an edit in place had put aside, where it was final when its process was killed.
    Links to files count as files (the Hugging Face cache consists of them) if they lead to a place inside the folder,
    or to the blobs of its own repository in that cache. Raises CheckpointError for a missing folder, for other links,
    for links to folders, which could form a cycle, and for anything that is neither file nor folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give the folder that holds config.json")
    names = []
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        if Path(parent) == folder:
            ours = {path.name for path in hidden_folders(folder / JOURNAL_NAME)}
            folders[:] = [name for name in folders if name not in (*_HIDDEN, *ours)]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise CheckpointError(f"{Path(parent) / name} is a link to a folder: replace it by the folder itself")
        for name in files:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if not path.is_file():
                raise CheckpointError(f"{path} is not a regular file, or a broken link: remove or restore it")
            check_inside(path, folder)
            if not is_inside_name(relative):
                raise CheckpointError(f"{relative!r} in {folder} is not a portable file name: rename the file")
            names.append(relative)
    return tuple(sorted(names))


def unlisted_files(folder: Path) -> Iterator[Path]:
    """The regular files, or links to such, in `.git` and `.cache` of a folder, which `list_files` leaves out.

    Raises CheckpointError for what cannot be read.
    """
    for hidden in _HIDDEN:
        for parent, _, files in os.walk(folder / hidden, onerror=_unreadable) if (folder / hidden).is_dir() else ():
            yield from (path for path in (Path(parent) / name for name in files) if path.is_file())


def check_inside(path: Path, folder: Path) -> None:
    """Raises CheckpointError for a link that leads out of the model in `folder`.

    What it leads to is no part of the model, and would be copied and published with it.
    """
    if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in _homes(folder)):
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, outside of the model: put the file itself there, or remove the link"
        )


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where links of a model folder may lead: into itself and, from a snapshot in a cache of the Hub, into its blobs.

    Blobs lie beside the snapshots of a repository, or are links from there to those that the whole cache shares.
    """
    real = folder.resolve()
    if real.parent.name == "snapshots" and real.parents[1].name.startswith(CACHE_PREFIXES):
        return real, real.parents[1] / "blobs", real.parents[2] / "blobs"
    return (real,)


def _unreadable(error: OSError) -> None:
    raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error
