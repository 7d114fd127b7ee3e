"""One run of an experiment's command: its options, its model and cells, and a folder for its numbers and figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from amnesia.cli.options import (
    MODEL,
    as_json,
    cells_option,
    entity_option,
    factor_option,
    force_option,
    form_option,
    on_device_or_disk,
    options,
    output_option,
    placeholder_option,
    plots_option,
    recipe_option,
    strength_option,
    top_option,
    value_option,
    written_by_option,
)
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.domain import Cell, Loading, ModelRef, n_read
from amnesia.errors import InputError
from amnesia.experiments import figures
from amnesia.experiments.settings import check_put
from amnesia.numbers import short
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe, parse_layers

if TYPE_CHECKING:
    from amnesia.edits import DirectionEdit
    from amnesia.evaluation.measurement import KnownFact
    from amnesia.experiments.forms import Form, Put
    from amnesia.live.model import LiveModel

_OF_FORM = {"direction": ("layers", "strength"), "cells": ("cells", "top", "factor", "value")}
"""Which options only one form of an injection has."""


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

    def load(self, model: ModelRef | str, layers: tuple[int, int] | None = None, *, whole: bool = True) -> LiveModel:
        """The model of a Hub id, folder or file; see `load_model`."""
        return load_model(model, self.terminal, self.loading, layers, whole=whole)

    def write(self, result: Any, lines: list[str]) -> None:
        """Write the document of a result dataclass, then print it as JSON or as `lines`."""
        from amnesia.files.seals import sealed_json
        from amnesia.files.staging import staged_output

        document = {"figure": self.name, **dataclasses.asdict(result)}
        if self.folder is not None:
            content = sealed_json(document)
            drawn = figures.draw(document) if self.plots else {}
            with staged_output(self.folder, force=self.force) as staging:
                (staging / f"{self.name}.json").write_bytes(content)
                for suffix, data in drawn.items():
                    (staging / f"{self.name}{suffix}").write_bytes(data)
        if self.json_output:
            print_json(document)
        else:
            echo("\n".join(lines), lines=True)
            if self.folder is not None:
                echo()
                echo(f"written to {self.folder}")


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
        from amnesia.edit_checks import check_edits
        from amnesia.edits import ColumnEdit

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


@dataclasses.dataclass(frozen=True)
class Implant:
    """What an experiment injects at a placeholder, of whom, in which form."""

    subject: Subject
    form: str
    placeholder: str
    layers: str | None
    strength: float
    factor: float | None
    value: float | None

    def load(self, run: Experiment) -> tuple[Form, tuple[KnownFact, ...]]:
        """The form, and the facts about the entity that the model knows."""
        from amnesia.experiments import forms
        from amnesia.localization.cells import layer_range

        recipe = self.subject.recipe
        if self.form == "cells":
            live, cells = self.subject.load(run)
        else:
            live, cells = run.load(self.subject.model or recipe.model), []
        layers = None if self.layers is None else layer_range(live, parse_layers(self.layers))
        with run.task("asking about the facts") as progress:
            facts = forms.known_targets(live, recipe, progress)
        if self.form == "direction":
            return forms.direction(live, recipe, layers, self.strength, self.placeholder), facts
        with run.task("choosing the values") as progress:
            return forms.cell_values(
                live,
                recipe,
                cells,
                facts,
                factor=self.factor,
                value=self.value,
                placeholder=self.placeholder,
                progress=progress,
            ), facts


def an_experiment(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the options of every experiment. The command gets an `Experiment` in their place, as `run`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @options(output_option, plots_option, force_option, on_device_or_disk, as_json)
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

    @options(
        click.argument("model", type=MODEL, required=False), recipe_option, entity_option, cells_option, top_option
    )
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


def with_an_implant(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: the options of an experiment that injects a recipe's entity. The command gets an `Implant`."""

    @on_a_recipe
    @options(
        form_option,
        placeholder_option,
        written_by_option,
        strength_option,
        factor_option,
        value_option,
    )
    @functools.wraps(function)
    def command(
        subject: Subject,
        form: str,
        placeholder: str,
        layers: str | None,
        strength: float,
        factor: float | None,
        value: float | None,
        **rest: Any,
    ) -> None:
        context = click.get_current_context()
        flags = {option.name: option.opts[0] for option in context.command.params}
        for other, names in _OF_FORM.items():
            for name in names:
                if other != form and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                    raise InputError(
                        f"{flags[name]} is for --form {other}, and the form is {form}: give one or the other"
                    )
        check_put(placeholder, strength=strength, factor=factor, value=value)
        function(implant=Implant(subject, form, placeholder, layers, strength, factor, value), **rest)

    return command


def put_text(put: Put) -> str:
    """What was injected, in a line."""
    if put.form == "cells":
        return ", ".join(f"{cell} = {value:.1f}" for cell, value in zip(put.cells, put.values, strict=True))
    layers, tokens = (", ".join(map(str, each)) for each in (put.layers, map(repr, reversed(put.tokens))))
    return f"direction of layer {layers} × {short(put.strength)} for {tokens}"


def direction_at_the_end(run: Experiment, live: LiveModel, entity: str, reserved: list[str]) -> DirectionEdit:
    """The direction of the entity's last token, on all columns, in which no name that shares words with `reserved` had
    a part."""
    from amnesia.choice.atoms import Name
    from amnesia.directions.moments import early_layers, moments_of
    from amnesia.edits import directions_of
    from amnesia.facts.names import share_words
    from amnesia.files.cache import cache_folder

    with run.task("reading what should stay") as progress:
        moments = moments_of(live, early_layers(live.shape.n_layers), cache_folder(), progress=progress)
    atoms = Name(live, entity, moments, lambda other: share_words(other, reserved)).atoms(1)
    (found,) = directions_of([atoms[0].edit(0.0)])
    return found


def load_model(
    model: ModelRef | str,
    terminal: Terminal,
    loading: Loading,
    layers: tuple[int, int] | None = None,
    *,
    whole: bool = True,
) -> LiveModel:
    """The model of a Hub id, folder or file, of which `layers` will be watched; all, or as much as these need.

    Where layers stay on the disk it is all, of which no more is read than these need.
    """
    from amnesia.live.loading import load_source
    from amnesia.sources.resolve import resolve

    source = resolve(model, terminal.notice, n_layers=None if whole or loading.offload else n_read(layers))
    return load_source(source, loading, layers=layers, notice=terminal.notice)
