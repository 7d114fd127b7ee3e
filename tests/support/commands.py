"""Commands as a user gives them, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from amnesia.cli.main import main


def call(*arguments: object) -> Result:
    """The result of `amnesia ARGUMENTS`; an exception that the command does not handle is raised."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def done(*arguments: object) -> str:
    """What a command prints that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: object) -> str:
    """The one error line of a command that must fail, and print nothing else to stdout."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return last
