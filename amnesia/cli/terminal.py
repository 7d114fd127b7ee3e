"""What commands say and write: progress, errors as one line with their exit code, JSON, files of results."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import click

from amnesia.errors import AmnesiaError, InputError, OutputError, os_errors_as
from amnesia.files.disk import check_replaceable, read_small, replace_file
from amnesia.files.strict_json import json_bytes
from amnesia.progress import Progress

EXIT_BAD_INPUT = 2
_MAX_LINES = 2**26


class Terminal:
    """Progress on standard error: one line for each task, with a bar where somebody watches."""

    def notice(self, line: str) -> None:
        click.echo(line, err=True)

    @contextlib.contextmanager
    def task(self, line: str, n_bytes: int | None = None) -> Generator[Progress]:
        """Show `line`, and count bytes up to `n_bytes`, prompts where it is None, and nothing where it is 0."""
        began = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "total": n_bytes}
            if n_bytes is None:
                shown = {"unit": " prompts"}
            elif n_bytes == 0:
                shown = {"bar_format": "{desc}"}
            with tqdm(desc=line, leave=False, file=sys.stderr, **shown) as bar:
                yield bar.update
        else:
            yield lambda count: None
        click.echo(f"{line} ({time.monotonic() - began:.0f} s)", err=True)


class Commands(click.Group):
    """A group whose commands turn the package's errors into one line and exit code 2.

    `late` maps names of commands to modules that are imported when the command is asked for: the editor works for less
    than a second, of which imports that it does not need would be a good part.
    """

    def __init__(self, *args: Any, late: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._late = late

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._late})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._late:
            return getattr(importlib.import_module(self._late[cmd_name]), cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AmnesiaError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except OSError as error:
            # What the system refuses (a permission, a name that is too long) it names well enough itself.
            if error.errno is None or error.errno == errno.EPIPE:
                raise
            click.echo(f"error: {error.filename or 'system'}: {error.strerror}", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
            ctx.exit(130)


def print_json(document: Any) -> None:
    click.echo(json_bytes(document).decode(), nl=False)


def write_file(path: Path, content: bytes) -> None:
    """Write a result file so that an older one is replaced whole or not at all."""
    with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
        replace_file(path, content)


def check_file(path: Path | None, *, replaceable: bool = True) -> None:
    """Raise OutputError for a result that cannot be written, or must not: minutes of work must not end in front of it.

    An older one is replaced if it is a JSON file of this package and `replaceable`, and nothing else is.
    """
    if path is None:
        return
    with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(path)
        if not path.exists() or not path.stat().st_size or (replaceable and _is_result(read_small(path, _MAX_LINES))):
            return
    raise OutputError(
        f"{path} exists, and {'is no result of amnesia' if replaceable else 'may have been mended by hand'}: choose "
        "another file, or remove it"
    )


def _is_result(content: bytes) -> bool:
    """Whether a JSON file lists entities, or edits of one: what `localize` and `extract` write."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and bool({"entities", "edits"} & document.keys())


def lines_of(path: Path) -> list[str]:
    with os_errors_as(InputError, f"prompts {path} cannot be read", "give a file with a prompt on each line"):
        content = read_small(path, _MAX_LINES)
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompts {path} cannot be read as UTF-8 text: give a file with a prompt on each line"
        ) from error
    return [line for line in lines if line.strip()]
