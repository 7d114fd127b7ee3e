"""Copies, hashes, and outputs that appear complete or not at all, also when the process is killed."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amnesia.errors import CheckpointError, OutputError
from amnesia.files.disk import BLOCK, copy_file, hash_file, is_inside_name, read_small, replace_file
from amnesia.files.listing import list_files
from amnesia.files.seals import sealed_json
from amnesia.files.staging import check_output, staged_output
from support.folders import ROOT, tree


@pytest.mark.parametrize("name", ["a", "a/b.txt", "ä ö", "..a", "a..b/c"])
def test_plain_names(name):
    assert is_inside_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/", "a//b", "./a", "a/../b", "../a", "C:/a", "a\\b", "a\nb", "a\0b", "x" * 2000]
)
def test_names_that_leave_the_folder_or_are_not_plain(name):
    assert not is_inside_name(name)


def test_list_files_skips_git_and_cache_and_follows_links_into_the_folder_and_its_blobs(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    for name in ("b.txt", "sub/a.txt", ".git/config", ".cache/x", "sub/.cache/kept"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for blobs in (tmp_path / "models--a--b" / "blobs", tmp_path / "blobs" / "45"):
        blobs.mkdir(parents=True)
        (blobs / "blob").write_text("blob")
    (folder / "link").symlink_to("../../blobs/blob")
    (tmp_path / "models--a--b" / "blobs" / "chain").symlink_to("../../blobs/45/blob")
    (folder / "shared").symlink_to("../../blobs/chain")
    (folder / "sub" / "inside").symlink_to(folder / "b.txt")
    assert list_files(folder) == ("b.txt", "link", "shared", "sub/.cache/kept", "sub/a.txt", "sub/inside")
    (tmp_path / "link").symlink_to(folder)
    assert list_files(tmp_path / "link") == list_files(folder)


@pytest.mark.parametrize("shape", ["model", "models--a--b/snapshots/0123", "snapshots/0123"])
def test_links_out_of_the_folder_are_refused_by_name(tmp_path, shape):
    folder = tmp_path / "home" / shape
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for target in (tmp_path / "secret", tmp_path / "blobs" / "secret"):
        target.write_text("secret")
        (folder / "NOTICE").symlink_to(target)
        with pytest.raises(CheckpointError, match=r"NOTICE is a link to .*secret, outside of the model"):
            list_files(folder)
        (folder / "NOTICE").unlink()
    # A link in the folder that leads on to the outside.
    (folder / "first").symlink_to(tmp_path / "secret")
    (folder / "NOTICE").symlink_to("first")
    with pytest.raises(CheckpointError, match="is a link to"):
        list_files(folder)


def test_small_files_are_regular_and_small(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    assert read_small(tmp_path / "file", 3) == b"123"
    with pytest.raises(OSError, match="more than 2 bytes"):
        read_small(tmp_path / "file", 2)
    (tmp_path / "link").symlink_to("file")
    assert read_small(tmp_path / "link", 3) == b"123"
    with pytest.raises(OSError):
        read_small(tmp_path / "link", 3, follow=False)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**38)
    os.mkfifo(tmp_path / "pipe")
    for name in ("sparse", "pipe", "missing", "."):
        with pytest.raises(OSError):
            read_small(tmp_path / name, 2**20)
    with pytest.raises(OSError, match="not a regular file"):
        read_small(Path("/dev/zero"), 2**20)


def test_a_file_is_replaced_whole_and_nothing_but_a_file(tmp_path):
    path = tmp_path / "cells.json"
    replace_file(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.chmod(0o640)
    replace_file(path, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o640)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".cells.json.partial").symlink_to("precious")
    replace_file(path, b"three")
    assert (tmp_path / "precious").read_text() == "precious"
    path.unlink()
    path.symlink_to("precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("cells.json", "folder", "pipe"):
        with pytest.raises(OSError):
            replace_file(tmp_path / name, b"four")
    assert path.is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert not [item.name for item in tmp_path.iterdir() if item.name.startswith(".amnesia")]


def test_an_error_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "cells.json"
    replace_file(path, b"one")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"two")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("cells.json", b"one")]


def test_files_of_others_are_read_whole_by_one_function():
    own = {"packaged.py", "relations.py", "memory.py"}  # They read files of this package, and of the system.
    for path in (ROOT / "amnesia").rglob("*.py"):
        if path.name not in own:
            assert not re.search(r"\.read_(bytes|text)\(|json\.load\(", path.read_text()), path


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_list_files_refuses_what_it_cannot_copy(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        list_files(tmp_path / "missing")
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(CheckpointError, match="link to a folder"):
        list_files(folder)
    (folder / "loop").unlink()
    (folder / "broken").symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="broken link"):
        list_files(folder)
    (folder / "broken").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        list_files(folder)


def test_copy_gives_the_same_bytes_and_a_writable_file(tmp_path):
    content = os.urandom(BLOCK + 12345)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a").chmod(0o444)
    steps = []
    copy_file(tmp_path / "a", tmp_path / "sub" / "b", advance=steps.append)
    assert (tmp_path / "sub" / "b").read_bytes() == content
    assert (tmp_path / "sub" / "b").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert sum(steps) in (0, len(content))  # Shared blocks take no steps.
    (tmp_path / "empty").touch()
    copy_file(tmp_path / "empty", tmp_path / "empty2")
    assert (tmp_path / "empty2").read_bytes() == b""


def test_copy_does_not_overwrite(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(OutputError, match="cannot be written"):
        copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"


def test_link_shares_the_file_behind_a_link(tmp_path):
    (tmp_path / "blob").write_text("x")
    (tmp_path / "a").symlink_to(tmp_path / "blob")
    copy_file(tmp_path / "a", tmp_path / "b", link=True)
    assert (tmp_path / "b").samefile(tmp_path / "blob")
    assert not (tmp_path / "b").is_symlink()
    with pytest.raises(OutputError, match="hard-linked"):
        copy_file(tmp_path / "a", tmp_path / "b", link=True)


def test_hash_of_files_and_ranges(tmp_path):
    content = os.urandom(2 * BLOCK + 77)
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    part = content[5 : 5 + BLOCK + 1]
    assert hash_file(tmp_path / "a", 5, BLOCK + 1) == hashlib.sha256(part).hexdigest()
    with pytest.raises(CheckpointError, match="ends 1 bytes early"):
        hash_file(tmp_path / "a", len(content) - 4, 5)


# A figure, as an older output.
OLD_NAME, OLD = "sweep.json", sealed_json({"figure": "sweep"}).decode()


def test_output_appears_only_when_complete(tmp_path):
    output = tmp_path / "deep" / "out"
    with staged_output(output) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not output.exists()
        assert folder.parent.parent == output.parent
    assert tree(output) == {"sub/a": b"a"}
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("older", [True, False])
def test_exceptions_leave_no_output_and_keep_the_older_one(tmp_path, error, older):
    output = tmp_path / "out"
    if older:
        output.mkdir()
        (output / OLD_NAME).write_text(OLD)
    with pytest.raises(error), staged_output(output, force=True) as folder:
        (folder / "new").write_text("new")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if older else [])
    assert not older or tree(output) == {OLD_NAME: OLD.encode()}


def test_failing_rename_keeps_the_older_output(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / OLD_NAME).write_text(OLD)
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="cannot be completed"), staged_output(output, force=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert tree(output) == {OLD_NAME: OLD.encode()}


def test_existing_output_needs_force(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with staged_output(output) as folder:  # An empty folder is as good as none.
        (folder / OLD_NAME).write_text(OLD)
    with pytest.raises(OutputError, match="--force"), staged_output(output, force=False):
        pass
    with staged_output(output, force=True) as folder:
        (folder / "b").write_text("b")
    assert tree(output) == {"b": b"b"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="--force"), staged_output(tmp_path / "file", force=False):
        pass


def test_refuses_places_that_would_harm_others(tmp_path, monkeypatch):
    source = tmp_path / "models" / "source"
    source.mkdir(parents=True)
    for output in (source, source / "out", tmp_path / "models", source / ".." / "source"):
        with pytest.raises(OutputError, match="overlaps the source"), staged_output(output, source=source, force=True):
            pass
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    elsewhere = tmp_path / "other" / "models--a--b"
    for output in (tmp_path / "hub" / "x", elsewhere / "snapshots" / "123", elsewhere / "blobs" / "out"):
        with pytest.raises(OutputError, match="Hugging Face cache"), staged_output(output):
            pass
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="is a link"), staged_output(tmp_path / "link", force=True):
        pass
    monkeypatch.chdir(source)
    with pytest.raises(OutputError, match="working folder"), staged_output(tmp_path / "models", force=True):
        pass
    assert source.is_dir()


def test_an_occupied_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    for vacant in ("missing", "empty"):
        check_output(tmp_path / vacant)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / OLD_NAME).write_text(OLD)
    for occupied in (tmp_path / "full", tmp_path / "full" / OLD_NAME):
        with pytest.raises(OutputError, match="exists and is not empty: choose another output, or .* --force"):
            check_output(occupied, force=False)
    check_output(tmp_path / "full", force=True)
    with pytest.raises(OutputError, match="overlaps the source"):
        check_output(tmp_path / "full", tmp_path / "full" / "a", force=True)


def test_full_disks_are_noticed_before_writing(tmp_path):
    message = r"GB free, .* GB are needed"
    with pytest.raises(OutputError, match=message), staged_output(tmp_path / "out", needed_bytes=10**18):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_output(tmp_path):
    with staged_output(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        with pytest.raises(OutputError, match="another process"), staged_output(tmp_path / "out"):
            pass
    assert tree(tmp_path / "out") == {"a": b"a"}


def run_until_marker(code, tmp_path):
    """Start a process that writes an output and kill it once it has written `marker`."""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "marker").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from amnesia.files.staging import staged_output
folder = Path(sys.argv[1])
with staged_output(folder / "out", force=True) as staging:
    (staging / "half").write_text("half")
    (folder / "marker").touch()
    time.sleep(60)
"""

KILLED_BETWEEN_RENAMES = """
import sys, time
from pathlib import Path
from amnesia.files.staging import staged_output
folder = Path(sys.argv[1])
rename = Path.rename
def slow(self, target):
    rename(self, target)
    if self.name != "out":
        return
    (folder / "marker").touch()
    time.sleep(60)
Path.rename = slow
with staged_output(folder / "out", force=True) as staging:
    (staging / "half").write_text("half")
"""


@pytest.mark.parametrize("code", [KILLED_WHILE_WRITING, KILLED_BETWEEN_RENAMES])
def test_a_killed_process_leaves_nothing_behind_for_good(tmp_path, code):
    output = tmp_path / "out"
    output.mkdir()
    (output / OLD_NAME).write_text(OLD)
    run_until_marker(code, tmp_path)
    with pytest.raises(RuntimeError), staged_output(output, force=True) as folder:
        assert list(folder.iterdir()) == []
        raise RuntimeError
    assert tree(output) == {OLD_NAME: OLD.encode()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marker", "out"]
