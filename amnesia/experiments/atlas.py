"""Many entities in one SQLite table: their best cells and directions, found in batches, by one process or several.

Every batch is committed at once, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amnesia.choice.atoms import Name
from amnesia.choice.direction import MAX_TOKENS
from amnesia.directions.moments import BystanderMoments, early_layers, moments_of
from amnesia.domain import DEFAULT_LOADING, Baseline, Cell
from amnesia.edits import DirectionEdit
from amnesia.errors import InputError
from amnesia.experiments.atlas_file import AtlasRow, opened, store_direction
from amnesia.experiments.settings import EXPERIMENTS
from amnesia.facts.names import share_words
from amnesia.files.cache import cache_folder
from amnesia.files.processes import n_started
from amnesia.live.model import LiveModel
from amnesia.localization.cells import SETTINGS, baseline_moments, cell_maps, layer_range
from amnesia.progress import Progress


@dataclass(frozen=True)
class AtlasSettings:
    """What has to be equal for two runs to be parts of one atlas.

    `model` is its name; `weights` of one on this disk its `sources.fingerprint`, by which it is known under any path,
    else repository and commit. `baseline`, `n_prompts`, `layers` (first and last, both included) and `top` (cells of an
    entity) are those of `localization.cells.localize`, where their defaults have their reasons. `directions` says
    whether each entity has one, too: of these layers, or of those in which a choice looks for it. `dtype` is what the
    model computes in.
    """

    model: str
    weights: str | None = None
    baseline: Baseline = "contrast"
    n_prompts: int = SETTINGS.n_prompts
    layers: tuple[int, int] | None = None
    top: int = SETTINGS.n_listed
    directions: bool = True
    dtype: str = DEFAULT_LOADING.dtype


def begin(path: Path, settings: AtlasSettings, entities: Mapping[str, int | None]) -> tuple[str, ...]:
    """Record the settings and entities, and return the entities that have no cells yet, in the order given.

    Raises InputError when the file holds an atlas that was made with other settings.
    """
    wanted = {key: json.dumps(value) for key, value in vars(settings).items()}
    # Weights that are known are the model's identity, under whatever name.
    named = {"model"} if settings.weights is not None else set()
    with opened(path) as atlas, atlas:
        found = dict(atlas.execute("SELECT key, value FROM settings"))
        for key in sorted(found.keys() - named):
            if wanted.get(key) != found[key]:
                raise InputError(
                    f"{path} is an atlas of {found.get('model')} with {key} = {found[key]}, asked for is "
                    f"{wanted.get(key)}: go on with the same, or choose another folder"
                )
        atlas.executemany("INSERT OR IGNORE INTO settings VALUES (?, ?)", wanted.items())
        (start,) = atlas.execute("SELECT COALESCE(MAX(place) + 1, 0) FROM entities").fetchone()
        atlas.executemany(
            "INSERT OR IGNORE INTO entities VALUES (?, ?, ?)",
            [(name, start + place, popularity) for place, (name, popularity) in enumerate(entities.items())],
        )
        done = {name for (name,) in atlas.execute("SELECT DISTINCT entity FROM cells")}
    return tuple(name for name in entities if name not in done)


def bystanders(live: LiveModel, settings: AtlasSettings, progress: Progress | None = None) -> BystanderMoments:
    """What the directions of an atlas must spare, from the cache folder where it is there for this very model."""
    layers = live.watchable(early_layers(live.shape.n_layers))
    if settings.layers is not None:
        layers = layer_range(live, settings.layers)
    return moments_of(live, layers, cache_folder(), progress=progress)


def fill(
    live: LiveModel,
    path: Path,
    settings: AtlasSettings,
    entities: Sequence[str],
    shard: int = 0,
    n_shards: int = 1,
    progress: Progress | None = None,
) -> None:
    """Localize entities and write their cells and directions, one batch after the other, each in one transaction.

    Of `n_shards` processes each takes its own batches of the same list, so that the numbers do not depend on how many
    there are.
    """
    size = EXPERIMENTS.batch_entities
    starts = range(0, len(entities), size)[shard::n_shards]
    if not starts:
        return
    layers = layer_range(live, settings.layers)
    known = baseline_moments(live, settings.baseline, settings.n_prompts, layers, progress)
    spared = bystanders(live, settings, progress) if settings.directions else None
    for start in starts:
        names = entities[start : start + size]
        maps, _, _ = cell_maps(
            live,
            names,
            baseline=settings.baseline,
            n_prompts=settings.n_prompts,
            layers=settings.layers,
            known=known,
            progress=progress,
        )
        rows = [
            (name, rank, row.cell.layer, row.cell.neuron, row.score, row.mean_z, row.std_z)
            for name, cell_map in zip(names, maps, strict=True)
            for rank, row in enumerate(cell_map.top(settings.top))
        ]
        directions = [] if spared is None else [(name, *direction_of(live, name, spared)) for name in names]
        with opened(path) as atlas, atlas:
            atlas.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            for name, edit, shift in directions:
                store_direction(atlas, name, edit, shift)


def direction_of(live: LiveModel, name: str, moments: BystanderMoments) -> tuple[DirectionEdit, float]:
    """The direction of a name on all columns, and how far the residual stream moves when it is taken away.

    Of all layers of the moments and the last tokens of the name, the one with the largest move is taken. Other names
    that share words with it had no part in what is spared.
    """
    atoms = Name(live, name, moments, lambda other: share_words(other, [name])).atoms(MAX_TOKENS)
    edit = atoms[0].edit(0.0)
    assert isinstance(edit, DirectionEdit), "on all columns"
    return edit, atoms[0].shift


@dataclass(frozen=True)
class Histogram:
    """How many entities have their top cell, or their direction, in each layer."""

    layers: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Popularity:
    """Popularity and top score of each entity that has both, above zero, and their Spearman correlation if defined."""

    popularity: tuple[int, ...]
    score: tuple[float, ...]
    rank_correlation: float | None


@dataclass(frozen=True)
class Collision:
    """A cell that is the top cell of several entities."""

    layer: int
    neuron: int
    entities: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two models over the same entities: share of identical top cells, mean share of the top lists in common, and the
    Spearman correlation of the top scores if it is defined."""

    model: str
    n: int
    same_top_cell: float
    shared_cells: float
    rank_correlation: float | None


@dataclass(frozen=True)
class AtlasSummary:
    """What the rows of an atlas come to; `directions` is None where it has none."""

    model: str
    n_entities: int
    histogram: Histogram
    directions: Histogram | None
    popularity: Popularity | None
    collisions: tuple[Collision, ...]
    comparison: Comparison | None


def summarize(
    model: str,
    rows: Sequence[AtlasRow],
    n_layers: int,
    other: tuple[str, Sequence[AtlasRow]] | None = None,
) -> AtlasSummary:
    """Histogram over layers, popularity, collisions, and, with the rows of another model, the comparison.

    Raises InputError for no rows, and for another model's without a common entity.
    """
    if not rows:
        raise InputError("the atlas is empty: give at least one entity")
    tops = [row.cells[0] for row in rows]
    turned = [row.direction.layer for row in rows if row.direction is not None]
    known = [(row.popularity, row.cells[0].score) for row in rows if row.popularity and row.cells[0].score > 0]
    popularity = None
    if known:
        views, scores = zip(*known, strict=True)
        popularity = Popularity(views, scores, rank_correlation(views, scores))
    by_cell: dict[Cell, list[str]] = {}
    for row, top in zip(rows, tops, strict=True):
        by_cell.setdefault(top.cell, []).append(row.entity)
    collisions = sorted((item for item in by_cell.items() if len(item[1]) > 1), key=lambda item: (-len(item[1]), item))
    return AtlasSummary(
        model,
        len(rows),
        _by_layer([top.cell.layer for top in tops], n_layers),
        _by_layer(turned, n_layers) if turned else None,
        popularity,
        tuple(Collision(cell.layer, cell.neuron, tuple(names)) for cell, names in collisions),
        None if other is None else compare(rows, *other),
    )


def _by_layer(layers: Sequence[int], n_layers: int) -> Histogram:
    return Histogram(tuple(range(n_layers)), tuple(layers.count(layer) for layer in range(n_layers)))


def compare(rows: Sequence[AtlasRow], model: str, others: Sequence[AtlasRow]) -> Comparison:
    """How far another model has the same cells for the same entities."""
    found = {row.entity: row for row in others}
    pairs = [(row, found[row.entity]) for row in rows if row.entity in found]
    if not pairs:
        raise InputError(f"{model} shares no entity with this atlas: compare atlases of the same entities")
    same = [one.cells[0].cell == two.cells[0].cell for one, two in pairs]
    shared = [len({c.cell for c in one.cells} & {c.cell for c in two.cells}) / len(one.cells) for one, two in pairs]
    scores = [[row.cells[0].score for row in side] for side in zip(*pairs, strict=True)]
    return Comparison(model, len(pairs), float(np.mean(same)), float(np.mean(shared)), rank_correlation(*scores))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where one side does not vary."""
    one, two = (_ranks(np.asarray(side, dtype=np.float64)) for side in (first, second))
    if any(len(side) < 2 or np.ptp(side) == 0 for side in (one, two)):
        return None
    return float(np.corrcoef(one, two)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[inverse]


class Shards:
    """Which of how many processes this is, and the device that is its own, or None where it may choose."""

    def __init__(self) -> None:
        self.index, self.count, self.device = 0, 1, None
        self._state = None
        if n_started() > 1:
            from accelerate import PartialState

            # Without an accelerator each process would take itself for the only one, unless it is told of CPUs.
            asked = os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true", "yes")
            cpu = asked or not torch.accelerator.is_available()
            self._state = PartialState(cpu=cpu, timeout=EXPERIMENTS.patience)
            self.index, self.count = self._state.process_index, self._state.num_processes
            self.device = str(self._state.device)

    @property
    def first(self) -> bool:
        """Whether this process reports."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
