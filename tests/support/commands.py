"""Commands as a user gives them, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from click.testing import CliRunner, Result

from amnesia.cli.main import main
from support.folders import ROOT


def call(*arguments: object, given: str | bytes | None = None) -> Result:
    """The result of `amnesia ARGUMENTS`, `given` on standard input; an exception that it does not handle is raised."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=given, catch_exceptions=False)


def succeed(*arguments: object) -> Result:
    """The result of a command that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def done(*arguments: object) -> str:
    """What a command prints that must succeed."""
    return succeed(*arguments).stdout


def refused(*arguments: object) -> str:
    """The one error line of a command that must fail, and print nothing else to stdout."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return last


def in_process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own, with pipes for what it prints; interrupts reach it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Where the tests run in the background of a shell, interrupts are ignored, which a child would inherit.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nimport runpy; "
    code += "runpy.run_module('amnesia', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **{**pipes, **options})
