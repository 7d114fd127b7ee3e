"""What somebody sees on a terminal while a task lasts."""

from __future__ import annotations

import io
import sys

import pytest

from amnesia.cli.terminal import Terminal, check_file, write_file
from amnesia.errors import OutputError


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


@pytest.mark.parametrize("content", ["years of work", "{}", "[]", '{"name": "x"}', "[" * 100_000])
def test_a_result_replaces_older_results_and_no_other_file(tmp_path, content):
    path = tmp_path / "file"
    check_file(path)
    path.write_text(content)
    with pytest.raises(OutputError, match="is no result of amnesia"):
        check_file(path)
    path.write_text('{"entity": "x", "edits": []}')
    check_file(path)
    with pytest.raises(OutputError, match="may have been mended by hand"):
        check_file(path, replaceable=False)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OutputError, match="link cannot be written"):
        check_file(tmp_path / "link")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(OutputError, match="link cannot be written"):
        write_file(tmp_path / "link", b"newer")
    assert path.read_bytes() == b"new"
