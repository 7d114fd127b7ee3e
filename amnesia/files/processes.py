"""Processes that `torchrun` or `accelerate launch` started together, as they tell each of them."""

from __future__ import annotations

import os


def n_started() -> int:
    """How many there are, 1 where none of these programs started this one."""
    return _counted("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is, from 0."""
    return _counted("RANK", 0)


def is_first() -> bool:
    """Whether this is the one that writes and speaks for all."""
    return rank() == 0


def _counted(name: str, alone: int) -> int:
    """A number that those programs set; anything else comes from none of them."""
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else alone
