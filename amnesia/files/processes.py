"""Processes that `torchrun` or `accelerate launch` started together, as they tell each of them."""

from __future__ import annotations

import os
import re

from amnesia.errors import InputError


def n_started() -> int:
    """How many there are, 1 where none of these programs started this one."""
    return _counted("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is, from 0.

    Raises InputError for a number that none of them has; one process alone is the first whatever is said.
    """
    own, n = _counted("RANK", 0), n_started()
    if own >= n > 1:
        raise InputError(
            f"RANK is {own}, expected less than WORLD_SIZE, which is {n}: start the processes by torchrun or "
            "accelerate launch, which set both, or unset them"
        )
    return own if n > 1 else 0


def is_first() -> bool:
    """Whether this is the one that writes and speaks for all."""
    return rank() == 0


def _counted(name: str, alone: int) -> int:
    """A number that those programs set; anything else comes from none of them."""
    given = os.environ.get(name, "")
    return int(given) if re.fullmatch("[0-9]{1,9}", given) else alone
