"""Processes that `torchrun` or `accelerate launch` started together, as they tell each of them."""

from __future__ import annotations

import os


def n_started() -> int:
    """How many there are, 1 where none of these programs started this one."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK") or "0")


def is_first() -> bool:
    """Whether this is the one that writes and speaks for all."""
    return rank() == 0
