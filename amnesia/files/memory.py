"""How much memory is left: of the machine, and of the control groups that this process may be confined to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """Below the folder of all groups, that of the memory's, and in a group: limit, use, and the lines of `memory.stat`
    that say how much of the use are files, which make room when asked."""

    folder: str
    limit: str
    use: str
    of_files: tuple[str, ...]


_VERSIONS = {
    "0": _Files("", "memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": _Files(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
    ),
}


def available_memory() -> int:
    """Bytes that can still be had without swapping."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(_GROUPS, _OWN)]))


def _left_in_groups(groups: Path, own: Path) -> Iterator[int]:
    """Bytes left in each control group, of either version, that the process is in and that has a limit."""
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            number, names, path = line.split(":", 2)
            kind = "0" if number == "0" else next((name for name in names.split(",") if name in _VERSIONS), None)
            if kind is None:
                continue
            files = _VERSIONS[kind]
            place = PurePosixPath(path.lstrip("/"))
            # In a container, the path may be that of the host, and the group itself the topmost one to be seen.
            for group in dict.fromkeys((place, *place.parents)):
                with contextlib.suppress(OSError, ValueError):
                    yield _left(groups / files.folder / group, files)


def _left(group: Path, files: _Files) -> int:
    """Raises ValueError where the limit is "max", OSError where there is no such group."""
    most = int((group / files.limit).read_text())
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return most - int((group / files.use).read_text()) + sum(int(rows.get(name, 0)) for name in files.of_files)
