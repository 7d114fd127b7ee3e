"""The commands that repeat the experiments on entity cells: each writes its numbers as JSON and a figure of them."""

from __future__ import annotations

import click

from amnesia.recipe import parse_layers
from amnesia.results import Experiment, Subject, an_experiment, factor_option, on_a_recipe, value_option


@click.command()
@click.argument("model")
@click.argument("entities", nargs=-1, required=True)
@click.option("--prompts", "n_prompts", default=100, show_default=True, help="Prompts about each entity.")
@click.option("--layers", help="Layers to look at, for example 0-9. Default: all.")
@an_experiment("layers")
def layers(run: Experiment, model: str, entities: tuple[str, ...], n_prompts: int, layers: str | None) -> None:
    """Significance of each layer of MODEL for each of ENTITIES: how alike its MLP outputs are over many prompts."""
    span = None if layers is None else parse_layers(layers)
    from amnesia.layer_significance import layer_significance

    live = run.load(model)
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
    """Knowledge score of the recipe's facts and controls as cells are scaled from 1 through 0 to negative multipliers.

    MODEL overrides the recipe's. Without --cell, the recipe's own cells or the entity's best are scaled.
    """
    from amnesia import sweep as experiment

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
@on_a_recipe
@factor_option
@value_option
@click.option("--placeholder", default="XXX", show_default=True, help="Word that stands in the entity's place.")
@click.option("--seed", default=0, show_default=True, help="Of the wrong and random cells.")
@an_experiment("inject")
def inject(
    run: Experiment,
    subject: Subject,
    factor: float | None,
    value: float | None,
    placeholder: str,
    seed: int,
) -> None:
    """Set the entity's cells at a placeholder, and ask the recipe's facts about it.

    Controls are the cells of another entity, random cells, the mean activations over many entities, and nothing. The
    amplification is chosen on the search facts unless --factor or --value is given.
    """
    from amnesia import injection

    live, cells = subject.load(run)
    with run.task("asking about the placeholder") as progress:
        result = injection.inject(
            live,
            subject.recipe,
            cells,
            factor=factor,
            value=value,
            placeholder=placeholder,
            seed=seed,
            progress=progress,
        )
    values = ", ".join(f"{cell} = {v:.1f}" for cell, v in zip(result.cells, result.values, strict=True))
    lines = [f"{result.entity} at {placeholder!r}: {values}"]
    lines += [
        f"{row.condition:<14} {row.success.mean:>5.0%} right ({row.success.low:.0%} to {row.success.high:.0%}), "
        f"answers {row.gain.mean:+.2f} nats above nothing ({row.gain.low:+.2f} to {row.gain.high:+.2f})"
        for row in result.conditions
    ]
    lines += [f"  {row.prompt!r} → {row.generated!r}" for row in result.answers if row.condition == "entity cells"]
    run.write(result, lines)


@click.command()
@on_a_recipe
@factor_option
@value_option
@click.option("--max-unfrozen", default=12, show_default=True, type=click.IntRange(1), help="Components to try.")
@an_experiment("sufficiency")
def sufficiency(
    run: Experiment, subject: Subject, factor: float | None, value: float | None, max_unfrozen: int
) -> None:
    """Freeze all but the injected cells, and find what the last token must recompute for the answers to come back."""
    from amnesia import sufficiency as experiment

    live, cells = subject.load(run)
    with run.task("freezing and thawing") as progress:
        result = experiment.sufficiency(
            live, subject.recipe, cells, factor=factor, value=value, max_unfrozen=max_unfrozen, progress=progress
        )
    rows = [(name, getattr(result.references, name)) for name in ("clean", "frozen", "injected")]
    lines = [f"{'run':<12} {'log p':>8} {'rank 0':>8}"]
    lines += [
        f"{name:<12} {row.mean_logprob:>8.2f} {row.n_rank_0:>4}/{result.n_facts}"
        for name, row in (*rows, ("unfrozen", result.outcome))
    ]
    lines.append("unfrozen: " + (", ".join(f"{row.component} {row.layer}" for row in result.unfrozen) or "nothing"))
    if result.n_left_out:
        lines.append(f"{result.n_left_out} facts left out: the text after the name has other tokens after other names")
    run.write(result, lines)
