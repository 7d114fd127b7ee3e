"""Jobs: one thread, events in order, and an end that always comes."""

import asyncio
import contextlib

import pytest

from amnesia.errors import InputError
from amnesia.ui.jobs import Job, Worker


def told(work, *, cancelled_by=None):
    """All events of a job; with `cancelled_by` nobody listens any more after an event of this kind."""

    async def main():
        worker, found = Worker(), []
        job = Job("search", work, yields=False)
        worker.start(job)
        async with contextlib.aclosing(job.events()) as events:
            async for kind, content in events:
                found.append((kind, content))
                if kind == cancelled_by:
                    break
        await asyncio.to_thread(worker.close)
        return found

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_job_tells_of_its_steps_in_order():
    def work(job):
        with job.task("reading", 10) as progress:
            progress(4)
        job.notice("so far")

    assert told(work) == [
        ("task", {"line": "reading", "total": 10}),
        ("notice", {"line": "so far"}),
        ("done", {}),
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("no\nname: give one"), "no name: give one"),
        (KeyError("x"), "KeyError (KeyError: 'x') where none was expected: do it again, and report it"),
        (MemoryError(), "MemoryError (MemoryError) where none was expected: do it again, and report it"),
    ],
)
def test_an_error_is_one_line(error, line):
    def work(job):
        raise error

    assert told(work) == [("error", {"line": line})]


def test_work_ends_when_nobody_listens_any_more():
    steps = []

    def work(job):
        try:
            with job.task("counting") as progress:
                while True:
                    progress(1)
                    steps.append(1)
        finally:
            steps.append("cleaned up")

    assert told(work, cancelled_by="progress")[0] == ("task", {"line": "counting", "total": None})
    assert steps[-1] == "cleaned up" and len(steps) > 1
