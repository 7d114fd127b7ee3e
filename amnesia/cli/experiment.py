"""One run of an experiment's command: its options, its model and cells, and a folder for its numbers and figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnesia.cli.options import (
    as_json,
    cells_option,
    entity_option,
    force_option,
    on_device,
    options,
    output_option,
    plots_option,
    recipe_option,
    top_option,
)
from amnesia.cli.terminal import Terminal, print_json
from amnesia.domain import Cell, Loading, ModelRef
from amnesia.experiments import figures
from amnesia.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from amnesia.live.model import LiveModel


class Experiment:
    """One run of a command: its progress on the terminal, its model, and where its results go."""

    def __init__(
        self,
        name: str,
        output: Path | None,
        plots: bool,
        force: bool,
        loading: Loading,
        json_output: bool,
    ) -> None:
        from amnesia.files.staging import check_output

        self.name, self.folder, self.plots, self.force, self.json_output = name, output, plots, force, json_output
        self.loading = loading
        self.terminal = Terminal()
        self.task = self.terminal.task
        # Minutes of work must not end in front of a folder that cannot be written or a figure that cannot be drawn.
        if output is not None:
            check_output(output, force=force)
            if plots:
                figures.check_available()

    def load(self, model: ModelRef | str) -> LiveModel:
        """The model of a Hub id, folder or file."""
        return load_model(model, self.terminal, self.loading)

    def write(self, result: Any, lines: list[str]) -> None:
        """Write the document of a result dataclass, then print it as JSON or as `lines`."""
        from amnesia.files.staging import staged_output
        from amnesia.files.strict_json import json_bytes

        document = {"figure": self.name, **dataclasses.asdict(result)}
        if self.folder is not None:
            content = json_bytes(document)
            drawn = figures.draw(document) if self.plots else {}
            with staged_output(self.folder, force=self.force) as staging:
                (staging / f"{self.name}.json").write_bytes(content)
                for suffix, data in drawn.items():
                    (staging / f"{self.name}{suffix}").write_bytes(data)
        if self.json_output:
            print_json(document)
        else:
            click.echo("\n".join(lines))
            if self.folder is not None:
                click.echo(f"\nwritten to {self.folder}")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What an experiment on a recipe is about: the recipe, a model that overrides the recipe's, and cells to use."""

    recipe: Recipe
    model: str | None
    cells: tuple[Cell, ...]
    top: int

    def load(self, run: Experiment) -> tuple[LiveModel, list[Cell]]:
        """The model, and the given cells, the recipe's, or the best of a localization in the model's early half.

        Not in layer 0, where whatever detects the name's last token is stable, whoever bears it.
        """
        from amnesia.choice.extraction import localized
        from amnesia.edits import ColumnEdit, check_edits

        recipe = self.recipe
        live = run.load(self.model or recipe.model)
        cells = list(self.cells) or [edit.cell for edit in recipe.edit.cells]
        if cells:
            shape = live.shape
            check_edits(list(map(ColumnEdit, cells)), shape.n_layers, shape.d_model, shape.width, live.name)
            return live, cells
        with run.task(f"localizing {recipe.target.entity}") as progress:
            cell_map = localized(live, recipe, progress, first=1)
        return live, [row.cell for row in cell_map.top(self.top)]


def an_experiment(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the options of every experiment. The command gets an `Experiment` in their place, as `run`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @options(output_option, plots_option, force_option, on_device, as_json)
        @functools.wraps(function)
        def command(
            output: Path | None,
            plots: bool,
            force: bool,
            loading: Loading,
            json_output: bool,
            **rest: Any,
        ) -> None:
            function(Experiment(name, output, plots, force, loading, json_output), **rest)

        return command

    return decorate


def on_a_recipe(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: the options of an experiment on a recipe's entity. The command gets a `Subject` as `subject`."""

    @options(click.argument("model", required=False), recipe_option, entity_option, cells_option, top_option)
    @functools.wraps(function)
    def command(
        model: str | None,
        recipe_path: Path,
        entity: str | None,
        cells: tuple[str, ...],
        top: int,
        **rest: Any,
    ) -> None:
        subject = Subject(load_recipe(recipe_path, entity), model, tuple(map(Cell.parse, cells)), top)
        function(subject=subject, **rest)

    return command


def load_model(model: ModelRef | str, terminal: Terminal, loading: Loading) -> LiveModel:
    """The model of a Hub id, folder or file."""
    from amnesia.live.loading import load_source
    from amnesia.sources.resolve import resolve

    return load_source(resolve(model, terminal.notice), loading)
