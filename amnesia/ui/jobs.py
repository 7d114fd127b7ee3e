"""Work in one thread, told of by events: one job at a time, which ends early when it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from amnesia.errors import AmnesiaError, InputError, in_one_line
from amnesia.progress import Progress

Event = tuple[str, dict[str, Any]]
"""What a page is told: the kind of an event, and its content as JSON takes it."""

ENDS = ("done", "cancelled", "error")
"""Kinds of events of which every job has one, its last."""

_EVERY = 0.1  # Seconds between two events of progress; set by hand.


class Cancelled(KeyboardInterrupt):
    """Nobody wants the work any more. All cleans up as after an interrupt."""


class Job:
    """A piece of work with its events; to the work it is the tracker. With `yields`, any other job may end it."""

    def __init__(self, name: str, work: Callable[[Job], None], *, yields: bool) -> None:
        self.name, self.yields = name, yields
        self._work = work
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._cancelled = threading.Event()
        self.ended = False

    def cancel(self) -> None:
        """Let the work end where it next tells of something, or checks."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises Cancelled when nobody listens any more."""
        if self._cancelled.is_set():
            raise Cancelled

    def tell(self, kind: str, **content: Any) -> None:
        """Tell the page of something; raises Cancelled when nobody listens any more."""
        self.check()
        self._put(kind, content)

    def notice(self, line: str) -> None:
        """Tell of a line for people."""
        self.tell("notice", line=line)

    @contextlib.contextmanager
    def task(self, line: str, n_bytes: int | None = None) -> Generator[Progress]:
        """Tell of `line` and of steps: bytes up to `n_bytes`, prompts where it is None."""
        self.tell("task", line=line, total=n_bytes)
        done, told = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            self.check()
            if time.monotonic() - told >= _EVERY:
                told = time.monotonic()
                self.tell("progress", done=done)

        yield advance

    def run(self) -> None:
        """Do the work; whatever becomes of it is its last event."""
        try:
            self.check()
            self._work(self)
            self._put("done", {})
        except Cancelled:
            self._put("cancelled", {})
        except BaseException as error:  # Panics of libraries in Rust are no Exception, and the thread must live on.
            self._put("error", {"line": line_of(error)})

    async def events(self) -> AsyncGenerator[Event]:
        """All events; nobody who reads them is nobody who wants the work."""
        try:
            while True:
                kind, content = await self._events.get()
                yield kind, content
                if kind in ENDS:
                    return
        finally:
            self.cancel()

    def _put(self, kind: str, content: dict[str, Any]) -> None:
        self.ended = kind in ENDS
        with contextlib.suppress(RuntimeError):  # The loop has ended, and with it the page.
            self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, content))


class Worker:
    """The thread in which jobs run one after the other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "worker")
        self._job: Job | None = None  # The last that was begun.
        self._running: Job | None = None

    def start(self, job: Job) -> None:
        """Begin a job, or raise InputError: only work that yields is ended for another."""
        if self._job is not None and not self._job.ended:
            if not self._job.yields:
                raise InputError(f"a {self._job.name} is running: wait for its end, or cancel it")
            self._job.cancel()
        self._job = job
        self._pool.submit(self._run, job)

    def _run(self, job: Job) -> None:
        self._running = job
        job.run()
        self._running = None

    def check(self) -> None:
        """Raises Cancelled when the job that runs is wanted no more: for what is called often in its thread."""
        if self._running is not None:
            self._running.check()

    def cancel(self) -> None:
        """End the job that runs, if there is one."""
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        """End the job and wait for it: what is half written is removed."""
        self.cancel()
        self._pool.shutdown()


def line_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, AmnesiaError):
        return " ".join(str(error).split())
    return f"{type(error).__name__} ({in_one_line(error)}) where none was expected: do it again, and report it"
