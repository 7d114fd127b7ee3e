"""The commands that do the whole job: run and demo."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnesia.cli.options import MODEL, alias_option, as_json, force_weak_option, on_device_or_disk, popqa_option
from amnesia.cli.results import replacing, result_bytes
from amnesia.cli.terminal import (
    Terminal,
    check_file,
    echo,
    first_alone,
    noted_on_interrupt,
    print_json,
    write_file,
)
from amnesia.domain import DEFAULT_LOADING, Loading, ModelRef, name_key
from amnesia.errors import InputError
from amnesia.files.processes import is_first, n_started
from amnesia.files.staging import PAGE_NAME
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe

if TYPE_CHECKING:
    from amnesia.pipeline import RunResult

EXIT_REJECTED = 1


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--entity", help="Which entity of a recipe that lists several; without RECIPE, the entity to forget.")
@click.option(
    "--entities",
    "list_file",
    type=click.Path(path_type=Path),
    help="Text file with many entities, a name or a recipe's path on each line; needs no RECIPE.",
)
@click.option("--model", type=MODEL, help="The model that forgets; in place of the one that RECIPE names.")
@popqa_option
@alias_option
@force_weak_option
@click.option(
    "--front",
    type=click.Path(path_type=Path),
    help="JSON file for more edits, from mild to strong and on few to many columns, for `edit --edit FILE --pick N`.",
)
@on_device_or_disk
@as_json
def run(
    recipe: Path | None,
    output: Path,
    entity: str | None,
    list_file: Path | None,
    model: str | None,
    popqa: str | None,
    aliases: tuple[str, ...],
    force: bool,
    front: Path | None,
    loading: Loading,
    json_output: bool,
) -> None:
    """Choose an edit, save it, ask the saved files, and report. RECIPE is a TOML file.

    With --model another model forgets, by the same facts; what the recipe sets that does not fit that model is said.
    Without RECIPE, --model and --entity name the two, and a recipe is made as `mine` does: nothing else is needed.

    With --entities, each entity of a list is edited and measured alone, then all of them in one edit, with a summary.
    The same command goes on where it was killed, and several processes that give it share the entities; --force lets
    weak edits be written, and replaces nothing. Without, processes that `torchrun` starts together hold the model
    together, each a part of every large matrix.

    Exits with 1 when the recipe's [accept] bounds are missed, or when no handle on the entity or only a weak one is
    found; then nothing is written.
    """
    if list_file is not None:
        if recipe is not None or entity or aliases:
            raise InputError("--entities names the entities itself: drop RECIPE, --entity and --alias")
        if front is not None:
            raise InputError("--front is for one entity: drop --entities or --front")
        _run_list(list_file, output, model, popqa, force, loading, json_output)
        return
    if front is not None and front.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{front} lies in the output, whose files are all declared: write it beside")
    check_file(front, replacing("run --front"))
    if recipe is not None:
        if popqa or aliases:
            raise InputError("RECIPE names the facts itself: drop --popqa and --alias")
        _run(load_recipe(recipe, entity), output, force, loading, json_output, model, front)
        return
    if model is None or entity is None:
        raise InputError("give a RECIPE, or --model and --entity")
    from amnesia import pipeline
    from amnesia.files.staging import check_output
    from amnesia.sources.resolve import find_popqa

    check_output(output, force=force)
    result = pipeline.run_mined(
        model,
        entity,
        find_popqa(popqa) if popqa else None,
        output,
        first_alone(),
        aliases=aliases,
        force=force,
        loading=_split(loading),
        wide=front is not None,
    )
    _show_run(result, model, json_output, front)


def _run_list(
    path: Path, output: Path, model: str | None, popqa: str | None, force: bool, loading: Loading, json_output: bool
) -> None:
    from amnesia.queue.listed import model_of, read_list

    listed = read_list(path)
    model_of(listed, model)
    if popqa and all(row.recipe is not None for row in listed):
        raise InputError("--popqa is for names, and the list has recipes alone: drop it")
    from amnesia.queue.summary import summary_text
    from amnesia.queue.work import run_queue
    from amnesia.sources.resolve import find_popqa

    with noted_on_interrupt(f"what is finished in {output} stays: the same command goes on"):
        found = run_queue(
            listed, model, find_popqa(popqa) if popqa else None, output, Terminal(), force=force, loading=loading
        )
    if not is_first():
        return  # Of processes that were launched together, one speaks; one that fails would end the others.
    if json_output:
        print_json(found.to_json())
    else:
        echo(summary_text(found), lines=True)
        echo()
        echo(f"written to {output}")
    if not found.accepted:
        sys.exit(EXIT_REJECTED)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("amnesia-demo"), show_default=True)
@click.option("--entity", default="steve_jobs", show_default=True, help="Name of a shipped recipe; see --list.")
@click.option("--list", "list_only", is_flag=True, help="List the shipped recipes of the demo model and stop.")
@force_weak_option
@as_json
def demo(output: Path, entity: str, list_only: bool, force: bool, json_output: bool) -> None:
    """Make SmolLM2-135M forget something, with nothing to prepare. It is `run` on a shipped recipe."""
    shipped = {path.stem: path for path in sorted((_recipes_folder() / "smollm2-135m").glob("*.toml"))}
    if list_only:
        echo("\n".join(shipped), lines=True)
        return
    name = name_key(entity).replace(" ", "_")
    if name not in shipped:
        raise InputError(f"no shipped recipe {entity!r}: choose one of {', '.join(shipped)}")
    _run(load_recipe(shipped[name]), output, force, DEFAULT_LOADING, json_output)


def _run(
    recipe: Recipe,
    output: Path,
    force: bool,
    loading: Loading,
    json_output: bool,
    model: str | None = None,
    front: Path | None = None,
) -> None:
    from amnesia import pipeline

    wide = front is not None
    if wide and (fixed := "[[cells]]" if recipe.edit.cells else recipe.edit.method == "single" and 'method = "single"'):
        raise InputError(f"--front is for directions to choose from, and the recipe has {fixed}: drop one of the two")
    result = pipeline.run(recipe, output, first_alone(), model=model, force=force, loading=_split(loading), wide=wide)
    _show_run(result, model or str(recipe.model), json_output, front)


def _split(loading: Loading) -> Loading:
    """Processes that were started together hold one model together."""
    return replace(loading, split=n_started() > 1)


def _show_run(result: RunResult, model: str, json_output: bool, front: Path | None = None) -> None:
    from amnesia.live.split import end
    from amnesia.report import document as report
    from amnesia.report import tables

    end()
    if not is_first():
        return  # One that fails would end the others.
    if front is not None:
        write_file(front, result_bytes("run --front", report.front_json(result.extraction)))
    if json_output:
        document = {
            "output": None if result.output is None else str(result.output),
            "accepted": result.accepted,
            "extraction": report.extraction_json(result.extraction),
            "formats": result.reports,
        }
        print_json(document)
    else:
        echo(tables.run_text(result.extraction, result.evaluations, result.accepted), lines=True)
        written = [str(path) for path in (result.output, front) if path is not None]
        if written:
            echo()
            echo(f"written to {' and '.join(written)}")
            echo(_next_steps(model, result, front), lines=True)
    if not result.accepted:
        sys.exit(EXIT_REJECTED)


def _next_steps(model: str, result: RunResult, front: Path | None) -> str:
    """Commands that go on from what was written, each with what it does; `model` is what the run was given."""
    from amnesia.sources.resolve import is_local

    if result.reports and not is_local(model):  # With the commit that was edited.
        named = next(iter(result.reports.values()))["model"]
        model = str(ModelRef(named["id"], named["revision"]))
    model = shlex.quote(model)
    steps = [] if result.output is None else _steps_from(result.output, model, result)
    if front is not None:
        chosen = [n for n, row in enumerate(result.extraction.front, 1) if row.point.chosen]
        number = "N" if len(result.extraction.front) > 1 else "1"
        other = shlex.quote(str(_not_an_option(front.with_name(f"{front.stem}-{number}"))))
        picked = f"edit {model} --edit {shlex.quote(str(_not_an_option(front)))} --pick {number} -o {other}"
        steps.append((picked, f"write one of its {len(result.extraction.front)} edits; {chosen[0]} is the chosen one"))
    width = max(len(command) for command, _ in steps)
    lines = ["next:", *(f"  amnesia {command:<{width}}  # {what}" for command, what in steps)]
    if result.output is not None:
        folders = (result.output / name if len(result.reports) > 1 else result.output for name in result.reports)
        lines.append(f"report: {_not_an_option(next(folders)) / PAGE_NAME}")
    return "\n".join(lines)


def _not_an_option(path: Path) -> Path:
    """A path that no command takes for an option."""
    return path.absolute() if str(path).startswith("-") else path


def _steps_from(output: Path, model: str, result: RunResult) -> list[tuple[str, str]]:
    """Commands that go on from an output, with what each does."""
    output = _not_an_option(output)
    whole = shlex.quote(str(output))
    steps = [
        (f"chat {model} {whole}", "ask the model and its edited self at once"),
        (f"ui {model}", "try edits for any name in a page"),
        (f"verify {whole} --base {model}", "prove every byte"),
    ]
    if models := [name for name in result.reports if name in ("safetensors", "gguf")]:  # Others are left off.
        edited = output if len(result.reports) == 1 else output / models[0]
        restored = output.with_name(f"{output.name}-original")
        steps.append((f"undo {shlex.quote(str(edited))} -o {shlex.quote(str(restored))}", "every byte back as it was"))
    return steps


def _recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())
