"""How far long work has come: who works tells steps, and who watches shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

Progress = Callable[[int], None]
"""Told of steps as they are done, by their number since it was last told: bytes written, or prompts asked."""

Watch = Callable[[int], contextlib.AbstractContextManager[Progress]]
"""Asked, with the bytes that will be written, for a `Progress` that lasts as long as the work."""


def ignore_progress(count: int) -> None:
    """The progress that nobody watches."""


def unwatched(n_bytes: int) -> contextlib.AbstractContextManager[Progress]:
    """The watch that nobody keeps."""
    return contextlib.nullcontext(ignore_progress)
