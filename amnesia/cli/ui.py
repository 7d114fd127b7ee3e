"""The command `ui`: a page in the browser of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from amnesia.cli.options import MODEL, entity_option, on_device, popqa_option
from amnesia.cli.terminal import Terminal, echo
from amnesia.domain import Loading
from amnesia.errors import InputError
from amnesia.recipe_file import load_recipe


@click.command()
@click.argument("model", type=MODEL)
@click.option("--recipe", type=click.Path(path_type=Path), help="Facts about its entity. Default: what MODEL says.")
@entity_option
@popqa_option
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@on_device
def ui(model: str, recipe: Path | None, entity: str | None, popqa: str | None, opened: bool, loading: Loading) -> None:
    """Search, edit, compare and save in a page in the browser.

    The page is served to this machine alone, at an address that is printed, until Ctrl-C. Nothing is fetched for it.

    Facts about a name are those of --recipe, else those of --popqa, else what MODEL itself says.
    """
    if entity is not None and recipe is None:
        raise InputError("--entity picks the facts of a recipe: give --recipe, or enter the name in the page")
    asked = None if recipe is None else load_recipe(recipe, entity)
    from amnesia.facts.popqa import read_popqa
    from amnesia.live.loading import load_source
    from amnesia.sources.resolve import find_popqa, resolve
    from amnesia.ui.server import serve
    from amnesia.ui.session import Session

    terminal = Terminal()
    table = read_popqa(find_popqa(popqa)) if popqa else ()
    source = resolve(model, terminal.notice)
    with terminal.task("loading", 0):
        session = Session(source, load_source(source, loading, notice=terminal.notice), asked, table)

    def show(address: str) -> None:
        echo(f"open {address}")
        if opened:
            click.launch(address)

    try:
        serve(session, show)
    except KeyboardInterrupt as error:
        for path in session.written:
            error.add_note(f"{path} was written")
        raise
