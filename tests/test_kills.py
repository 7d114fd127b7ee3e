"""Killed at every write and at random moments: complete outputs or none, unchanged sources, exact ways back."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amnesia.edits import EditSpec
from amnesia.errors import AmnesiaError, CheckpointError
from amnesia.files import JOURNAL_NAME
from amnesia.in_place import edit_in_place, undo_in_place
from amnesia.journal import recover
from amnesia.manifest import MANIFEST_NAME
from amnesia.proofs import prove
from killing import PARIS
from tiny import save_tiny
from tiny_gguf import write_gguf

ROOT = Path(__file__).parents[1]
N_RANDOM = 12
# Kills of all tests of this file that hit; the last test counts them.
KILLS = {}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killer:
    """The other end of `killing.py`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killing.py"))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, work, model, output=None, *, call=0, delay=None):
        """Whether the work was killed, and how many seconds it took; it must not end in another way."""
        order = {"work": work, "model": str(model), "output": output and str(output), "call": call, "delay": delay}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["code"] in (0, -signal.SIGKILL)
        return answer["code"] != 0, answer["seconds"]

    def close(self):
        self._process.stdin.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.close()


def kills(killer, work, model, output, seconds):
    """Kill the work before each of its changes of the disk, then at random moments; yields after each kill."""
    call = 1
    while killer.run(work, model, output, call=call)[0]:
        yield call
        call += 1
    yield 0  # It came to its end.
    generator = random.Random(work)
    for _ in range(N_RANDOM):
        yield call if killer.run(work, model, output, delay=generator.random() * seconds)[0] else 0


def make(folder, kind):
    """A model in `folder`; returns what is edited."""
    if kind == "gguf":
        folder.mkdir()
        return write_gguf(folder / "tiny.gguf", parts=2)
    return save_tiny(folder, dtype=torch.bfloat16, max_shard_size="60KB", extras=("assets/logo.txt",))


def accepted(folder):
    """Folders at or in `folder` with a manifest that `verify` takes."""
    found = []
    for path in folder.rglob(MANIFEST_NAME):
        try:
            prove(path.parent)
        except AmnesiaError:
            continue
        found.append(path.parent)
    return found


@pytest.mark.parametrize("work", ["copy", "link", "replace", "adapter", "gguf", "undo"])
def test_outputs_are_complete_or_not_there(tmp_path, killer, work):
    model = make(tmp_path / "model", "gguf" if work == "gguf" else "llama")
    folder = model.parent if work == "gguf" else model
    place = tmp_path / "place"
    place.mkdir()
    output = place / "out"
    older = None
    if work == "undo":
        edit_in_place(model, EditSpec((PARIS,), "a/b"))
    if work == "replace":
        killer.run("adapter", model, output)
        older = tree(output)
    before = tree(folder)
    _, seconds = killer.run(work, model, tmp_path / "reference")
    complete = tree(tmp_path / "reference")
    assert (MANIFEST_NAME in complete) == (work != "undo")
    n_kills = 0
    for call in kills(killer, work, model, output, seconds):
        n_kills += call > 0
        assert tree(folder) == before
        if output.exists():
            assert tree(output) in (complete, older)
        for found in accepted(place):
            assert tree(found) in (complete, older)
        if older is not None and not output.exists():
            # Killed between two renames: the next run puts the older output back before it begins.
            assert tree(place / ".out.amnesia-old") in (complete, older)
        if older is None:
            shutil.rmtree(output, ignore_errors=True)
    killer.run(work, model, output)
    assert tree(output) == complete
    assert [path.name for path in place.iterdir()] == ["out"]
    assert tree(folder) == before
    KILLS[work] = n_kills
    assert n_kills >= 20


@pytest.mark.parametrize("kind", ["llama", "gguf"])
@pytest.mark.parametrize("work", ["edit in place", "undo in place"])
def test_changes_in_place_happen_or_do_not(tmp_path, killer, kind, work):
    model = make(tmp_path / "model", kind)
    folder = tmp_path / "model"
    original = tree(folder)
    edit_in_place(model, EditSpec((PARIS,), "a/b"))
    edited = tree(folder)
    _, seconds = killer.run("undo in place", model)
    assert tree(folder) == original
    if work == "undo in place":
        edit_in_place(model, EditSpec((PARIS,), "a/b"))
    before, after = (original, edited) if work == "edit in place" else (edited, original)
    n_kills = 0
    for number, call in enumerate(kills(killer, work, model, None, seconds), start=1):
        n_kills += call > 0
        if (folder / JOURNAL_NAME).exists():
            with pytest.raises(CheckpointError, match="was interrupted"):
                prove(folder)
            # What takes the change back may be killed too.
            n_kills += killer.run("recover", model, call=1 + number % 7)[0]
        recover(folder)
        now = tree(folder)
        # The change is final once its journal is gone; until then it never happened.
        assert now in (before, after)
        if now == edited:
            prove(folder)
            undo_in_place(folder)
            assert tree(folder) == original
        if work == "undo in place" and tree(folder) == original:
            edit_in_place(model, EditSpec((PARIS,), "a/b"))
        assert tree(folder) == before
    KILLS[f"{work}, {kind}"] = n_kills
    assert n_kills >= 20


def test_there_were_enough_kills():
    assert len(KILLS) == 10
    assert sum(KILLS.values()) >= 200
