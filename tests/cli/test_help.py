"""What the command line says of itself: groups of commands, one line for each, and for what it cannot understand."""

import os
import re
import subprocess
import sys

import click
import pytest

from amnesia.cli.main import GROUPS, main
from amnesia.cli.options import ModelType
from support.commands import call, refused
from support.folders import ROOT


def test_every_command_is_in_one_group_with_a_summary_of_one_line():
    lines = call("--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    names = [name for commands in GROUPS.values() for name in commands]
    assert len(names) == len(set(names))
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()[0] in names}
    assert [line.removesuffix(":") for line in lines if line.removesuffix(":") in GROUPS] == [*GROUPS]
    for name in names:
        command = main.get_command(click.Context(main), name)
        assert rows[name].split(maxsplit=1)[1] == command.get_short_help_str(1000), f"too long: {name}"
        assert not rows[name].endswith("...") and command.name == name


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["foo"], "no such command 'foo': see `amnesia --help`"),
        (["evalute"], "no such command 'evalute', did you mean 'evaluate'?: see `amnesia --help`"),
        (["--foo"], "no such option '--foo': see `amnesia --help`"),
        (["edit"], "missing argument 'MODEL': see `amnesia edit --help`"),
        (["edit", "m", "n"], "got unexpected extra argument (n): see `amnesia edit --help`"),
        (["localize", "m", "e", "--top", "0"], "invalid value for '--top': 0 is not in the range x>=1: see `amnesia l"),
        (["undo", "m", "--output"], "option '--output' requires an argument: see `amnesia undo --help`"),
        (["run", "--outputs", "x"], "no such option '--outputs'. Did you mean '--output'?: see `amnesia run --help`"),
    ],
)
def test_what_is_not_understood_is_one_line_with_where_to_look(arguments, line):
    assert refused(*arguments).startswith(f"error: {line}")
    assert len(call(*arguments).stderr.splitlines()) == 1


def test_the_readme_says_what_needs_a_model_in_memory():
    """That is what loads models and has no --offload, or refuses it."""
    (row,) = re.findall(r"larger than memory, all but ([^|]+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"))
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    options = {name: {word for param in command.params for word in param.opts} for name, command in commands.items()}
    expected = {name for name, known in options.items() if "--device" in known and "--offload" not in known}
    loads = {"--behaviour", "--probes", "--stress", "--relearning"}
    for option in loads - {"--behaviour"}:
        assert "where --offload leaves nothing" in refused("evaluate", "m", "e", "--recipe", "r", "--offload", option)
    assert not any("--offload" in known for known in options.values() if "--behaviour" in known)
    assert set(re.findall("`([^`]+)`", row)) == expected | loads


def test_without_a_command_there_is_help():
    result = call()
    assert result.exit_code == 2
    assert result.output.startswith("Usage: amnesia")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "found"), [("amnesia ev", "evaluate"), ("amnesia edit --tens", "--tensor-type")])
def test_a_shell_completes_commands_and_options(words, found):
    assert completed(words) == f"plain,{found}\n"


def completed(words):
    """What bash is told when it asks for completions of the last word."""
    asked = {"_AMNESIA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "amnesia"], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_a_shell_completes_models_by_name_and_by_path(tmp_path, monkeypatch):
    for name in ("out", "a b", ".hidden"):
        (tmp_path / name).mkdir()
    for name in ("own.gguf", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    every = "".join(f"plain,{name}\n" for name in ("smollm2-135m", "gemma-3-270m", "out", "own.gguf"))
    assert completed("amnesia chat ") == completed("amnesia verify out --base ") == every
    assert completed("amnesia diff own.gguf smol") == "plain,smollm2-135m\n"
    # Other words are completed as paths, by the shell itself.
    assert completed("amnesia chat smollm2-135m out/m") == "file,out/m\n"


def test_whatever_names_a_model_is_completed_as_one():
    for name in (name for commands in GROUPS.values() for name in commands):
        for each in main.get_command(click.Context(main), name).params:
            is_folder = isinstance(each.type, click.Path)  # What is undone or pushed is always one.
            names_model = each.name in ("model", "edited", "base") or (name, each.name) == ("diff", "other")
            if names_model and not is_folder and (name, each.name) != ("push", "base"):
                assert isinstance(each.type, ModelType), (name, each.name)
