"""Folders that many tests ask for, written once in a process and copied from then on: a copy takes a tenth of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

_KEPT = TemporaryDirectory(prefix="amnesia-tests-kept-")
_MADE: dict[str, tuple[Path, torch.Tensor]] = {}
"""What was written, by all that it was asked for, and the state of random numbers that this left behind."""


def kept(asked: str, make: Callable[[Path], object], folder: Path) -> Path:
    """What `make` writes into `folder`, new files of the test's own, and the random numbers that follow upon it.

    `asked` says all on which the files depend. A folder with something in it is written anew.
    """
    if folder.is_dir() and any(folder.iterdir()):
        make(folder)
        return folder
    if asked not in _MADE:
        original = Path(_KEPT.name) / str(len(_MADE))
        make(original)
        _MADE[asked] = original, torch.get_rng_state()
    original, state = _MADE[asked]
    shutil.copytree(original, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    torch.set_rng_state(state)
    return folder
