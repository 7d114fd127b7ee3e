"""The command that puts many edited models side by side."""

from __future__ import annotations

from pathlib import Path

import click

from amnesia.cli.options import MODEL, as_json, on_device_or_disk, popqa_option
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.domain import Loading
from amnesia.errors import InputError

SUITES = ("own", "popqa", "rwku")


@click.command()
@click.argument("model", type=MODEL)
@click.argument("edited", type=MODEL, nargs=-1)
@click.option(
    "--suite",
    type=click.Choice(SUITES),
    default="own",
    show_default=True,
    help="own: facts that ship with amnesia; popqa: of --popqa; rwku: the files of RWKU in --data.",
)
@click.option("--entity", "entities", multiple=True, required=True, help="What was to be forgotten; may be repeated.")
@popqa_option
@click.option("--data", help="With --suite rwku: its published files, a folder or a Hub id (jinzhuoran/RWKU@REVISION).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder for bench.json and bench.html.")
@on_device_or_disk
@as_json
def bench(
    model: str,
    edited: tuple[str, ...],
    suite: str,
    entities: tuple[str, ...],
    popqa: str | None,
    data: str | None,
    output: Path | None,
    loading: Loading,
    json_output: bool,
) -> None:
    """Compare edits by any program under one frozen contract.

    Each EDITED is a model or an adapter for MODEL.
    """
    if (suite == "popqa") != (popqa is not None):
        raise InputError("--suite popqa and --popqa belong together: give both, or neither")
    if (suite == "rwku") != (data is not None):
        raise InputError("--suite rwku and --data belong together: give both, or neither")
    from amnesia.facts.names import given_names

    given_names(entities)
    from amnesia import compare
    from amnesia.bench import page
    from amnesia.bench.run import run_bench
    from amnesia.bench.rwku import read_rwku
    from amnesia.bench.rwku_files import NEEDED, PATTERNS
    from amnesia.bench.suites import fact_suite
    from amnesia.sources.resolve import find_data_set, find_popqa

    if output is not None:
        compare.check_report(output, (model, *edited))
    if data is not None:
        folder, ref = find_data_set(data, PATTERNS, f"{NEEDED[0]}.json")
        chosen = read_rwku(folder, entities, None if ref is None else str(ref))
    else:
        chosen = fact_suite(suite, None if popqa is None else find_popqa(popqa), entities)
    found = run_bench(model, edited, chosen, Terminal(), loading)
    if output is not None:
        page.write_bench(found, output)
    if json_output:
        print_json(page.bench_document(found))
    else:
        echo(page.bench_text(found), lines=True)
