"""How far long work has come: who works tells steps, and who watches shows them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

Progress = Callable[[int], None]
"""Told of steps as they are done, by their number since it was last told: bytes written, or prompts asked."""

Watch = Callable[[int], contextlib.AbstractContextManager[Progress]]
"""Asked, with the bytes that will be written or read, for a `Progress` that lasts as long as the work."""


def ignore_progress(count: int) -> None:
    """The progress that nobody watches."""


def unwatched(n_bytes: int) -> contextlib.AbstractContextManager[Progress]:
    """The watch that nobody keeps."""
    return contextlib.nullcontext(ignore_progress)


_GB = 1e9
_n_read = 0


def tell_read(n_bytes: int) -> None:
    """Count bytes of weights that stay on the disk, and were read because they were needed once more."""
    global _n_read
    _n_read += n_bytes


def n_bytes_read() -> int:
    """How many such bytes this process has read so far."""
    return _n_read


def rates(n_bytes: int, n_prompts: int, seconds: float) -> Iterator[str]:
    """What there is to say of a task for which layers were read from the disk."""
    if n_bytes and seconds:
        yield f"{n_bytes / _GB:.2f} GB of layers read from the disk, {n_bytes / _GB / seconds:.2f} GB/s"
        if n_prompts:
            yield f"{n_prompts / seconds:.1f} prompts/s"


class Tracker(Protocol):
    """Where long work reports: one line about what begins, and a context that counts its steps.

    The steps are bytes where `n_bytes` says how many there will be, and prompts otherwise; with 0 none are counted.
    """

    def notice(self, line: str) -> None: ...

    def task(self, line: str, n_bytes: int | None = None) -> contextlib.AbstractContextManager[Progress]: ...


class Silent:
    """A tracker that shows nothing, for callers without a terminal."""

    def notice(self, line: str) -> None:
        """Drop the line."""

    def task(self, line: str, n_bytes: int | None = None) -> contextlib.AbstractContextManager[Progress]:
        """A context in which nobody counts."""
        return contextlib.nullcontext(ignore_progress)


SILENT = Silent()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep the progress bars and notices of transformers, PEFT and accelerate off the terminal while the block runs."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    others = logging.getLogger("accelerate")
    level = others.level
    others.setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # What they deprecate in each other is no concern of the user's.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        others.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def counted(blocks: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """The same blocks, each told of when the next one is asked for."""
    for block in blocks:
        yield block
        progress(len(block))


@contextlib.contextmanager
def whole(progress: Progress, size: int) -> Generator[Progress]:
    """The progress of one file of `size` bytes: what was not told of it by the end is told then.

    Links and shared disk blocks arrive all at once, and nobody tells of them.
    """
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(count)

    yield advance
    progress(size - done)
