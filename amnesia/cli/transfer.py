"""The command that makes an edit again on a relative of its model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from amnesia.cli.options import MODEL, as_json, force_weak_option, on_device_or_disk
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.domain import FORMATS, Format, Loading
from amnesia.errors import InputError
from amnesia.recipe_file import load_recipe

EXIT_DOES_NOT_HOLD = 1


@click.command()
@click.argument("edit", type=click.Path(path_type=Path))
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Default: gguf for .gguf, else safetensors.")
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="Facts. Default: those of EDIT.")
@click.option("--entity", help="Which entity of a recipe that lists several.")
@force_weak_option
@on_device_or_disk
@as_json
def transfer(
    edit: Path,
    model: str,
    output: Path,
    format_name: Format | None,
    recipe_path: Path | None,
    entity: str | None,
    force: bool,
    loading: Loading,
    json_output: bool,
) -> None:
    """Make an edit again on a relative of its model.

    MODEL is a fine-tuned or quantized relative of the model that the edit was made for. EDIT is an output folder, its
    amnesia.json, or a file of `extract -o`. When the edit does not answer to its name in MODEL, or does not make it
    forget, nothing is written, unless --force says so. Exits with 1 then, and when the saved files miss a bound.
    """
    from amnesia import transfer as transferring
    from amnesia.edits import ColumnEdit
    from amnesia.report import tables

    if entity is not None and recipe_path is None:
        raise InputError("--entity picks the facts of a recipe: give --recipe, or drop it")
    recipe = None if recipe_path is None else load_recipe(recipe_path, entity)
    settings = transferring.TransferSettings()
    result = transferring.transfer(
        edit, model, output, Terminal(), format=format_name, recipe=recipe, force=force, loading=loading
    )
    if json_output:
        print_json(
            {
                "output": None if result.output is None else str(result.output),
                "holds": result.holds,
                "answers": [
                    {"entity": row.entity, "edit": str(row.edit), "own": row.own, "other": row.other}
                    for row in result.replies
                ],
                "formats": {} if result.run is None else result.run.reports,
            }
        )
    else:
        for row in result.replies:
            others = f"{row.other:.2f} at most to {settings.n_names} other names"
            # What a cell answers has no scale of its own.
            own = "1" if isinstance(row.edit, ColumnEdit) else f"{row.own:.2f}"
            echo(f"{row.edit} answers {own} to {row.entity}, and {others}")
        if not result.answers:
            echo("the edit does not answer to its name in this model, which may be no near relative of its own")
        if result.run is not None:
            echo(tables.run_text(result.run.extraction, result.run.evaluations, result.run.accepted), lines=True)
        echo(f"written to {result.output}" if result.output is not None else "nothing was written")
    if not result.holds:
        sys.exit(EXIT_DOES_NOT_HOLD)
