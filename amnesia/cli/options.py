"""Options that several commands have, and decorators that turn options into one argument."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from amnesia.domain import Loading
from amnesia.experiments.settings import EXPERIMENTS

SEED = click.IntRange(0, 2**63 - 1)
"""The numbers that torch takes."""


class ModelType(click.ParamType):
    """What names a model, as text; a shell completes it to built-in names, and to folders and files."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Built-in names and what of the folder may be a model; paths alone are left to the shell."""
        from amnesia.sources.built_in import BUILT_IN

        names = [name for name in BUILT_IN if name.startswith(incomplete)]
        if not names:
            return [CompletionItem(incomplete, type="file")]
        # bash completes paths only where nothing else is offered, and takes words as they are.
        with contextlib.suppress(OSError):
            here = sorted(path for path in Path().iterdir() if path.is_dir() or path.suffix.lower() == ".gguf")
            names += [path.name for path in here if shlex.quote(path.name) == path.name and path.name[0] not in ".-"]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


MODEL = ModelType()
"""The type of arguments and options that name a model."""

DTYPES = ("float32", "bfloat16", "float16", "auto")


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """One decorator for several, in the order in which help lists their options."""
    return lambda function: functools.reduce(lambda inner, decorate: decorate(inner), reversed(decorators), function)


as_json = click.option("--json", "json_output", is_flag=True, help="Print the result as JSON on standard output.")
force_option = click.option("--force", is_flag=True, help="Replace an older output of amnesia.")
force_weak_option = click.option(
    "--force", is_flag=True, help="Replace an older output of amnesia, and write an edit that is only weak."
)
popqa_option = click.option(
    "--popqa",
    help="Table of facts: the Hub id akariasai/PopQA, or a TSV file with its columns or subject, relation, object.",
)
alias_option = click.option("--alias", "aliases", multiple=True, help="Another name of the entity; may be repeated.")
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for the numbers (JSON) and the figure (SVG, PNG)."
)
plots_option = click.option("--plots/--no-plots", default=True, show_default=True, help="Draw figures (matplotlib).")
recipe_option = click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path), required=True, help="TOML file with facts and controls."
)
entity_option = click.option("--entity", help="Which entity of a recipe that lists several.")
cells_option = click.option("--cell", "cells", multiple=True, metavar="L:N", help="Layer and neuron; may be repeated.")
top_option = click.option(
    "--top",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Without --cell: how many of the entity's best cells to use.",
)
form_option = click.option(
    "--form",
    type=click.Choice(("direction", "cells")),
    default="direction",
    show_default=True,
    help="What is injected: what a layer writes about the entity, or values of its cells.",
)
placeholder_option = click.option(
    "--placeholder", default=EXPERIMENTS.placeholder, show_default=True, help="Word that stands in the entity's place."
)
written_by_option = click.option(
    "--layers",
    help="Layers of the direction, for example 0-2. Default: the early layer that moves the residual stream furthest.",
)
strength_option = click.option("--strength", type=float, default=1.0, show_default=True, help="Times the direction.")
factor_option = click.option("--factor", type=float, help="Amplification of the cells' own mean activations.")
value_option = click.option("--value", type=float, help="Activation to set every cell to, in place of --factor.")


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say how models come into memory. The command gets a `Loading` as `loading`."""

    @options(
        click.option(
            "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Type to compute in."
        ),
        click.option(
            "--device",
            default=None,
            help="Where to compute: cpu, cuda, or auto for all devices together. Default: cuda where there is one.",
        ),
    )
    @functools.wraps(function)
    def command(dtype: str, device: str | None, **rest: Any) -> Any:
        return function(loading=Loading(dtype, device, options=frozenset({"--dtype"})), **rest)

    return command


def on_device_or_disk(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `on_device` with an option that leaves layers on the disk."""

    @options(
        click.option(
            "--offload",
            is_flag=True,
            help="Leave the layers on the disk and read each when it is run: for a model larger than the memory. "
            "Batches are larger then: in 16 bits scores may differ by some thousandths from those in memory.",
        ),
        on_device,
    )
    @functools.wraps(function)
    def command(offload: bool, loading: Loading, **rest: Any) -> Any:
        offered = loading.options | {"--offload"}
        return function(loading=dataclasses.replace(loading, offload=offload, options=offered), **rest)

    return command
