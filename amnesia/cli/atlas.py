"""The command `atlas`: many entities in one table."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnesia.cli.experiment import load_model
from amnesia.cli.options import MODEL, as_json, on_device_or_disk, plots_option
from amnesia.cli.terminal import Terminal, echo, print_json, write_file
from amnesia.domain import Baseline, Loading, n_read
from amnesia.errors import InputError, OutputError, os_errors_as
from amnesia.experiments import figures
from amnesia.files.disk import check_replaceable
from amnesia.files.figure_files import DRAWN, is_drawn, is_figure
from amnesia.files.seals import sealed_json
from amnesia.files.staging import check_outside_caches
from amnesia.numbers import share, signed
from amnesia.recipe import BASELINES
from amnesia.recipe_file import parse_layers

if TYPE_CHECKING:
    from amnesia.experiments.atlas import AtlasSummary


@click.command()
@click.argument("model", type=MODEL)
@click.argument("entities", nargs=-1)
@click.option("--file", "path", type=click.Path(path_type=Path), help="Text file with an entity on each line.")
@click.option("--popqa", help="PopQA (a TSV file, or akariasai/PopQA): its most popular subjects.")
@click.option("--n", default=200, show_default=True, type=click.IntRange(1), help="How many subjects of PopQA.")
@click.option("--baseline", type=click.Choice(BASELINES), default="contrast", show_default=True)
@click.option("--layers", help="Layers to search, for example 1-9. Default: all.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Cells to keep for each entity.")
@click.option(
    "--directions/--no-directions",
    default=True,
    show_default=True,
    help="Keep a direction of each entity, too; for that all of MODEL is read, once.",
)
@click.option("--compare", "other", help="Another model, for example the instruction-tuned sibling of MODEL.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder; an atlas in it goes on.")
@plots_option
@on_device_or_disk
@as_json
def atlas(
    model: str,
    entities: tuple[str, ...],
    path: Path | None,
    popqa: str | None,
    n: int,
    baseline: Baseline,
    layers: str | None,
    top: int,
    directions: bool,
    other: str | None,
    output: Path,
    plots: bool,
    loading: Loading,
    json_output: bool,
) -> None:
    """Localize many ENTITIES of MODEL into one SQLite table. A figure shows in which layers they are found.

    Of each it keeps the best cells and a direction on all cells of a layer, which `edit --atlas` turns.

    A run that was killed goes on when the same command is given again. Under `torchrun`, or with GPUs `accelerate
    launch`, the processes share the work; on CPUs they talk over Gloo, and `accelerate launch` starts but one.
    """
    names = _entities(entities, path, popqa, n)
    span = None if layers is None else parse_layers(layers)
    if plots:
        figures.check_available()
    _check_folder(output)
    from amnesia.experiments import atlas as experiment
    from amnesia.experiments.atlas import Shards
    from amnesia.experiments.atlas_file import read
    from amnesia.sources.fingerprint import fingerprint
    from amnesia.sources.resolve import is_local, resolve

    terminal, shards = Terminal(), Shards()
    loading = dataclasses.replace(loading, device=loading.device or shards.device)
    found = []
    for source, file in ((model, "atlas.sqlite"), (other, "compared.sqlite")):
        if source is None:
            continue
        live = load_model(source, terminal, loading, span, whole=directions)
        if is_local(source):
            name, weights = Path(source).resolve().name, fingerprint(resolve(source, terminal.notice))
        else:
            of = resolve(source, n_layers=None if directions or loading.offload else n_read(span)).ref
            name, weights = of.name, str(of)
        settings = experiment.AtlasSettings(
            name, weights, baseline, layers=span, top=top, directions=directions, dtype=loading.dtype
        )
        if shards.first:
            experiment.begin(output / file, settings, names)
        shards.wait()
        pending = experiment.begin(output / file, settings, names)
        shards.wait()  # Nobody writes before all have seen the same work to be done.
        if directions and pending:
            if shards.first:  # It gathers what the others then find in the cache folder.
                with terminal.task("reading what should stay") as progress:
                    experiment.bystanders(live, settings, progress)
            shards.wait()
        with terminal.task(f"localizing {len(pending)} of {len(names)} entities in {live.name}") as progress:
            experiment.fill(live, output / file, settings, pending, shards.index, shards.count, progress)
        shards.wait()
        found.append((*read(output / file), live.shape.n_layers))
        del live
    if not shards.first:
        return
    (name, rows, n_layers), *rest = found
    result = experiment.summarize(name, rows, n_layers, rest[0][:2] if rest else None)
    document = {"figure": "atlas", **dataclasses.asdict(result)}
    _check_folder(output)  # It may have taken hours, in which somebody wrote in what was there.
    write_file(output / "atlas.json", sealed_json(document))
    for suffix, data in figures.draw(document).items() if plots else ():
        write_file(output / f"atlas{suffix}", data)
    if json_output:
        print_json(document)
    else:
        echo(_atlas_text(result, output), lines=True)


def _check_folder(output: Path) -> None:
    """Make the folder of an atlas, outside of caches.

    Raises InputError for files in it that would be replaced and are not ours, OutputError where it cannot be made.
    """
    check_outside_caches(output)
    with os_errors_as(OutputError, f"{output} cannot be made", "choose another folder"):
        output.mkdir(parents=True, exist_ok=True)
    with os_errors_as(OutputError, f"{output} cannot be written", "choose another folder"):
        for path in (output / f"atlas{suffix}" for suffix in (".json", *DRAWN)):
            if not os.path.lexists(path):
                continue
            if not (output / "atlas.sqlite").exists():
                raise InputError(f"{path} is of no atlas that was begun there: choose another folder")
            check_replaceable(path)
            if not (is_figure if path.suffix == ".json" else is_drawn)(path):
                raise InputError(f"{path} is not as amnesia wrote it, and would be replaced: move it away")


def _entities(given: tuple[str, ...], path: Path | None, popqa: str | None, n: int) -> dict[str, int | None]:
    """Names with their popularity (page views a month) where it is known."""
    from amnesia.facts.names import given_names
    from amnesia.facts.popqa import read_popqa
    from amnesia.queue.listed import lines_in
    from amnesia.sources.resolve import find_popqa

    if sum((bool(given), path is not None, popqa is not None)) != 1:
        raise InputError("give the entities in one way: as arguments, by --file, or by --popqa")
    if popqa is not None:
        popularity: dict[str, int | None] = {}
        for row in sorted(read_popqa(find_popqa(popqa)), key=lambda row: -row.popularity):
            popularity.setdefault(row.subject, row.popularity)
        return dict(list(popularity.items())[:n])
    return dict.fromkeys(given_names(lines_in(path) if path is not None else given))


def _atlas_text(result: AtlasSummary, output: Path) -> str:
    lines = [f"{result.n_entities} entities in {result.model}"]
    for name, found in (("top cells", result.histogram), ("directions", result.directions)):
        if found is not None:
            lines.append(f"{'layer':>5} {name:>10}")
            rows = zip(found.layers, found.counts, strict=True)
            lines += [f"{layer:>5} {count:>10} {'█' * count}" for layer, count in rows if count]
    if result.popularity is not None and result.popularity.rank_correlation is not None:
        lines.append(f"popularity and score: rank correlation {signed(result.popularity.rank_correlation)}")
    lines.append(f"{len(result.collisions)} cells are the top cell of several entities")
    lines += [f"  {row.layer}:{row.neuron}  {', '.join(row.entities)}" for row in result.collisions[:10]]
    if result.comparison is not None:
        rho = result.comparison.rank_correlation
        lines.append(
            f"{result.comparison.model}: same top cell for {share(result.comparison.same_top_cell)} of "
            f"{result.comparison.n} entities, {share(result.comparison.shared_cells)} of the listed cells in common, "
            f"rank correlation of the scores {'undefined' if rho is None else f'{signed(rho)}'}"
        )
    return "\n".join([*lines, "", f"written to {output}"])
