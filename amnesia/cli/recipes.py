"""The commands `mine` and `init`: recipes from what a model knows, and recipes to fill in."""

from __future__ import annotations

from pathlib import Path

import click

from amnesia.cli.options import MODEL, alias_option, on_device_or_disk, popqa_option
from amnesia.cli.terminal import Terminal, check_file, echo, write_file
from amnesia.domain import Loading


@click.command()
@click.argument("model", type=MODEL)
@click.argument("entity")
@popqa_option
@alias_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="TOML file to write.")
@on_device_or_disk
def mine(
    model: str,
    entity: str,
    popqa: str | None,
    aliases: tuple[str, ...],
    output: Path,
    loading: Loading,
) -> None:
    """Write a recipe for ENTITY from what MODEL knows. It includes controls.

    Its facts are those of a PopQA table where one is given, else what the model itself says in most wordings.
    """
    check_file(output)
    from amnesia.facts.names import given_names

    given_names((entity, *aliases))
    from amnesia.mining.entity import mine_recipe
    from amnesia.sources.resolve import find_popqa

    mined = mine_recipe(
        model, entity, find_popqa(popqa) if popqa else None, Terminal(), aliases=aliases, loading=loading
    )
    write_file(output, mined.recipe.text.encode())
    echo(
        f"{len(mined.recipe.facts)} of {mined.n_targets} wordings about {mined.recipe.target.entity} and "
        f"{len(mined.recipe.controls)} of {mined.n_controls} facts about others are known; written to {output}"
    )


@click.command()
@click.argument("entity")
@click.option("--model", type=MODEL, default="smollm2-135m", show_default=True, help="The model that forgets.")
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
    check_file(output)
    write_file(output, text.encode())
    echo(f"written to {output}: put facts in the place of the examples, then `amnesia run {output} -o out`")
