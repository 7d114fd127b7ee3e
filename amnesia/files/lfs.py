"""Pointers of Git LFS: small texts that stand where a clone without `git lfs pull` should have large files."""

from __future__ import annotations

from amnesia.errors import CheckpointError

POINTER = b"version https://git-lfs"
"""How every pointer begins."""


def check_no_pointer(where: str, start: bytes) -> None:
    """Raise CheckpointError when the file `where`, whose first bytes are `start`, is a pointer and not the file."""
    if start.startswith(POINTER):
        raise CheckpointError(
            f"{where} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or fetch the model "
            "with `hf download`"
        )
