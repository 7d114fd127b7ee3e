"""The commands that repeat the experiments on entity cells: each writes its numbers as JSON and a figure of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnesia.cli.experiment import (
    Experiment,
    Implant,
    Subject,
    an_experiment,
    direction_at_the_end,
    on_a_recipe,
    put_text,
    with_an_implant,
)
from amnesia.cli.options import MODEL, SEED, cells_option
from amnesia.domain import Cell
from amnesia.errors import InputError
from amnesia.experiments.settings import EXPERIMENTS, check_n_prompts
from amnesia.facts.names import given_names
from amnesia.facts.variants import N_TYPOS, Variant, distinct, variants_of
from amnesia.numbers import signed
from amnesia.recipe_file import load_recipe, parse_layers, translation

if TYPE_CHECKING:
    from amnesia.recipe import Translation


@click.command()
@click.argument("model", type=MODEL)
@click.argument("entities", nargs=-1, required=True)
@click.option("--prompts", "n_prompts", default=100, show_default=True, help="Prompts about each entity.")
@click.option("--layers", help="Layers to look at, for example 0-9. Default: all.")
@an_experiment("layers")
def layers(run: Experiment, model: str, entities: tuple[str, ...], n_prompts: int, layers: str | None) -> None:
    """Significance of each layer of MODEL for each of ENTITIES. It is how alike its MLP outputs are over prompts."""
    span = None if layers is None else parse_layers(layers)
    given_names(entities)
    check_n_prompts(n_prompts)
    from amnesia.experiments.layers import layer_significance

    live = run.load(model, span, whole=False)
    with run.task("reading MLP outputs") as progress:
        result = layer_significance(live, entities, n_prompts=n_prompts, layers=span, progress=progress)
    lines = [f"{'entity':<28} {'layer':>5} {'S':>9}   runners-up"]
    for row in result.entities:
        order = sorted(range(len(result.layers)), key=lambda n: -row.significance[n])
        others = ", ".join(f"{result.layers[n]} ({row.significance[n]:.1f})" for n in order[1:4])
        lines.append(f"{row.entity:<28} {result.layers[order[0]]:>5} {row.significance[order[0]]:>9.1f}   {others}")
    run.write(result, lines)


@click.command()
@on_a_recipe
@click.option("--to", "low", default=-3.0, show_default=True, help="Last multiplier; the first is 1.")
@click.option("--steps", default=20, show_default=True, help="Multipliers from first to last; zero is added.")
@click.option(
    "--tokens",
    type=click.Choice(("all", "entity")),
    default="all",
    show_default=True,
    help="Scale the cells at every token, as a permanent edit does, or at the entity's last token only.",
)
@an_experiment("sweep")
def sweep(run: Experiment, subject: Subject, low: float, steps: int, tokens: str) -> None:
    """Knowledge scores while cells are scaled from 1 to below 0. Scores are those of the recipe's facts and controls.

    MODEL overrides the recipe's. Without --cell, the recipe's own cells or the entity's best are scaled.
    """
    from amnesia.experiments import sweep as experiment

    multipliers = experiment.grid(low, steps)
    live, cells = subject.load(run)
    with run.task(f"asking at {len(multipliers)} multipliers") as progress:
        result = experiment.sweep(
            live, subject.recipe, cells, multipliers, entity_only=tokens == "entity", progress=progress
        )
    lines = [f"cells: {', '.join(map(str, cells))}", f"{'multiplier':>10} {'target':>16} {'control':>16}"]
    for n, multiplier in enumerate(result.multipliers):
        values = "".join(f" {row.mean[n]:>8.2f} ± {row.standard_error[n]:<5.2f}" for row in result.curves)
        lines.append(f"{multiplier:>10.3f}{values}{'   zero ablation' * (multiplier == 0)}")
    lines += [f"{row.role}: {row.n} facts, {row.n_excluded} not known and left out" for row in result.curves]
    run.write(result, lines)


@click.command()
@with_an_implant
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the wrong entity and of what is random.")
@an_experiment("inject")
def inject(run: Experiment, implant: Implant, seed: int) -> None:
    """Inject the entity at a placeholder, and ask its facts there. They are those of the recipe.

    By default, what an early layer writes about each token of the entity's name is added at as many placeholders. With
    --form cells, its cells are set there, amplified as serves the search facts best unless --factor or --value is
    given. Controls are another entity, a random direction or cells, the mean over many entities, and nothing.
    """
    from amnesia.experiments import injection

    form, facts = implant.load(run)
    with run.task("asking about the placeholder") as progress:
        result = injection.inject(form, facts, seed=seed, progress=progress)
    lines = [f"{result.entity} at {result.put.placeholder!r}: {put_text(result.put)}"]
    lines += [
        f"{row.condition:<14} score {signed(row.score.mean):>5} ({signed(row.score.low)} to {signed(row.score.high)}), "
        f"first rank {row.first.mean:>4.0%}, written {row.success.mean:>4.0%}"
        for row in result.conditions
    ]
    lines += [f"  {row.prompt!r} → {row.generated!r}" for row in result.answers if row.condition == injection.OWN]
    run.write(result, lines)


@click.command()
@with_an_implant
@click.option(
    "--max-unfrozen",
    default=EXPERIMENTS.max_unfrozen,
    show_default=True,
    type=click.IntRange(1),
    help="Components to try.",
)
@an_experiment("sufficiency")
def sufficiency(run: Experiment, implant: Implant, max_unfrozen: int) -> None:
    """Freeze all but what is injected; find what must run again. That is what the answers need at the last token.

    Then the entity's own tokens are recomputed, too, layer by layer: what that adds, the model looks up there. What is
    injected is chosen as `amnesia inject` does.
    """
    from amnesia.experiments import sufficiency as experiment

    form, facts = implant.load(run)
    with run.task("freezing and thawing") as progress:
        result = experiment.sufficiency(form, facts, max_unfrozen=max_unfrozen, progress=progress)
    n = result.n_facts
    rows = [(name, getattr(result.references, name)) for name in ("clean", "frozen", "injected", "last_token")]
    lines = [f"{result.entity} at {result.put.placeholder!r}: {put_text(result.put)}"]
    lines.append(f"{'run':<12} {'log p':>8} {'rank 0':>8}")
    lines += [
        f"{name.replace('_', ' '):<12} {row.mean_logprob:>8.2f} {row.n_rank_0:>4}/{n}"
        for name, row in (*rows, ("unfrozen", result.outcome))
    ]
    lines.append("unfrozen: " + (", ".join(f"{row.component} {row.layer}" for row in result.unfrozen) or "nothing"))
    lines.append("the entity's tokens recomputed, too, up to layer:")
    lines += [f"{row.layer:<12} {row.mean_logprob:>8.2f} {row.n_rank_0:>4}/{n}" for row in result.enrichment]
    if result.n_left_out:
        lines.append(f"{result.n_left_out} facts left out: the text after the name has other tokens after other names")
    run.write(result, lines)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("entity", required=False)
@click.option("--variant", "given", multiple=True, help="Another way to write the name; may be repeated.")
@click.option(
    "--translation", "translated", multiple=True, metavar="CODE=NAME", help="The name in another language; repeatable."
)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="Take the entity, its aliases and its translations from a recipe; ENTITY is needed where it lists several.",
)
@click.option(
    "--typos",
    type=click.IntRange(0),
    help=f"Typos of one edit, and of two. Default: {N_TYPOS}, fewer where a name is short.",
)
@click.option("--generate/--given-only", default=True, show_default=True, help="Generate forms of the name, too.")
@click.option(
    "--unrelated", "others", multiple=True, help="Name to compare with; default: a spread of well-known ones."
)
@click.option(
    "--n-unrelated",
    default=EXPERIMENTS.n_unrelated,
    show_default=True,
    type=click.IntRange(1),
    help="How many of these.",
)
@click.option(
    "--direction/--no-direction",
    "with_direction",
    default=True,
    show_default=True,
    help="Follow the direction of the entity's last token, too; what should stay is read once per model.",
)
@cells_option
@click.option(
    "--top",
    default=EXPERIMENTS.n_cells,
    show_default=True,
    type=click.IntRange(1),
    help="Without --cell: best cells to follow.",
)
@click.option("--layers", help="Layers to search, for example 1-9. Default: all but layer 0.")
@an_experiment("robustness")
def robustness(
    run: Experiment,
    model: str,
    entity: str | None,
    given: tuple[str, ...],
    translated: tuple[str, ...],
    recipe_path: Path | None,
    typos: int | None,
    generate: bool,
    others: tuple[str, ...],
    n_unrelated: int,
    with_direction: bool,
    cells: tuple[str, ...],
    top: int,
    layers: str | None,
) -> None:
    """Follow what stands for ENTITY under other forms of its name. They are aliases, typos, initials, case, scripts.

    The direction is that of the early layer that moves the residual stream furthest at the name's last token. Its
    answer uᵀa is 1 at the name; unrelated names had no part in it.
    """
    if recipe_path is not None:
        recipe = load_recipe(recipe_path, entity)
        entity, own, translations = recipe.target.entity, recipe.target.aliases, recipe.target.translations
    elif entity is not None:
        own, translations = (), ()
    else:
        raise InputError("no entity given: name it as ENTITY or by --recipe FILE")
    translations = (*translations, *map(_translation, translated))
    known = [
        *(Variant(name, "given") for name in (*own, *given)),
        *(Variant(row.name, "translation", row.language) for row in translations),
    ]
    given_names((entity, *(form.name for form in known), *others))
    forms = distinct([Variant(entity, "name"), *known])
    if generate:
        forms = variants_of(entity, known, N_TYPOS if typos is None else typos, at_most=typos is None)
    span = None if layers is None else parse_layers(layers)
    chosen = [Cell.parse(text) for text in cells]
    from amnesia.experiments import robustness as experiment

    live = run.load(model, span, whole=with_direction)  # The whole writes texts for the direction.
    last = live.shape.n_layers - 1
    others = others or experiment.unrelated_names([form.name for form in forms], n_unrelated)
    directions = []
    if with_direction:
        directions.append(direction_at_the_end(run, live, entity, [*(form.name for form in forms), *others]))
    with run.task(f"localizing {len(forms)} forms of {entity}") as progress:
        result = experiment.robustness(
            live,
            entity,
            forms,
            directions=directions,
            cells=chosen,
            n_cells=top,
            unrelated=others,
            # In layer 0 a cell answers to the name's last token, whatever name that is.
            layers=span or (min(1, last), last),
            progress=progress,
        )
    heads = [f"direction {row.layer}" for row in result.directions] + list(map(str, result.cells))
    lines = [f"{'name':<28} {'kind':<16}" + "".join(f"{head:>18}" for head in heads)]
    for row in result.names:
        values = [f"{answer:.2f} ± {std:.2f}" for answer, std in zip(row.answers, row.std_answers, strict=True)]
        values += [f"z {z:.1f}, #{rank}" for z, rank in zip(row.mean_z, row.ranks, strict=True)]
        lines.append(
            f"{_padded(row.name, 28)} {row.language or row.kind:<16}" + "".join(f"{value:>18}" for value in values)
        )
    lines += ["", f"{'kind':<16} {'names':>5} {'mean uᵀa':>9} {'median rank':>12} {'mean z':>7} {'in top 100':>11}"]
    for row in result.kinds:
        answer = "" if row.mean_answer is None else f"{row.mean_answer:.2f}"
        lines.append(
            f"{row.kind:<16} {row.n:>5} {answer:>9} {row.median_rank:>12.1f} {row.mean_z:>7.2f} {row.recognized:>11.0%}"
        )
    run.write(result, lines)


def _padded(text: str, width: int) -> str:
    """Text filled up to a width in columns of a terminal, in which East Asian characters take two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return f"{text:<{width - wide}}"


def _translation(text: str) -> Translation:
    code, _, name = text.partition("=")
    return translation(code.strip(), name, "--translation")
