"""The command `init`: a recipe to fill in."""

from __future__ import annotations

from pathlib import Path

import click

from amnesia.cli.terminal import check_file, echo, write_file


@click.command()
@click.argument("entity")
@click.option("--model", default="smollm2-135m", show_default=True, help="The model that forgets.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="TOML file to write. Default: print it.")
def init(entity: str, model: str, output: Path | None) -> None:
    """Write a recipe for ENTITY to fill in. Every key is there, with what it means and its default.

    `mine` makes one that needs no filling in.
    """
    from amnesia.mining.template import template

    text = template(entity, model)
    if output is None:
        echo(text.rstrip("\n"), lines=True)
        return
    check_file(output, replaceable=False)
    write_file(output, text.encode())
    echo(f"written to {output}: put facts in the place of the examples, then `amnesia run {output} -o out`")
