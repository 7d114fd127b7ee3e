"""A journal that came with a folder is believed only as far as it could be ours, and by nobody who only reads."""

import hashlib
import json
import shutil

import pytest

from amnesia.errors import VerificationError
from amnesia.files.disk import JOURNAL_NAME
from amnesia.files.journal import Change, Patch, apply, recover
from amnesia.files.streams import Strided
from support.commands import done, refused
from support.folders import tree
from support.tiny import save_tiny


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model", max_shard_size="1GB")


def write_journal(folder, *, payload=b"", **fields):
    """A journal as this package would write it, but for what it says."""
    aside = ".amnesia-0123456789abcdef"
    header = {"format_version": 2, "aside": aside, "sizes": {}, "patches": [], "removed": [], "added": [], **fields}
    line = json.dumps(header).encode() + b"\n"
    (folder / JOURNAL_NAME).write_bytes(hashlib.sha256(line + payload).hexdigest().encode() + b"\n" + line + payload)


def a_patch(folder, **fields):
    size = (folder / "model.safetensors").stat().st_size
    now = (folder / "model.safetensors").read_bytes()[-4:]
    row = {"file": "model.safetensors", "offset": size - 4, "stride": 4, "item": 4, "size": 4}
    return {"sizes": {"model.safetensors": size}, "patches": [row | fields], "payload": b"\0\0\0\0" + now}


@pytest.mark.parametrize(
    "fields",
    [
        {"added": ["config.json"]},
        {"added": ["model.safetensors"]},
        {"added": ["sub/precious.txt"]},
        {"added": ["amnesia-base/precious.txt"]},
        {"removed": ["config.json"], "added": ["amnesia.json"]},
        {"removed": ["../config.json"]},
        {"added": ["/etc/passwd"]},
        {"aside": "sub"},
        {"aside": ".."},
    ],
)
def test_files_that_no_edit_writes_stay(folder, fields):
    (folder / "sub").mkdir()
    (folder / "sub" / "precious.txt").write_text("precious")
    for old in (folder / ".amnesia-0123456789abcdef" / "files", folder / ".amnesia-journal-old"):
        old.mkdir(parents=True)
        (old / "config.json").write_text("{}")
    write_journal(folder, **fields)
    before = tree(folder)
    with pytest.raises(VerificationError):
        recover(folder)
    for command in (("undo", folder, "--in-place"), ("edit", folder, "--cell", "0:1", "--in-place")):
        refused(*command)
    assert tree(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"file": "config.json"},
        {"file": "../model.safetensors"},
        {"file": "missing.safetensors"},
        {"offset": 2**40},
        {"size": 8},
        {"size": 0},
        {"item": 0},
        {"stride": 0},
        {"offset": -1},
    ],
)
def test_patches_that_do_not_fit_the_weights_are_not_made(folder, change):
    fields = a_patch(folder, **change)
    write_journal(folder, **fields)
    before = tree(folder)
    with pytest.raises(VerificationError):
        recover(folder)
    assert tree(folder) == before


def test_weights_of_another_size_or_with_other_bytes_are_not_touched(folder):
    write_journal(folder, **a_patch(folder) | {"sizes": {"model.safetensors": 5}})
    with pytest.raises(VerificationError, match="about another"):
        recover(folder)
    write_journal(folder, **a_patch(folder) | {"payload": b"\0\0\0\0\1\1\1\1"})
    with pytest.raises(VerificationError, match="changed by something else"):
        recover(folder)
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors").symlink_to("../model.safetensors")
    write_journal(folder, **a_patch(folder))
    with pytest.raises(VerificationError, match="is a link"):
        recover(folder)


def test_who_only_reads_says_that_it_is_there_and_changes_nothing(folder, tmp_path):
    done("edit", folder, "--cell", "0:3", "-o", tmp_path / "out")
    write_journal(tmp_path / "out", **a_patch(tmp_path / "out"))
    before = tree(tmp_path / "out")
    for command in (
        ("verify", tmp_path / "out"),
        ("verify", tmp_path / "out", "--behaviour"),
        ("undo", tmp_path / "out", "-o", tmp_path / "back"),
        ("edit", tmp_path / "out", "--cell", "0:4", "-o", tmp_path / "two"),
        ("localize", tmp_path / "out", "Paris"),
        ("push", tmp_path / "out", "ada/x"),
    ):
        assert "an edit of" in (line := refused(*command)) and "in place was interrupted" in line, command
        assert tree(tmp_path / "out") == before


def test_who_writes_takes_it_back_and_nothing_more(folder, tmp_path):
    done("edit", folder, "--cell", "0:3", "--in-place")
    edited = tree(folder)
    size = (folder / "model.safetensors").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amnesia.files.journal._make", _killed)
        patch.setattr("amnesia.files.journal._settle", lambda _: False)
        before = (folder / "model.safetensors").read_bytes()[-4:]
        change = Change((Patch("model.safetensors", before, Strided(size - 4, 4, 4, b"\1\2\3\4")),), (), {})
        with pytest.raises(KeyboardInterrupt):
            apply(folder, change)
    assert (folder / JOURNAL_NAME).exists()
    shutil.copytree(folder, tmp_path / "copy")
    done("undo", folder, "--in-place")
    assert tree(folder) == edited
    # The next one is the edit before.
    done("undo", folder, "--in-place")
    assert tree(folder) != edited
    done("edit", tmp_path / "copy", "--cell", "0:4", "--in-place")
    assert not (tmp_path / "copy" / JOURNAL_NAME).exists()


def _killed(folder, aside, change):
    raise KeyboardInterrupt
