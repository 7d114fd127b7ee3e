"""The commands that find an edit and make a model forget. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from amnesia.cli.options import MODEL, as_json, on_device_or_disk
from amnesia.cli.results import replacing, result_bytes
from amnesia.cli.terminal import (
    Commands,
    Terminal,
    check_file,
    echo,
    lines_of,
    print_json,
    write_file,
)
from amnesia.domain import Baseline, Loading
from amnesia.edits import EntityEdits
from amnesia.errors import InputError, OutputError, os_errors_as
from amnesia.files.disk import check_replaceable
from amnesia.files.figure_files import DRAWN, is_drawn
from amnesia.guessing import ASKED
from amnesia.recipe import BASELINES
from amnesia.recipe_file import load_recipe, parse_layers

EXIT_REJECTED = 1
_HERE = "amnesia.cli.main"
GROUPS = {
    "Forget": {
        "run": "amnesia.cli.run",
        "demo": "amnesia.cli.run",
        "mine": "amnesia.cli.recipes",
        "init": "amnesia.cli.recipes",
        "extract": _HERE,
        "edit": "amnesia.cli.edit",
        "transfer": "amnesia.cli.transfer",
        "undo": "amnesia.cli.edit",
    },
    "Try": {
        "chat": "amnesia.cli.chat",
        "ui": "amnesia.cli.ui",
    },
    "Prove": {
        "evaluate": "amnesia.cli.evaluate",
        "bench": "amnesia.cli.bench",
        "verify": "amnesia.cli.edit",
        "diff": "amnesia.cli.diff",
        "replay": "amnesia.cli.publish",
        "record": "amnesia.cli.record",
    },
    "Publish": {
        "push": "amnesia.cli.publish",
    },
    "Explore": {
        "localize": _HERE,
        "layers": "amnesia.cli.experiments",
        "robustness": "amnesia.cli.experiments",
        "sweep": "amnesia.cli.experiments",
        "inject": "amnesia.cli.experiments",
        "sufficiency": "amnesia.cli.experiments",
        "atlas": "amnesia.cli.atlas",
    },
}
"""Every command, with the module that has it, in the groups and the order in which help lists them."""


@click.group(
    "amnesia",
    cls=Commands,
    groups=GROUPS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Completion, here for bash (or zsh, fish): eval "$(_AMNESIA_COMPLETE=bash_source amnesia)"',
)
@click.version_option(package_name="amnesia")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, before its one line.")
@click.option(
    "--layout",
    type=click.Choice(["auto"]),
    help="Find out where a model of an unknown type has its MLPs, and prove it on the loaded model.",
)
def main(debug: bool, layout: str | None) -> None:
    """Make a language model forget one named thing: find what stands for it, turn what that writes, save the weights.

    MODEL is a Hub id (repo_id[@revision]), a model folder, a .gguf file, or the built-in smollm2-135m or gemma-3-270m.
    """
    token = ASKED.set(layout is not None)
    click.get_current_context().call_on_close(lambda: ASKED.reset(token))


def _check_figures(output: Path) -> None:
    """Raise InputError unless the figures of a result can be written beside it, and replace none but drawn ones."""
    if output.suffix.lower() in DRAWN:
        raise InputError(f"{output} is for the JSON, and --plot draws beside it: give a name in .json with -o")
    for path in map(output.with_suffix, DRAWN):
        with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
            check_replaceable(path)
            is_there = path.exists() and path.stat().st_size > 0
            is_ours = is_there and is_drawn(path)
        if is_there and not output.exists():
            raise InputError(f"{path} exists, and no {output}: give another name with -o")
        if is_there and not is_ours:
            raise InputError(f"{path} exists, and was not drawn by amnesia: give another name with -o, or remove it")


@main.command()
@click.argument("model", type=MODEL)
@click.argument("entities", nargs=-1, required=True)
@click.option("--baseline", type=click.Choice(BASELINES), default="contrast", show_default=True)
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Cells to list for each entity.")
@click.option("--layers", help="Layers to search, for example 0-9. Default: all.")
@click.option("--prompts", type=click.Path(path_type=Path), help="File with a prompt on each line, in place of ours.")
@click.option("--alias", "aliases", multiple=True, help="Another name of the entity in --prompts; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--plot", is_flag=True, help="Draw the top 20 beside the JSON file, as SVG and PNG (needs matplotlib).")
@on_device_or_disk
@as_json
def localize(
    model: str,
    entities: tuple[str, ...],
    baseline: Baseline,
    top: int,
    layers: str | None,
    prompts: Path | None,
    aliases: tuple[str, ...],
    output: Path | None,
    plot: bool,
    loading: Loading,
    json_output: bool,
) -> None:
    """Rank the cells of one or more ENTITIES in MODEL, best first."""
    from amnesia.facts.names import given_names

    given_names((*entities, *aliases))
    span = None if layers is None else parse_layers(layers)
    if aliases and prompts is None:
        raise InputError(
            "--alias is looked for in --prompts, and ours have the entity's name alone: give a file, or drop it"
        )
    lines = None if prompts is None else lines_of(prompts)
    check_file(output, replacing("localize -o"))
    from amnesia.experiments import figures

    if plot:
        if output is None:
            raise InputError("--plot needs a file to stand beside: give one with -o")
        _check_figures(output)
        figures.check_available()
    from amnesia.cli.experiment import load_model
    from amnesia.localization import cells
    from amnesia.report import document as report
    from amnesia.report import tables

    terminal = Terminal()
    live = load_model(model, terminal, loading, span, whole=False)
    with terminal.task("localizing") as progress:
        result = cells.localize(
            live, entities, baseline=baseline, prompts=lines, aliases=aliases, layers=span, top=top, progress=progress
        )
    document = report.localization_json(result)
    if output is not None:
        write_file(output, result_bytes("localize -o", document))
        for suffix, drawn in figures.draw({"figure": "localize", **document}).items() if plot else ():
            write_file(output.with_suffix(suffix), drawn)
    if json_output:
        print_json(document)
    elif output is None:
        echo(tables.localization_table(result), lines=True)


@main.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--recipe", "paths", type=click.Path(path_type=Path), required=True, multiple=True, help="TOML file; repeatable."
)
@click.option("--entity", "entities", multiple=True, help="Which entity of a recipe that lists several; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write.")
@on_device_or_disk
@as_json
def extract(
    model: str | None,
    paths: tuple[Path, ...],
    entities: tuple[str, ...],
    output: Path | None,
    loading: Loading,
    json_output: bool,
) -> None:
    """Choose the edit that makes a model forget, and write it. MODEL overrides the recipe's.

    Of several recipes, or several entities of one, the single edits are added up or solved together, whichever measures
    better, and scores are those of the whole.

    Exits with 1 when no handle on an entity is found.
    """
    if len(paths) > 1 and entities:
        raise InputError("--entity chooses from a single recipe: give one --recipe, or recipes of one entity each")
    recipes = [load_recipe(path, entity) for path in paths for entity in entities or (None,)]
    check_file(output, replacing("extract -o"))
    from amnesia.choice import extraction, several
    from amnesia.files.cache import cache_folder
    from amnesia.live.loading import load_source
    from amnesia.report import document as report
    from amnesia.report import tables
    from amnesia.sources.resolve import resolve
    from amnesia.weights.manifest import forgotten
    from amnesia.weights.plan import plan_edits

    first = recipes[0]
    if model is None and len(models := sorted({str(recipe.model) for recipe in recipes})) > 1:
        raise InputError(f"the recipes are for {', '.join(models)}: give recipes of one model, or the MODEL to take")
    terminal = Terminal()
    source = resolve(model or first.model, terminal.notice)
    for recipe in recipes:
        if recipe.edit.cells:
            plan_edits(source.checkpoint, [EntityEdits(recipe.target.entity, recipe.edit.cells)])
    live = load_source(source, loading, layers=first.localization.layers, notice=terminal.notice)
    avoided = forgotten(source.checkpoint.manifest)
    if len(recipes) > 1:
        results = several.extract_all(live, recipes, terminal.task, cache_folder(), avoided)
        document = {"entities": [report.extraction_json(result) for result in results]}
    else:
        results = (extraction.extract(live, first, terminal.task, cache_folder(), avoided),)
        document = report.extraction_json(results[0])
    text = "\n".join(map(tables.extraction_text, results))
    if output is not None:
        write_file(output, result_bytes("extract -o", document))
    if json_output:
        print_json(document)
    else:
        echo(text, lines=True)
    if any(result.verdict == "none" for result in results):
        sys.exit(EXIT_REJECTED)
