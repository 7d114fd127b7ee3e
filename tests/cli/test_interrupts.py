"""An interrupt is one line, which says what is on the disk, and exit code 130, whenever it comes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from support.commands import call
from support.folders import ROOT, tree
from support.tiny_gguf import write_gguf
from support.tiny_text import save_tiny_live


@pytest.fixture
def model(tmp_path):
    return save_tiny_live(tmp_path / "m")


INTERRUPTED = """
import os, runpy, signal, sys, time

class Destroyed:
    def __init__(self, *sent):
        self.sent = sent

    def __del__(self):
        interrupt(*self.sent)

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            {place}

def interrupt(sent=signal.SIGINT):
    os.kill(os.getpid(), sent)
    time.sleep(0.1)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupter())
sys.argv[1:] = {arguments!r}
runpy.run_module("amnesia", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "place", "code"),
    [
        *((name, "interrupt()", 130) for name in ("amnesia.cli", "click", "amnesia.cli.edit", "numpy")),
        # Python remembers an interrupt that passed through code that was made from text.
        ("amnesia.cli.main", "exec('interrupt()')", 130),
        # What is raised in a destructor is lost.
        ("amnesia.cli.main", "Destroyed()", 130),
        ("amnesia.cli.main", "Destroyed(signal.SIGTERM)", 143),
        ("amnesia.cli.main", "interrupt(signal.SIGTERM)", 143),
        ("amnesia.cli.main", "interrupt(signal.SIGHUP)", 129),
    ],
)
@pytest.mark.processes
def test_an_interrupt_while_modules_are_loaded_is_one_line(model, tmp_path, module, place, code):
    before = tree(tmp_path)
    arguments = ["edit", str(model), "--cell", "0:1", "-o", str(tmp_path / "out")]
    script = INTERRUPTED.format(module=module, place=place, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted: nothing was written\n")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("before", "launched"), [("signal.signal(signal.SIGHUP, signal.SIG_IGN)", {}), ("", {"WORLD_SIZE": "2"})]
)
def test_a_signal_that_is_ignored_or_that_a_launcher_sends_acts_as_without_this_program(model, before, launched):
    sent = "signal.SIGHUP" if before else "signal.SIGTERM"
    script = INTERRUPTED.format(module="amnesia.cli.main", place=f"interrupt({sent})", arguments=["--version"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **launched}
    command = [sys.executable, "-c", f"import signal\n{before}\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0 if before else -signal.SIGTERM, "")


# What the script of an installed package does; it says so when the first module of the command line is looked for.
SCRIPT = """
import signal, sys

class Started:
    def find_spec(self, name, path=None, target=None):
        if name == "amnesia.cli":
            print(flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Started())
from amnesia.__main__ import entry
sys.exit(entry())
"""


@pytest.mark.parametrize("n_times", [4, pytest.param(30, marks=pytest.mark.exhaustive)])
@pytest.mark.processes
def test_an_interrupt_at_any_moment_of_the_first_two_seconds_is_one_line(model, n_times):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, "localize", str(model), "Japan"]
    draw = random.Random(0)
    for delay in [0.0, *(draw.uniform(0, 2) for _ in range(n_times - 1))]:
        process = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if process.returncode:  # On a fast machine the work may be done by then.
            assert (process.returncode, out, err) == (130, "", "interrupted: nothing was written\n"), delay


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupt_after_the_output_is_there_says_so(model, tmp_path, monkeypatch):
    atlas = ("atlas", model, "Japan", "--no-plots", "--json", "-o", tmp_path / "atlas")
    for name, place, arguments in (
        ("amnesia.cli.atlas.print_json", tmp_path / "atlas", atlas),
        ("amnesia.cli.edit._print_edit", tmp_path / "out", ("edit", model, "--cell", "0:1", "-o", tmp_path / "out")),
    ):
        monkeypatch.setattr(name, interrupt)
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (130, "")
        assert result.stderr.splitlines()[-1] == f"interrupted: {place} was written"
        assert place.exists()


def said(monkeypatch, place, *arguments):
    """What a command says that is interrupted where it calls `place`."""
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupt)
        result = call(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    return result.stderr.splitlines()[-1].removeprefix("interrupted: ")


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_interrupted_change_in_place_says_what_is_on_the_disk(model, tmp_path, monkeypatch, kind):
    if kind == "gguf":
        (tmp_path / "g").mkdir()
        model = write_gguf(tmp_path / "g" / "model.gguf")
    folder = model if model.is_dir() else model.parent
    before = tree(folder)
    edit, undo = ("edit", model, "--cell", "1:4", "--in-place"), ("undo", model, "--in-place")
    complete = f"the edit of {folder} is complete: `amnesia undo {folder} --in-place` takes it back"
    back = f"the edit of {folder} was taken back: its files are as before it"
    assert said(monkeypatch, "amnesia.outputs.in_place._bookkeeping", *edit) == "nothing was written"
    assert said(monkeypatch, "amnesia.cli.edit._print_edit", *edit) == complete
    edited = tree(folder)
    assert "amnesia.json" in edited
    assert said(monkeypatch, "amnesia.outputs.in_place.apply", *undo) == "nothing was written"
    # An edit on top of it, whose manifest takes the place of the first one.
    again = ("edit", model, "--cell", "1:5", "--in-place")
    assert said(monkeypatch, "amnesia.cli.edit._print_edit", *again) == complete
    assert said(monkeypatch, "amnesia.cli.edit.echo", *undo) == back and tree(folder) == edited
    # Interrupted again while it is taken back.
    in_part = f"{folder} is changed in part: `amnesia undo {folder} --in-place` takes that back"
    assert said(monkeypatch, "amnesia.files.journal._remove_empty", *again) == in_part
    assert tree(folder) != edited
    older = f"an interrupted change of {folder} was taken back: its files are as before it"
    assert said(monkeypatch, "amnesia.outputs.in_place.check_unaltered", *again) == older and tree(folder) == edited
    assert said(monkeypatch, "amnesia.cli.edit.echo", *undo) == back and tree(folder) == before


def test_an_interrupted_push_says_what_becomes_of_what_was_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.hub.push.push", interrupt)
    result = call("push", tmp_path, "me/forgets")
    assert result.exit_code == 130
    said = "what me/forgets already got stays there; repeat the push, which sends the rest"
    assert result.stderr.splitlines()[-1] == f"interrupted: {said}"


def test_an_interrupt_before_anything_is_written_says_so_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.outputs.write.write_format", interrupt)
    (tmp_path / "out").mkdir()
    result = call("edit", model, "--cell", "0:1", "-o", tmp_path / "new")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted: nothing was written")
    assert not (tmp_path / "new").exists()
