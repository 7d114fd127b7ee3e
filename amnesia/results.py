"""What the experiments' commands share: options, loading, and a folder for numbers and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnesia import figures
from amnesia.console import Terminal, as_json, force_option, on_device, options, print_json

if TYPE_CHECKING:
    from amnesia.model import LiveModel

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

factor_option = click.option("--factor", type=float, help="Amplification of the entity's own mean activation.")
value_option = click.option("--value", type=float, help="Activation to set every cell to, in place of --factor.")
on_a_recipe = options(click.argument("model", required=False), recipe_option, entity_option, cells_option, top_option)
with_results = options(output_option, plots_option, force_option, on_device, as_json)


class Output:
    """Where the results of a command go: a folder with JSON and figure, standard output, or both."""

    def __init__(self, name: str, folder: Path | None, plots: bool, force: bool, json_output: bool) -> None:
        from amnesia.files import check_output

        self.name, self.folder, self.plots, self.force, self.json_output = name, folder, plots, force, json_output
        # Minutes of work must not end in front of a folder that cannot be written or a figure that cannot be drawn.
        if folder is not None:
            check_output(folder, force=force)
            if plots:
                figures.check_available()

    def write(self, result: Any, text: str) -> None:
        """Write the document of a result dataclass, then print it as JSON or as `text`."""
        from amnesia.files import staged_output
        from amnesia.report import to_bytes

        document = {"figure": self.name, **dataclasses.asdict(result)}
        if self.folder is not None:
            content = to_bytes(document)
            drawn = figures.draw(document) if self.plots else {}
            with staged_output(self.folder, force=self.force) as staging:
                (staging / f"{self.name}.json").write_bytes(content)
                for suffix, data in drawn.items():
                    (staging / f"{self.name}{suffix}").write_bytes(data)
        if self.json_output:
            print_json(document)
        else:
            click.echo(text)
            if self.folder is not None:
                click.echo(f"\nwritten to {self.folder}")


def load_model(model: str, revision: str | None, terminal: Terminal, dtype: str, device: str | None) -> LiveModel:
    """The model of a Hub id, folder or file."""
    from amnesia import pipeline
    from amnesia.sources import resolve

    return pipeline.load_source(resolve(model, revision, terminal.notice), dtype, device)
