"""What commands say and write: progress, errors as one line with their exit code, JSON, files of results."""

from __future__ import annotations

import contextlib
import copy
import difflib
import errno
import functools
import importlib
import io
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from amnesia.errors import AmnesiaError, InputError, OutputError, in_one_line, os_errors_as, signal_of
from amnesia.files.disk import JOURNAL_NAME, check_replaceable, read_small, replace_file
from amnesia.files.interrupts import work_begins
from amnesia.files.processes import is_first, n_started, rank
from amnesia.files.staging import MANIFEST_NAME, check_outside_caches
from amnesia.plain_text import for_terminal
from amnesia.progress import SILENT, Progress, Tracker, n_bytes_read, rates

EXIT_BAD_INPUT = 2
_MAX_LINES = 2**26
_SHARING = ("run", "atlas")  # Commands that processes which were started together do together.
_WIDE = 72  # Columns of a terminal in which two texts are read side by side; set by hand.


class Terminal:
    """Progress on standard error: one line for each task, with a bar where somebody watches."""

    def notice(self, line: str) -> None:
        """A line of its own, above a bar that is shown."""
        if not sys.stderr.isatty():
            echo(line, err=True)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            echo(line, err=True)

    @contextlib.contextmanager
    def task(self, line: str, n_bytes: int | None = None) -> Generator[Progress]:
        """Show `line`, and count bytes up to `n_bytes`, prompts where it is None, and nothing where it is 0.

        At its end, it says the time; of layers that were left on the disk, also how fast these were read.
        """
        began, before, done, line = time.monotonic(), n_bytes_read(), 0, for_terminal(line)
        bar = None

        def count(steps: int) -> None:
            nonlocal done
            done += steps
            if bar is not None:
                bar.update(steps)

        with contextlib.ExitStack() as stack:
            if sys.stderr.isatty():
                from tqdm import tqdm

                shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "total": n_bytes}
                if n_bytes is None:
                    shown = {"unit": " prompts"}
                elif n_bytes == 0:
                    shown = {"bar_format": "{desc}"}
                bar = stack.enter_context(tqdm(desc=line, leave=False, file=sys.stderr, **shown))
            yield count
        seconds = time.monotonic() - began
        found = rates(n_bytes_read() - before, done if n_bytes is None else 0, seconds)
        echo(f"{line} ({', '.join((f'{seconds:.0f} s', *found))})", err=True)


def first_alone() -> Tracker:
    """The terminal for the process that speaks, and silence for those that work beside it."""
    return Terminal() if is_first() else SILENT


def echo(text: str = "", *, lines: bool = False, err: bool = False) -> None:
    """Print one line, or with `lines` several: all that commands say passes here.

    Names and texts that others wrote may stand in it, so that characters which steer the terminal are shown escaped.
    """
    click.echo(for_terminal(text, lines=lines), err=err)


class Commands(click.Group):
    """A group whose commands turn every error into one line and exit code 2, with its traceback under `--debug`.

    `groups` maps titles of help to names of commands, and these to modules that are imported when the command is asked
    for: the editor works for less than a second, of which imports that it does not need would be a good part.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Mapping[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._groups = groups
        self._homes = {name: home for commands in groups.values() for name, home in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._homes]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All commands by groups, each with the first sentence of what it says of itself, whole."""
        width = max(map(len, self._homes))
        for title, names in self._groups.items():
            commands = ((name, self.get_command(ctx, name)) for name in names)
            with formatter.section(title):
                rows = [(f"{name:<{width}}", command.get_short_help_str(500)) for name, command in commands if command]
                formatter.write_dl(rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._homes:
            return None
        command = getattr(importlib.import_module(self._homes[cmd_name]), cmd_name)
        watched = copy.copy(command)
        watched.callback = _saying_what_is_written(command.callback)
        return watched

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except KeyboardInterrupt as error:
            raise _interrupted(error) from error
        except click.UsageError as error:
            raise _misused(error, "amnesia") from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], self._homes, 1)
        if args[0] not in self._homes and near and not ctx.resilient_parsing:
            ctx.fail(f"no such command {args[0]!r}, did you mean {near[0]!r}?")
        if any(not arg or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            # As a path it would be the working directory.
            ctx.fail("an argument is empty, perhaps a variable of the shell that is not set: give it a value")
        rank()  # Raises for a number that no process has.
        if n_started() > 1 and args[0] in self._homes and args[0] not in _SHARING:
            raise InputError(
                f"{n_started()} processes were started together, which share the work of "
                f"{' and '.join(_SHARING)} alone: start `amnesia {args[0]}` without torchrun or accelerate launch"
            )
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **settings: Any) -> Any:
        prepare_streams()
        return super().main(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _interrupted(error) from error
        except click.UsageError as error:
            raise _misused(error, " ".join(filter(None, ("amnesia", ctx.invoked_subcommand)))) from error
        except (click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:  # Panics of libraries in Rust are no Exception.
            if isinstance(error, SystemExit) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            if ctx.params["debug"]:
                echo("".join(traceback.format_exception(error)).rstrip(), lines=True, err=True)
            who = ""
            with contextlib.suppress(InputError):  # It may be what is told.
                who = "" if is_first() else f"process {rank()}: "
            with contextlib.suppress(OSError):  # The terminal may be gone.
                echo(f"error: {who}{_line_of(error)}", err=True)
            ctx.exit(EXIT_BAD_INPUT)


# What the system refuses it names well enough itself, but not what to do.
_REMEDY = "check this place, or choose another"
_REMEDIES = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EACCES: "check its permissions, or choose another place",
    errno.ENOSPC: "free space, or choose another disk",
}


def _line_of(error: BaseException) -> str:
    if isinstance(error, AmnesiaError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'system'}: {error.strerror}: {_REMEDIES.get(error.errno, _REMEDY)}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # That of torch is of its own.
        return f"out of memory ({in_one_line(error)}): use --dtype bfloat16, --device auto, or a smaller model"
    return (
        f"{type(error).__name__} ({in_one_line(error)}) where none was expected: repeat the command as "
        "`amnesia --debug ...`, and report what it shows"
    )


def _misused(error: click.UsageError, asked: str) -> click.exceptions.ClickException | click.exceptions.Exit:
    """Say in one line what of the command `asked` cannot be understood; returns what ends it, which may be help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    said = " ".join(error.format_message().split()).rstrip(".")
    said = said[:1].lower() + said[1:].replace("'. (", "' (")
    echo(f"error: {said}: see `{asked if error.ctx is None else error.ctx.command_path} --help`", err=True)
    return click.exceptions.Exit(EXIT_BAD_INPUT)


def _interrupted(error: KeyboardInterrupt) -> click.exceptions.Exit:
    """Say what an interrupted command has left on the disk; returns what ends it."""
    notes = getattr(error, "__notes__", ())
    with contextlib.suppress(OSError):  # The terminal may be gone.
        echo(f"interrupted: {'; '.join(notes) or 'nothing was written'}", err=True)
    return click.exceptions.Exit(128 + signal_of(error))


@contextlib.contextmanager
def noted_on_interrupt(line: str) -> Generator[None]:
    """When the block is interrupted, let the command end with `line` about what is left of its work."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(line)
        raise


def _saying_what_is_written(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command, whose interruption gets a note about what it has written, by looking."""

    @functools.wraps(callback)
    def command(*arguments: Any, **options: Any) -> Any:
        if options.get("in_place"):
            look = _in_place(Path(options.get("model") or options["edited"]), is_undo="edited" in options)
        else:
            look = _output(options.get("output"))
        work_begins()
        try:
            return callback(*arguments, **options)
        except KeyboardInterrupt as error:
            if (line := look()) is not None and not hasattr(error, "__notes__"):
                error.add_note(line)
            raise

    return command


def _output(place: Path | None) -> Callable[[], str | None]:
    """What says later whether a command has written `place` since now."""
    before = _state(place)
    return lambda: None if _state(place) == before else f"{place} was written"


def _in_place(model: Path, *, is_undo: bool) -> Callable[[], str | None]:
    """What says later what became of a model that is edited, or restored, where it lies.

    An edit is made when its manifest is there and its journal is gone. An older change that was interrupted is taken
    back first, which may bring an older manifest back: it is known by its number and its time.
    """
    aside: list[Path] = []
    with contextlib.suppress(OSError):  # No folder can have such a name, which the command says.
        model = model.parent if model.is_file() else model
        aside = [*model.glob(f".amnesia-*/*/{MANIFEST_NAME}")]
    manifest, journal = model / MANIFEST_NAME, model / JOURNAL_NAME
    older = [*map(_state, (manifest, *aside))]
    was_interrupted = os.path.lexists(journal)

    def look() -> str | None:
        if os.path.lexists(journal):
            return f"{model} is changed in part: `amnesia undo {shlex.quote(str(model))} --in-place` takes that back"
        now = _state(manifest)
        if was_interrupted and (is_undo or not now or now in older):
            return f"an interrupted change of {model} was taken back: its files are as before it"
        if now == older[0]:
            return None
        if is_undo:
            return f"the edit of {model} was taken back: its files are as before it"
        return f"the edit of {model} is complete: `amnesia undo {shlex.quote(str(model))} --in-place` takes it back"

    return look


def _state(place: Path | None) -> list[tuple[str, int, int]]:
    """What is at a place that a command writes: names, numbers and times of change."""
    try:
        if place is None or not place.exists():
            return []
    except OSError:  # No file can have such a name, which the command says.
        return []
    found = [place, *(place.iterdir() if place.is_dir() else ())]
    return [(path.name, status.st_ino, status.st_mtime_ns) for path in found for status in (path.lstat(),)]


def prepare_streams() -> None:
    """Make standard output and error take any text, and exist; a standard input that is closed is an empty one.

    What their encoding lacks is shown escaped, so that no work ends in front of its last line. The number of one that
    the caller has closed is taken, lest the next file that is opened gets it, and with it what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: Any, *, in_line: bool = False) -> None:
    """Print JSON in ASCII: in any encoding it is the same, and no character in it steers a terminal."""
    indent = None if in_line else 2
    click.echo(json.dumps(document, indent=indent, allow_nan=False).replace("\x7f", "\\u007f"))


@contextlib.contextmanager
def growing(titles: Sequence[str]) -> Generator[Callable[[Sequence[str]], None]]:
    """Show texts with their titles while they grow: side by side, or below each other where there is little room.

    Where standard output is no terminal, they are printed when they are done. The block gets what shows them.
    """
    texts = [""] * len(titles)

    def show(grown: Sequence[str]) -> None:
        texts[:] = (for_terminal(text.rstrip("\ufffd").strip(), lines=True) for text in grown)

    if not sys.stdout.isatty():
        try:
            yield show
        finally:
            for title, text in zip(titles, texts, strict=True):
                click.echo(f"{for_terminal(title)}: {text}")
        return
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(highlight=False)
    heads = [Text(for_terminal(title), "bold") for title in titles]

    def drawn() -> RenderableType:
        bodies = [Text(text) for text in texts]
        if console.width < _WIDE:
            return Group(*(part for pair in zip(heads, bodies, strict=True) for part in pair))
        table = Table(
            *(Column(head, ratio=1, overflow="fold") for head in heads), box=None, expand=True, padding=(0, 2, 0, 0)
        )
        table.add_row(*bodies)
        return table

    with Live(get_renderable=drawn, console=console, refresh_per_second=12):
        yield show


def write_file(path: Path, content: bytes) -> None:
    """Write a result file so that an older one is replaced whole or not at all."""
    with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
        replace_file(path, content)


def check_file(path: Path | None, check: Callable[[Path, bytes], None] | None = None) -> None:
    """Raise OutputError for a result that cannot be written, or must not: minutes of work must not end in front of it.

    An older file is replaced where `check`, which gets its content, raises nothing, and without it no file is. What a
    manifest is called is never a result: the edit beside it could not be taken back.
    """
    if path is None:
        return
    check_outside_caches(path)
    if path.name == MANIFEST_NAME:
        raise OutputError(f"{path} has the name of manifests, which say how an edit is taken back: choose another file")
    with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(path)
        if not path.exists() or not path.stat().st_size:
            return
        content = read_small(path, _MAX_LINES)
    if check is None:
        raise OutputError(f"{path} exists, and may have been mended by hand: choose another file, or remove it")
    check(path, content)


def lines_of(path: Path) -> list[str]:
    with os_errors_as(InputError, f"prompts {path} cannot be read", "give a file with a prompt on each line"):
        content = read_small(path, _MAX_LINES)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompts {path} cannot be read as UTF-8 text: give a file with a prompt on each line"
        ) from error
    return [line for line in lines if line.strip()]
