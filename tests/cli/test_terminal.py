"""What somebody sees on a terminal while a task lasts."""

from __future__ import annotations

import io
import sys

import pytest

from amnesia.cli.terminal import Terminal


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n_bytes", "seen", "unseen"),
    [(None, "0 prompts", "B/s"), (4096, "/4.10k", "prompts"), (0, "restoring", "0")],
    ids=["prompts", "bytes", "nothing is counted"],
)
def test_a_task_shows_the_unit_of_what_it_counts(monkeypatch, n_bytes, seen, unseen):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Terminal().task("restoring", n_bytes):
        shown = screen.getvalue()
    assert "restoring" in shown and seen in shown and unseen not in shown
    assert screen.getvalue().endswith("restoring (0 s)\n")
