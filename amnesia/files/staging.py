"""Output folders that appear whole or not at all, and what may be replaced there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.domain import ADAPTERS, FORMATS
from amnesia.errors import AmnesiaError, OutputError, os_errors_as
from amnesia.files.cache import aside, cache_folder, scratch_folder
from amnesia.files.companions import BASE_FOLDER, PAGE_NAME, REPORT_NAME
from amnesia.files.disk import CACHE_PREFIXES, MANIFEST_NAME, hash_file, read_small, sync
from amnesia.files.figure_files import DRAWN, is_drawn, is_figure
from amnesia.files.manifest_form import is_as_written
from amnesia.files.seals import is_sealed_page


@contextlib.contextmanager
def staged_output(
    output: Path, *, force: bool | None = None, needed_bytes: int = 0, source: Path | None = None
) -> Generator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without an exception.

    `source` is the folder that is being read; `needed_bytes` must be free on the disk. On any exception the temporary
    folder is removed and an older output stays as it was. With `force`, an older output of this package is moved aside
    first and removed after the new one is in place; if the process is killed in between, the next call puts it back.
    None stands for work whose outputs are never replaced, so that nobody is told of `--force`.

    Raises OutputError when `output` exists and is not empty (without `force`, or when this package did not write it),
    overlaps `source`, lies in a cache, of Hugging Face or of this package, when the disk is too full, or when another
    process is writing the same output.
    """
    check_output(output, source, force=force)
    output = output.resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(output, alone=True) as staging:
            # What a killed process had moved aside is back only now.
            _check_vacant(output, force)
            free = shutil.disk_usage(output.parent).free
            if free < needed_bytes:
                raise OutputError(
                    f"{output.parent} has {free / 1e9:.2f} GB free, {needed_bytes / 1e9:.2f} GB are needed: "
                    "free space or choose another disk"
                )
            yield staging
            _sync_tree(staging)
            _take_place(staging, output, force)
    except OSError as error:
        if isinstance(error, AmnesiaError):
            raise
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        raise OutputError(f"{output} cannot be completed ({reason}): free space or choose another disk") from error


def _take_place(staging: Path, output: Path, force: bool | None) -> None:
    """Rename the new folder, after an older one has made room; an empty one gives way by itself."""
    # Work may have taken hours, in which somebody put something there.
    _check_vacant(output, force)
    older = aside(staging)
    moved = output.exists() and any(output.iterdir())
    try:
        if moved:
            output.rename(older)
        staging.rename(output)
        sync(output.parent)
    except BaseException:
        if not staging.exists():
            output.rename(staging)
        if moved and not output.exists():
            older.rename(output)
        raise


def check_output(output: Path, source: Path | None = None, *, force: bool | None = None) -> None:
    """Raises OutputError when `output` may not be written.

    That is the case inside a cache, of Hugging Face or of this package, inside, at or above the folder or file that is
    being read, at or above the working folder, where `output` is a link, and where it exists and is not empty, unless
    `force` is given and this package wrote it.
    """
    with os_errors_as(OutputError, f"{output} cannot be written", "choose another output"):
        if "\0" in str(output):
            raise OutputError(f"{str(output)!r} holds a null character, which no name can have: choose another output")
        if output.is_symlink():
            raise OutputError(f"{output} is a link: give the folder itself")
        real = output.resolve()
        check_outside_caches(output)
    if Path.cwd().is_relative_to(real):
        raise OutputError(f"{output} holds the working folder: choose a new folder")
    if source is not None:
        origin = source.resolve()
        if real.is_relative_to(origin) or origin.is_relative_to(real):
            raise OutputError(f"{output} overlaps the source {source}: choose a folder beside it")
    _check_vacant(output, force)


def check_outside_caches(path: Path) -> None:
    """Raises OutputError for a path in a cache, of Hugging Face or of this package."""
    if _in_cache(path.resolve()):
        raise OutputError(
            f"{path} lies in the Hugging Face cache, which other programs rely on: choose a folder outside of it"
        )
    if path.resolve().is_relative_to(cache_folder().resolve()):
        raise OutputError(
            f"{path} lies in the cache of amnesia, where later runs expect what they have put there: choose a folder "
            "outside of it"
        )


def _check_vacant(output: Path, force: bool | None) -> None:
    with os_errors_as(OutputError, f"{output} cannot be read", "choose another output"):
        occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
        obstacle = obstacle_in(output) if occupied and force else None
    if obstacle is not None:
        raise OutputError(
            f"{obstacle}: --force (in Python: force=True) replaces only outputs of amnesia whose files are as they "
            "were written (edited weights by their size); choose another output, or move it away yourself"
        )
    if occupied and not force:
        instead = "move it away yourself" if force is None else "replace it with --force (in Python: force=True)"
        raise OutputError(f"{output} exists and is not empty: choose another output, or {instead}")


def _in_cache(path: Path) -> bool:
    """Whether a path lies in the cache of huggingface_hub, by its settings or by the shape of its folders."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().resolve()
    if path.is_relative_to(hub):
        return True
    return any(
        folder.name in ("blobs", "snapshots") and folder.parent.name.startswith(CACHE_PREFIXES)
        for folder in (path, *path.parents)
    )


def _sync_tree(folder: Path) -> None:
    """Force files, then the folders that name them, to the disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


REPORT_KEYS = frozenset(
    "format_version tool model edited entity accepted findings aggregates damage n_excluded prompts".split()
)
"""What every report has."""
REPORT_SECTIONS = frozenset("extraction changed lm_eval stress probes relearning sweep".split())
"""What a report may have, too."""
_MAX_DOCUMENT = 2**28
# Files up to this size are compared by the hash with which they were written or copied, longer ones by their size. So
# are weights that were edited, whatever their size: a manifest has hashes of their tensors, and none of the file.
MAX_HASHED = 2**24


@dataclass(frozen=True)
class _Declared:
    """What is known about a file: its size in bytes and its sha256, as far as a manifest says, and how it looks."""

    size: int | None = None
    sha256: str | None = None
    looks: Callable[[Path], bool] = lambda _: True


# Weights of another size than those of the base, until the rows of `written` tell theirs.
_UNKNOWN = _Declared(size=-1)


def obstacle_in(output: Path) -> str | None:
    """What forbids to replace a folder, in words that name it, or None: all in it is as this package wrote it, as far
    as its manifest tells by a hash, or of edited weights and of files of more than `MAX_HASHED` bytes by a size.

    Outputs are a folder of one format, with what its manifest lists, a folder with one of these for each of several
    formats, a report, or a figure with its numbers. A model that was edited in place is its user's. Raises OSError.
    """
    if not output.is_dir():
        return f"{output} was not written by amnesia"
    if (output / MANIFEST_NAME).exists():
        return _obstacle_to_manifest(output)
    inside = {path.name for path in output.iterdir()}
    if formats := {name for name in inside & {*FORMATS} if (output / name / MANIFEST_NAME).exists()}:
        found = (f"{output / name} was not written by amnesia" for name in sorted(inside - formats))
        return next(filter(None, (*found, *(_obstacle_to_manifest(output / name) for name in sorted(formats)))), None)
    if (_document(output / REPORT_NAME) or {}).keys() >= REPORT_KEYS:
        return _obstacle_to_report(output)
    figures = [name for name in inside if (_document(output / name) or {}).get("figure") == Path(name).stem]
    drawn = {f"{Path(name).stem}{suffix}": _Declared(looks=is_drawn) for name in figures[:1] for suffix in DRAWN}
    return _obstacle(output, drawn | {f"{Path(name).stem}.json": _Declared(looks=is_figure) for name in figures[:1]})


def _obstacle_to_report(folder: Path) -> str | None:
    """What forbids to replace a report, which only its page proves to be as it was written."""
    found = _obstacle(folder, {REPORT_NAME: _Declared(looks=_is_report), PAGE_NAME: _Declared(looks=_is_page)})
    if found is None and not (folder / PAGE_NAME).exists():
        return f"{folder} has no {PAGE_NAME}, which says how its {REPORT_NAME} was written"
    return found


def _is_report(path: Path) -> bool:
    page = path.with_name(PAGE_NAME)
    if (_document(path) or {}).keys() - REPORT_SECTIONS != REPORT_KEYS:
        return False
    # What the page itself was changed in is said of the page.
    return not page.exists() or not _is_page(page) or _is_page(page, read_small(path, _MAX_DOCUMENT))


def _is_page(path: Path, report: bytes | None = None) -> bool:
    return is_sealed_page(read_small(path, _MAX_DOCUMENT), report)


def _obstacle_to_manifest(folder: Path) -> str | None:
    document = _document(folder / MANIFEST_NAME) or {}
    if document.get("in_place"):
        return f"{folder} is a model that was edited in place"
    return _obstacle(folder, _declared(document))


def _is_manifest(path: Path) -> bool:
    return is_as_written(read_small(path, _MAX_DOCUMENT))


def _declared(document: Mapping[str, Any]) -> dict[str, _Declared]:
    """The files that a manifest lists, by name; none where it is no manifest."""
    found = {MANIFEST_NAME: _Declared(looks=_is_manifest)}
    try:
        if document["format"] not in ADAPTERS:
            sized = document["tensor_type"] is None
            for row in document["base"]["files"]:
                found[row["file"]] = _Declared(row["size"]) if sized else _UNKNOWN
            for row in document["untouched"]:
                found[row["file"]] = _Declared(row["size"], row["sha256"])
        for name in document["replaced"]:
            # It made room for a file of ours, or for none.
            found[f"{BASE_FOLDER}/{name}"] = found.get(name, _Declared())
            if name != MANIFEST_NAME:
                found[name] = _Declared()
        found |= dict.fromkeys(document["added"], _Declared())
        for row in document.get("written", ()):
            known = found[row["file"]]
            found[row["file"]] = _Declared(row["size"], row["sha256"] or known.sha256)
        return found
    except (KeyError, TypeError):
        return {}


def _obstacle(folder: Path, declared: Mapping[str, _Declared]) -> str | None:
    """The first entry of a folder that is not `declared`, or is not as it was declared."""
    parents = {parent.as_posix() for name in declared for parent in Path(name).parents}
    # A manifest that lists nothing is named last: what else lies there says more.
    for path in sorted(folder.rglob("*"), key=lambda path: (path.name == MANIFEST_NAME, path)):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name not in (parents if is_folder else declared) or not (is_folder or _is_plain(path)):
            return f"{path} was not written by amnesia"
        if not is_folder and declared[name] is _UNKNOWN:
            return f"{path} may be another file than amnesia wrote, since its {MANIFEST_NAME} does not tell the size"
        if not is_folder and not _is_as(path, declared[name]):
            return f"{path} was changed since amnesia wrote it"
    return None


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_as(path: Path, declared: _Declared) -> bool:
    size = path.stat().st_size
    if declared.size not in (None, size) or not declared.looks(path):
        return False
    return declared.sha256 is None or size > MAX_HASHED or hash_file(path) == declared.sha256


def _document(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none."""
    try:
        document = json.loads(read_small(path, _MAX_DOCUMENT))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
