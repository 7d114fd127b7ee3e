"""The command `record`: the erasure record of an output."""

from __future__ import annotations

from pathlib import Path

import click

from amnesia.cli.options import MODEL
from amnesia.cli.terminal import Terminal, check_file, echo, write_file
from amnesia.errors import InputError

SUFFIXES = (".html", ".json")


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write: .html or .json.")
@click.option(
    "--request",
    type=click.Path(path_type=Path),
    help="TOML file: id, reference, received, decision, next_test, undo_keeper, and any other field.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another report about OUT, of `evaluate -o` with --stress or --probes; repeatable.",
)
@click.option("--base", type=MODEL, help="The model that was edited: every byte is then compared with it.")
def record(folder: Path, output: Path, request: Path | None, reports: tuple[Path, ...], base: str | None) -> None:
    """Write the erasure record of OUT, as a page or JSON.

    It says what was asked, the scope, what was changed, tests, and what comes back. Every byte is proven first.

    The page prints well; a browser saves it as PDF. The same files give the same bytes, and no date is in it but those
    of the request.
    """
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output} is neither {' nor '.join(SUFFIXES)}: name the file so")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output} lies in the output that it is about, whose files are all declared: write it beside")
    check_file(output)
    from amnesia.files.strict_json import json_bytes
    from amnesia.record.making import make_record
    from amnesia.record.page import record_html

    found = make_record(folder, reports, request, base, Terminal())
    write_file(output, json_bytes(found.to_json()) if output.suffix == ".json" else record_html(found).encode())
    said = {None: "not judged by any report", True: "all bounds met", False: "bounds missed"}[found.accepted]
    back = [name for name in found.scope.entities if name in found.scope.restored]
    told = f" ({', '.join(back)}: taken back, nothing differs from before all edits)" if back else ""
    echo(f"{', '.join(found.scope.entities)}: {said}{told}; written to {output}")
