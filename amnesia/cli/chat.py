"""The command `chat`: prompts from a terminal or a pipe, answered by a model and its edited self together."""

from __future__ import annotations

import io
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnesia.cli.options import MODEL, SEED, as_json, on_device_or_disk
from amnesia.cli.terminal import Terminal, echo, growing, print_json
from amnesia.domain import Fact, Loading
from amnesia.errors import AmnesiaError, InputError, signal_of
from amnesia.numbers import short
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe, parse_recipe

if TYPE_CHECKING:
    from amnesia.live.chat_form import Chat
    from amnesia.live.duet import Duet, Sampling

HELP = """
PROMPT         is answered by both models, each prompt by itself
/strength S    make the edit S times as strong: 1 as written, 0 not at all, 2 twice, -1 the opposite
/facts         ask what the recipe says of the entity
/neighbors     ask what the recipe says of others
/help          this list
/quit          end, as does the end of the input
Ctrl-C         stop an answer; twice: end
""".strip()
FACT_TOKENS = 12
"""Tokens of an answer to a question of a recipe, as many as an evaluation takes."""

_MIN_TEMPERATURE = 0.01  # Logits are divided by it; far below, they leave the range of their type. Set by hand.


@click.command()
@click.argument("model", type=MODEL)
@click.argument("edited", type=MODEL, required=False)
@click.option(
    "--edit", "edit_files", multiple=True, type=click.Path(path_type=Path), help="File of `extract -o`; repeatable."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Of /facts and /neighbors. Default: that in EDITED.")
@click.option("--entity", help="Which entity of a recipe that lists several.")
@click.option("--completion", is_flag=True, help="Continue prompts, also where the model has a chat template.")
@click.option("--max-tokens", type=click.IntRange(1), default=100, show_default=True, help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest; else from 0.01."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of --temperature.")
@on_device_or_disk
@as_json
def chat(
    model: str,
    edited: str | None,
    edit_files: tuple[Path, ...],
    recipe: Path | None,
    entity: str | None,
    completion: bool,
    max_tokens: int,
    temperature: float,
    seed: int,
    loading: Loading,
    json_output: bool,
) -> None:
    """Ask MODEL and its edited self the same, side by side. EDITED is an output, or any other model or adapter.

    With --edit, nothing needs to be written first. Prompts are read one a line, from the terminal or a pipe, and each
    stands by itself. --json prints an object a line. /help lists what can be asked for beside prompts.
    """
    if temperature and not _MIN_TEMPERATURE <= temperature < math.inf:
        raise InputError(f"temperature {temperature}: expected 0, or a number from {_MIN_TEMPERATURE}, for example 0.7")
    if entity is not None and recipe is None and edited is None:
        raise InputError("--entity picks the facts of a recipe: give --recipe, or drop it")
    asked = None if recipe is None else load_recipe(recipe, entity)
    from amnesia.compare import open_duet
    from amnesia.live.chat_form import chat_format
    from amnesia.live.duet import Sampling
    from amnesia.outputs.write import edits_from_file

    terminal = Terminal()
    groups = [group for path in edit_files for group in edits_from_file(path)]
    with terminal.task("loading", 0):
        duet = open_duet(model, edited, groups, terminal, loading)
    forms = [
        None if completion else chat_format(voice.live.tokenizer, terminal.notice, today=True) for voice in duet.voices
    ]
    sampling = Sampling(max_tokens, temperature, seed)
    interactive = sys.stdin.isatty()
    session = Session(duet, forms, sampling, asked or _recipe_in(edited, entity), json_output, echoed=not interactive)
    if interactive:
        echo("a prompt, or /help", err=True)
    session.run(_typed() if interactive else _piped(), interactive=interactive)


def _recipe_in(edited: str | None, entity: str | None) -> Recipe | None:
    """The recipe in the manifest of an output, if there is one."""
    from amnesia.files.companions import whole_output
    from amnesia.files.staging import MANIFEST_NAME
    from amnesia.weights.manifest_file import read_manifest

    if edited is None or not (path := whole_output(Path(edited)) / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(path.parent)
    if manifest.recipe is None:
        return None
    return parse_recipe(manifest.recipe, entity or manifest.edits[0].entity, f"the recipe in {path}")


def _typed() -> Iterator[str]:
    """Lines from a terminal, which keeps those before them; an interrupt at the prompt is raised there."""
    import readline  # noqa: F401

    while True:
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            return


def _piped() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from sys.stdin


class _End(Exception):  # noqa: N818
    """Somebody wants no more."""


@dataclass
class Session:
    """Answers lines of input. `forms` are the chat forms of both models, None for completion.

    With `echoed`, prompts are repeated before their answers, because nobody has typed them there.
    """

    duet: Duet
    forms: Sequence[Chat | None]
    sampling: Sampling
    recipe: Recipe | None
    json_output: bool
    echoed: bool

    def run(self, lines: Iterator[str], *, interactive: bool) -> None:
        """Answer all lines. On a terminal, errors are told, and an interrupt stops an answer; one after it ends all."""
        stopped = False
        while True:
            try:
                try:
                    line = next(lines, None)
                    if line is None:
                        return
                    stopped = False
                    self.do(line.strip())
                except AmnesiaError as error:
                    if not interactive:
                        raise
                    echo(f"error: {' '.join(str(error).split())}", err=True)
                except KeyboardInterrupt as error:
                    if stopped or not interactive or signal_of(error) != signal.SIGINT:
                        raise
                    stopped = True
                    echo(err=True)
                    echo("stopped; Ctrl-C again ends", err=True)
                    lines = _typed()  # What is interrupted in a generator has ended it.
            except _End:
                return

    def do(self, line: str) -> None:
        """Answer a line. Raises InputError for what is no prompt and no command, `_End` at the end."""
        if not line:
            return
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise InputError("the prompt is not UTF-8 text: save it as UTF-8") from error
        if not line.startswith("/"):
            self.ask(line, [form(line) if form else line for form in self.forms])
            return
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "strength": self.strengthen,
            "facts": lambda _: self.ask_facts("facts"),
            "neighbors": lambda _: self.ask_facts("controls"),
            "help": lambda _: echo(HELP, lines=True, err=self.json_output),
            "quit": self.end,
        }
        if name not in commands:
            raise InputError(
                f"there is no /{name}: expected a prompt, or one of {', '.join(f'/{n}' for n in commands)}"
            )
        commands[name](rest.strip())

    def ask(self, prompt: str, texts: Sequence[str], fact: Fact | None = None) -> None:
        """Print both answers to a prompt, of which `texts` are what each model is fed."""
        duet, sampling = self.duet, self.sampling
        if fact is not None:
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, FACT_TOKENS))
        if self.json_output:
            before, after = duet.answer(texts, sampling)
            row = {"prompt": prompt, "before": before, "after": after, "strength": duet.strength}
            print_json(row if fact is None else {**row, "answer": fact.answer}, in_line=True)
            return
        if self.echoed or fact is not None:
            echo(f"> {prompt}" + ("" if fact is None else f" … {fact.answer}"))
        changed = "" if duet.strength in (None, 1.0) else f" (strength {short(duet.strength)})"
        with growing(("before", f"after{changed}")) as show:
            duet.answer(texts, sampling, show)
        echo()

    def ask_facts(self, kind: str) -> None:
        """Ask the recipe's facts, or its controls, as they stand there."""
        if self.recipe is None:
            raise InputError("there is no recipe to ask from: start with --recipe FILE")
        for fact in self.recipe.facts if kind == "facts" else self.recipe.controls:
            self.ask(fact.text(), [fact.text()] * len(self.forms), fact)

    def strengthen(self, text: str) -> None:
        """Make the edit stronger or weaker."""
        try:
            strength = float(text)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise InputError(f"/strength {text or 'without a number'}: expected a number, for example /strength 0.5")
        self.duet = self.duet.at(strength)
        echo(f"strength {short(strength)}", err=True)

    def end(self, _: str) -> None:
        """No more."""
        raise _End
