"""Output folders that appear whole or not at all, and what may be replaced there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from amnesia.errors import AmnesiaError, OutputError, os_errors_as
from amnesia.files.disk import sync
from amnesia.files.locks import lock_folder


@contextlib.contextmanager
def staged_output(
    output: Path, *, force: bool = False, needed_bytes: int = 0, source: Path | None = None
) -> Generator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without an exception.

    `source` is the folder that is being read; `needed_bytes` must be free on the disk. On any exception the temporary
    folder is removed and an older output stays as it was. With `force`, an older output of this package is moved aside
    first and removed after the new one is in place; if the process is killed in between, the next call puts it back.

    Raises OutputError when `output` exists and is not empty (without `force`, or when this package did not write it),
    overlaps `source`, lies in a Hugging Face cache, when the disk is too full, or when another process is writing the
    same output.
    """
    check_output(output, source, force=force)
    output = output.resolve()
    staging = output.with_name(f".{output.name}.amnesia-partial")
    aside = output.with_name(f".{output.name}.amnesia-old")
    with os_errors_as(OutputError, f"{staging} cannot be made", "choose another output"):
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _open_staging(staging)
    try:
        # A process that was killed may have left its folders behind; the lock says that it is gone.
        _empty(staging)
        if aside.exists():
            if output.exists():
                _remove(aside)
            else:
                aside.rename(output)
        _check_vacant(output, force)
        free = shutil.disk_usage(output.parent).free
        if free < needed_bytes:
            raise OutputError(
                f"{output.parent} has {free / 1e9:.2f} GB free, {needed_bytes / 1e9:.2f} GB are needed: "
                "free space or choose another disk"
            )
        yield staging
        _sync_tree(staging)
        if output.exists():
            output.rename(aside)
        staging.rename(output)
        sync(output.parent)
    except BaseException as error:
        if aside.exists() and not output.exists():
            aside.rename(output)
        with contextlib.suppress(OSError):
            _remove(staging)
        if isinstance(error, OSError) and not isinstance(error, AmnesiaError):
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            raise OutputError(f"{output} cannot be completed ({reason}): free space or choose another disk") from error
        raise
    finally:
        os.close(lock)
    if aside.is_dir():
        with contextlib.suppress(OSError):
            _remove(aside)
    else:
        aside.unlink(missing_ok=True)


def check_output(output: Path, source: Path | None = None, *, force: bool = False) -> None:
    """Raises OutputError when `output` may not be written.

    That is the case inside a Hugging Face cache, inside, at or above the folder or file that is being read, at or above
    the working folder, where `output` is a link, and where it exists and is not empty, unless `force` is given and this
    package wrote it.
    """
    if output.is_symlink():
        raise OutputError(f"{output} is a link: give the folder itself")
    real = output.resolve()
    check_outside_cache(output)
    if Path.cwd().is_relative_to(real):
        raise OutputError(f"{output} holds the working folder: choose a new folder")
    if source is not None:
        origin = source.resolve()
        if real.is_relative_to(origin) or origin.is_relative_to(real):
            raise OutputError(f"{output} overlaps the source {source}: choose a folder beside it")
    _check_vacant(output, force)


def check_outside_cache(path: Path) -> None:
    """Raises OutputError for a path in the Hugging Face cache."""
    if _in_cache(path.resolve()):
        raise OutputError(
            f"{path} lies in the Hugging Face cache, which other programs rely on: choose a folder outside of it"
        )


def _check_vacant(output: Path, force: bool) -> None:
    with os_errors_as(OutputError, f"{output} cannot be read", "choose another output"):
        occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
        own = occupied and force and is_own(output)
    if occupied and force and not own:
        raise OutputError(
            f"{output} was not written by amnesia: --force (in Python: force=True) replaces only its outputs; choose "
            "another output, or remove this one yourself"
        )
    if occupied and not force:
        raise OutputError(
            f"{output} exists and is not empty: choose another output, or replace it with --force (in Python: "
            "force=True)"
        )


def _in_cache(path: Path) -> bool:
    """Whether a path lies in the cache of huggingface_hub, by its settings or by the shape of its folders."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().resolve()
    if path.is_relative_to(hub):
        return True
    return any(
        folder.name in ("blobs", "snapshots") and folder.parent.name.startswith(("models--", "datasets--", "spaces--"))
        for folder in (path, *path.parents)
    )


def _open_staging(staging: Path) -> int:
    """Make the temporary folder and lock it for this process; the lock ends with the process."""
    while True:
        staging.mkdir(exist_ok=True)
        try:
            # Whoever held the lock may have renamed or removed the folder meanwhile: then lock its successor.
            with contextlib.suppress(FileNotFoundError):
                if (lock := lock_folder(staging)) is not None:
                    return lock
        except BlockingIOError as error:
            raise OutputError(f"{staging} is in use by another process: wait for it, or choose another output") from (
                error
            )


def _remove(folder: Path) -> None:
    """Remove a folder, manifests first: what a kill leaves of it must not look complete."""
    for path in folder.rglob(MANIFEST_NAME):
        path.unlink()
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    for path in folder.rglob(MANIFEST_NAME):
        path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_tree(folder: Path) -> None:
    """Force files, then the folders that name them, to the disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


# A folder with this file is a complete output; see `manifest`.
MANIFEST_NAME = "amnesia.json"


# The other things that outputs consist of: a folder for each format, a report alone, or a figure with its numbers.
FORMAT_FOLDERS = frozenset(("safetensors", "adapter", "gguf"))


REPORT_NAME = "report.json"


PAGE_NAME = "report.html"


_REPORT_KEYS = {"aggregates", "prompts"}


_MAX_REPORT = 2**28


def is_own(output: Path) -> bool:
    """Whether a folder is an output of this package: of one format, of several, a report alone, or a figure."""
    if not output.is_dir():
        return False
    if (output / MANIFEST_NAME).is_file():
        return True
    inside = {path.name for path in output.iterdir()}
    if inside <= FORMAT_FOLDERS:
        return all((output / name / MANIFEST_NAME).is_file() for name in inside)
    if any(path.is_dir() for path in output.iterdir()):
        return False
    if (_document(output / REPORT_NAME) or {}).keys() >= _REPORT_KEYS:
        return True
    stems = {Path(name).stem for name in inside}
    return len(stems) == 1 and all((_document(output / f"{stem}.json") or {}).get("figure") == stem for stem in stems)


def _document(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none."""
    if not path.is_file() or path.stat().st_size > _MAX_REPORT:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
