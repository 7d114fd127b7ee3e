"""What somebody sees on a terminal while a task lasts."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys

import pytest

from amnesia.cli.terminal import Terminal, check_file, write_file
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import OutputError
from amnesia.outputs.commands import save
from support.checkpoints import tell_otherwise
from support.commands import call, done
from support.folders import ROOT, tree
from support.tiny import save_tiny
from support.tiny_text import save_tiny_live


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


FOREIGN = "Par\x1b[2K\x1b]0;x\x07\x9b\u202eis"
SHOWN = "Par\\x1b[2K\\x1b]0;x\\x07\\x9b\\u202eis"
STEERING = set("\x1b\x07\x9b\u202e\r\x7f")


def test_every_line_passes_by_one_door():
    for path in (ROOT / "amnesia" / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if path.name != "terminal.py":
            assert {*called}.isdisjoint({"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"})


@pytest.mark.parametrize("way", ["copy", "in place"])
def test_names_of_others_steer_no_terminal(tmp_path, way):
    model = save_tiny(tmp_path / "m")
    place = ("-o", tmp_path / "out") if way == "copy" else ("--in-place",)
    output = tmp_path / "out" if way == "copy" else model
    done("edit", model, "--cell", "1:4", "--entity", "Ada", *place)
    # This program takes no such name; others may have written one.
    tell_otherwise(output, lambda told: told["edits"][0].update(entity=FOREIGN))
    results = [
        call("edit", model, "--cell", "1:4", "--entity", FOREIGN, "-o", tmp_path / "refused"),
        call("verify", output),
        call("verify", output, "--json"),
        call("edit", output, "--cell", "1:4", "-o", tmp_path / "again"),
        call("undo", output, *(("-o", tmp_path / "back") if way == "copy" else place)),
    ]
    assert [result.exit_code for result in results] == [2, 0, 0, 2, 0]
    for result in results:
        assert STEERING.isdisjoint(result.output)
    assert SHOWN in results[1].stdout and SHOWN in results[4].stdout
    assert json.loads(results[2].stdout)[str(output)]["entity"] == FOREIGN
    assert f"already has it edited for '{SHOWN}'" in results[3].stderr


def test_a_folder_or_a_model_with_a_line_break_adds_no_line(tmp_path):
    model = save_tiny(tmp_path / "m")
    done("edit", model, "--cell", "1:4", "-o", tmp_path / "out" / "a\nverified: all is well")
    tell_otherwise(tmp_path / "out" / "a\nverified: all is well", lambda told: told["base"].update(id="m\nall is well"))
    assert done("verify", tmp_path / "out").count("\n") == 1
    assert "all is well\n" not in done("undo", tmp_path / "out", "-o", tmp_path / "back")


def test_progress_and_errors_steer_no_terminal(monkeypatch, tmp_path):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Terminal().task(f"localizing {FOREIGN}", 0):
        assert SHOWN in screen.getvalue()
    Terminal().notice(f"fetched {FOREIGN}\nall is well")
    assert {"\x1b]", "\x07", "\x9b", "\u202e"}.isdisjoint(screen.getvalue())
    assert screen.getvalue().endswith(f"fetched {SHOWN}\\nall is well\n")
    for arguments in (
        ("verify", tmp_path / FOREIGN),
        ("undo", FOREIGN, "--in-place"),
        (FOREIGN,),
        ("edit", FOREIGN, "x"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and STEERING.isdisjoint(result.output)


@pytest.mark.parametrize(
    "encoding", ["cp1252", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("latin-1", "utf-8"))]
)
@pytest.mark.processes
def test_no_encoding_of_a_stream_ends_the_work(tmp_path, encoding):
    model = save_tiny(tmp_path / "m")
    name = "Beyonc\u00e9 \u6771\u4eac \U0001f600 \u2500"
    for arguments in (
        ("edit", model, "--cell", "1:4", "--entity", name, "-o", tmp_path / "out"),
        ("verify", tmp_path / "out"),
        ("verify", tmp_path / "out", "--json"),
        ("undo", tmp_path / "out", "-o", tmp_path / "back"),
        ("undo", tmp_path / name, "-o", tmp_path / "none"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "amnesia", *map(str, arguments)],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        )
        assert run.returncode == (2 if arguments[1] == tmp_path / name else 0), run.stderr
        assert b"Traceback" not in run.stderr
        if "--json" in arguments:
            assert json.loads(run.stdout)[str(tmp_path / "out")]["entity"] == name
        elif arguments[0] == "verify":
            assert name.encode(encoding, "backslashreplace") in run.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "closed",
    ["<&- >&- 2>&-", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("2>&-", ">&-", ">&- 2>&-"))],
)
def test_a_closed_stream_stops_no_work_and_gets_no_file(tmp_path, closed):
    model = save_tiny(tmp_path / "m")
    before = tree(model)
    for command in (
        f"edit {model} --cell 1:4 -o {tmp_path / 'out'}",
        f"undo {tmp_path / 'out'} -o {tmp_path / 'back'}",
    ):
        line = f"{sys.executable} -m amnesia {command} {closed}"
        run = subprocess.run(["sh", "-c", line], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "back") == tree(model) == before


@pytest.mark.exhaustive
@pytest.mark.processes
def test_prompts_from_a_closed_stream_are_none(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    save(model, ColumnEdit(Cell(1, 3)), tmp_path / "out")
    line = f"{sys.executable} -m amnesia chat {model} {tmp_path / 'out'} <&-"
    run = subprocess.run(["sh", "-c", line], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (run.returncode, run.stdout) == (0, b""), run.stderr


def test_a_result_is_written_to_a_new_or_empty_file_and_over_no_other(tmp_path):
    path = tmp_path / "file"
    check_file(path)
    path.touch()
    check_file(path)
    path.write_text('{"entity": "x", "edits": []}')
    with pytest.raises(OutputError, match="may have been mended by hand: choose another file, or remove it"):
        check_file(path)
    seen = []
    check_file(path, lambda *given: seen.append(given))
    assert seen == [(path, b'{"entity": "x", "edits": []}')]
    with pytest.raises(OutputError, match="amnesia.json has the name of manifests, .*: choose another file"):
        check_file(tmp_path / "amnesia.json", lambda *_: None)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OutputError, match="link cannot be written"):
        check_file(tmp_path / "link")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(OutputError, match="link cannot be written"):
        write_file(tmp_path / "link", b"newer")
    assert path.read_bytes() == b"new"
