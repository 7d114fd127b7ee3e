"""Where data of the tests lie, and what lies in a folder, as bytes to compare."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

DATA = ROOT / "tests" / "data"


def tree(folder: Path) -> dict[str, bytes]:
    """Name below `folder` → content of every file; a link to a file counts as what it leads to."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_under(folder: Path) -> list[Path]:
    """The files below a folder, which need not exist."""
    return [path for path in folder.rglob("*") if path.is_file()]


def telling(folder: Path, text: str) -> list[str]:
    """The files below a folder that have a text in them."""
    return sorted(name for name, content in tree(folder).items() if text.encode() in content)


def files_in(folder: Path) -> dict[str, bytes]:
    """As `tree`, without what a client of the Hub keeps for itself."""
    return {name: content for name, content in tree(folder).items() if ".cache" not in Path(name).parts}
