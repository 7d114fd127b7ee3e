"""Killed at every write and at random moments: complete outputs or none, unchanged sources, exact ways back."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from amnesia.domain import ModelRef
from amnesia.edits import EditSpec
from amnesia.errors import AmnesiaError, CheckpointError
from amnesia.files.disk import JOURNAL_NAME
from amnesia.files.journal import recover
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove
from support.folders import ROOT, tree
from support.killing import PARIS
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf

EXHAUSTIVE = pytest.mark.exhaustive
# Kills at random moments, and the longest step from one change of the disk at which there is a kill to the next.
TIERS = pytest.mark.parametrize(
    ("n_random", "longest_step"), [pytest.param(3, 12, id="sample"), pytest.param(12, 1, id="every", marks=EXHAUSTIVE)]
)


# How many kills must at least hit, by the longest step: eleven works with thirty each make three hundred.
ENOUGH = {1: 30, 12: 4}


class Killer:
    """The other end of `killing.py`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "killing.py")],
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


def kills(killer, work, model, output, seconds, n_random, longest_step):
    """Kill the work before its changes of the disk, then at random moments; yields after each kill."""
    generator = random.Random(work)
    call = 1
    while killer.run(work, model, output, call=call)[0]:
        yield call
        call += generator.randint(1, longest_step)
    yield 0  # It came to its end.
    for _ in range(n_random):
        yield call if killer.run(work, model, output, delay=generator.random() * seconds)[0] else 0


def make(folder, kind):
    """A model in `folder`; returns what is edited."""
    if kind == "gguf":
        folder.mkdir()
        return write_gguf(folder / "tiny.gguf", parts=2)
    return save_tiny(
        folder, dtype=torch.bfloat16, max_shard_size="60KB", extras=("additional_chat_templates/short.jinja",)
    )


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


@pytest.mark.parametrize("work", ["copy", "link", "replace", "adapter", "gguf", "widen", "undo"])
@TIERS
@pytest.mark.processes
def test_outputs_are_complete_or_not_there(tmp_path, killer, work, n_random, longest_step):
    model = make(tmp_path / "model", "gguf" if work in ("gguf", "widen") else "llama")
    folder = model.parent if work in ("gguf", "widen") else model
    place = tmp_path / "place"
    place.mkdir()
    output = place / "out"
    older = None
    if work == "undo":
        edit_in_place(model, EditSpec((PARIS,), ModelRef("a/b")))
    if work == "replace":
        killer.run("adapter", model, output)
        older = tree(output)
    before = tree(folder)
    _, seconds = killer.run(work, model, tmp_path / "reference")
    complete = tree(tmp_path / "reference")
    assert (MANIFEST_NAME in complete) == (work != "undo")
    n_kills = 0
    for call in kills(killer, work, model, output, seconds, n_random, longest_step):
        n_kills += call > 0
        assert tree(folder) == before
        if output.exists():
            assert tree(output) in (complete, older)
        for found in accepted(place):
            assert tree(found) in (complete, older)
        if older is not None and not output.exists():
            # Killed between two renames: the next run puts the older output back before it begins.
            (aside,) = place.glob(".amnesia-*/old")
            assert tree(aside) in (complete, older)
        if older is None:
            shutil.rmtree(output, ignore_errors=True)
    killer.run(work, model, output)
    assert tree(output) == complete
    assert [path.name for path in place.iterdir()] == ["out"]
    assert tree(folder) == before
    assert n_kills >= ENOUGH[longest_step]


@pytest.mark.parametrize("kind", ["llama", "gguf"])
@pytest.mark.parametrize("work", ["edit in place", "undo in place"])
@TIERS
@pytest.mark.processes
def test_changes_in_place_happen_or_do_not(tmp_path, killer, kind, work, n_random, longest_step):
    model = make(tmp_path / "model", kind)
    folder = tmp_path / "model"
    original = tree(folder)
    edit_in_place(model, EditSpec((PARIS,), ModelRef("a/b")))
    edited = tree(folder)
    _, seconds = killer.run("undo in place", model)
    assert tree(folder) == original
    if work == "undo in place":
        edit_in_place(model, EditSpec((PARIS,), ModelRef("a/b")))
    before, after = (original, edited) if work == "edit in place" else (edited, original)
    n_kills = 0
    for number, call in enumerate(kills(killer, work, model, None, seconds, n_random, longest_step), start=1):
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
            edit_in_place(model, EditSpec((PARIS,), ModelRef("a/b")))
        assert tree(folder) == before
    assert n_kills >= ENOUGH[longest_step]
