"""Folders for long work: gone at the end, gone after a crash, and never another process's."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from amnesia.errors import OutputError
from amnesia.files.cache import hidden_folder, remove_all_abandoned, scratch_folder
from amnesia.files.disk import JOURNAL_NAME
from support.folders import ROOT

WORKING = """
import sys, time
from pathlib import Path
from amnesia.files.cache import scratch_folder
target = Path(sys.argv[1])
with scratch_folder(target) as made:
    (made / "half").write_text("half")
    (target.parent / "marker").touch()
    time.sleep(60)
"""


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def process(tmp_path):
    """A process that is in the middle of its work on `tmp_path / "model"`."""
    running = subprocess.Popen([sys.executable, "-c", WORKING, str(tmp_path / "model")], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "marker").exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    yield running
    running.kill()
    running.wait()


def test_the_folder_is_renamed_or_removed(tmp_path):
    with scratch_folder(tmp_path / "model") as made:
        (made / "a").write_text("a")
        assert made.parent.parent == tmp_path
        made.rename(tmp_path / "model")
    assert (tmp_path / "model" / "a").read_text() == "a"
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / "other") as made:
        (made / "a").write_text("a")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed(tmp_path, process):
    (left,) = hidden(tmp_path)
    with scratch_folder(tmp_path / "model"):
        # Its owner is alive, so the folder stays; so do folders of other work.
        assert left in hidden(tmp_path)
        assert len(hidden(tmp_path)) == 2
        with (
            pytest.raises(OutputError, match="in use by another process"),
            scratch_folder(tmp_path / "model", alone=True),
        ):
            pass
    assert (tmp_path / left / "new" / "half").read_text() == "half"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with scratch_folder(tmp_path / "other"):
        assert left in hidden(tmp_path)
    with scratch_folder(tmp_path / "model") as made:
        assert hidden(tmp_path) == [made.parent.name]


def test_a_folder_that_is_all_ours_is_cleared_of_what_killed_processes_left(tmp_path, process):
    (left,) = hidden(tmp_path)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / f".amnesia-{'0' * 16}").mkdir()
    (tmp_path / f".amnesia-{'0' * 16}" / "foreign").touch()
    aside, lock = hidden_folder(tmp_path / JOURNAL_NAME)
    os.close(lock)
    remove_all_abandoned(tmp_path)
    assert left in hidden(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_all_abandoned(tmp_path)
    assert hidden(tmp_path) == sorted([f".amnesia-{'0' * 16}", aside.name])
    assert (tmp_path / "kept").read_text() == "kept"
    remove_all_abandoned(tmp_path / "missing")


@pytest.mark.parametrize("mark", [None, b"", b"1 model", "copied"])
def test_folders_of_others_stay_whatever_they_are_called(tmp_path, mark):
    foreign = tmp_path / f".amnesia-{'0' * 16}"
    (foreign / "new").mkdir(parents=True)
    (foreign / "new" / "precious").write_text("precious")
    if mark == "copied":  # As a copy of what a killed process has left would be.
        with scratch_folder(tmp_path / "model") as made:
            mark = (made.parent / "mark").read_bytes()
    if mark is not None:
        (foreign / "mark").write_bytes(mark)
    (tmp_path / f".amnesia-{'1' * 16}").symlink_to(foreign)
    os.mkfifo(tmp_path / f".amnesia-{'2' * 16}")
    (tmp_path / f".amnesia-{'3' * 16}").mkdir()
    os.mkfifo(tmp_path / f".amnesia-{'3' * 16}" / "mark")
    before = hidden(tmp_path)
    with scratch_folder(tmp_path / "model", alone=True):
        assert len(hidden(tmp_path)) == len(before) + 1
    assert hidden(tmp_path) == before
    assert (foreign / "new" / "precious").read_text() == "precious"


def test_an_older_thing_that_made_room_is_put_back_after_a_kill(tmp_path, process):
    (left,) = hidden(tmp_path)
    (tmp_path / left / "old").mkdir()
    (tmp_path / left / "old" / "older").write_text("older")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with scratch_folder(tmp_path / "model"):
        assert (tmp_path / "model" / "older").read_text() == "older"
    assert hidden(tmp_path) == []


def test_many_at_once_never_take_each_others_folders(tmp_path):
    failures = []

    def work(number):
        try:
            for _ in range(40):
                with scratch_folder(tmp_path / "model") as made:
                    (made / "own").write_text(str(number))
                    os.sched_yield()
                    assert (made / "own").read_text() == str(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("came", ["nothing", "an empty folder", "a folder", "a file"])
def test_an_older_thing_is_never_lost_to_what_came_in_its_place_after_a_kill(tmp_path, process, came):
    (left,) = hidden(tmp_path)
    (tmp_path / left / "old").mkdir()
    (tmp_path / left / "old" / "older").write_text("older")
    process.send_signal(signal.SIGKILL)
    process.wait()
    target = tmp_path / "model"
    if came == "a file":
        target.write_text("other")
    elif came != "nothing":
        target.mkdir()
    if came == "a folder":
        (target / "other").write_text("other")
    with pytest.raises(KeyboardInterrupt), scratch_folder(target):
        raise KeyboardInterrupt
    home = tmp_path / left / "old" if came in ("a folder", "a file") else target
    assert (home / "older").read_text() == "older"
    # Where the new thing had taken the place, the older one is not needed.
    if home != target and came == "a folder":
        shutil.rmtree(tmp_path / left / "new")
        with scratch_folder(target):
            assert left not in hidden(tmp_path)
        assert (target / "other").read_text() == "other"
