"""Commands as a user gives them, in this process, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from amnesia.cli import main


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
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def files_in(folder: Path) -> dict[str, bytes]:
    """Name → content of all files under `folder`, without what a client of the Hub keeps for itself."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
