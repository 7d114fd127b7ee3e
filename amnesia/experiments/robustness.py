"""Do the cells of an entity answer to its other names? Rank and z-score under variants, against unrelated names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amnesia.domain import Cell, tidy
from amnesia.errors import InputError
from amnesia.experiments.settings import EXPERIMENTS
from amnesia.facts.names import contrast_entities, share_words
from amnesia.facts.variants import Variant
from amnesia.live.model import LiveModel
from amnesia.localization.cells import SETTINGS, CellMap, cell_maps
from amnesia.progress import Progress


@dataclass(frozen=True)
class NameRow:
    """The entity's cells under one name, in their order: rank by stability (1 is best), mean and std of z.

    `language` is the code of a translation's language.
    """

    name: str
    kind: str
    language: str | None
    ranks: tuple[int, ...]
    mean_z: tuple[float, ...]
    std_z: tuple[float, ...]


@dataclass(frozen=True)
class KindSummary:
    """Over the names of one kind and all cells: median rank, mean z, and the share of ranks within `top_rank`."""

    kind: str
    n: int
    median_rank: float
    mean_z: float
    recognized: float


@dataclass(frozen=True)
class Robustness:
    """Rows for variants first, then for unrelated names, and what they come to by kind."""

    model: str
    entity: str
    n_prompts: int
    layers: tuple[int, ...]
    cells: tuple[Cell, ...]
    names: tuple[NameRow, ...]
    kinds: tuple[KindSummary, ...]


def robustness(
    live: LiveModel,
    entity: str,
    variants: Sequence[Variant],
    *,
    cells: Sequence[Cell] = (),
    n_cells: int = EXPERIMENTS.n_cells,
    n_unrelated: int = EXPERIMENTS.n_unrelated,
    unrelated: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    n_prompts: int = SETTINGS.n_prompts,
    progress: Progress | None = None,
) -> Robustness:
    """Rank and z-scores of the entity's cells under each variant and under unrelated names.

    Without `cells`, the `n_cells` best for the entity's own name are taken, so that its own row is no evidence: the
    others are. Ranks are among all cells of `layers`. Raises InputError for cells outside of these and for no variant.
    """
    entity, unrelated = tidy(entity), tuple(map(tidy, unrelated))
    own = tuple(dict.fromkeys(variant.name for variant in variants))
    others = list(unrelated) or [
        name for name in contrast_entities() if not any(share_words(name, (form,)) for form in own)
    ]
    stride = 1 if unrelated else max(1, len(others) // max(1, n_unrelated))
    rows = [*variants, *(Variant(name, "unrelated") for name in others[::stride][: len(unrelated) or n_unrelated])]
    if not variants or variants[0].name != entity:
        rows.insert(0, Variant(entity, "name"))
    maps, _, _ = cell_maps(
        live,
        [row.name for row in rows],
        baseline="contrast",
        n_prompts=n_prompts,
        aliases=own,
        layers=layers,
        progress=progress,
    )
    chosen = tuple(cells) or tuple(row.cell for row in maps[0].top(n_cells))
    for cell in chosen:
        if cell not in maps[0].space:
            raise InputError(
                f"cell {cell} is out of range: {live.name} was searched in layers {maps[0].layers[0]}–"
                f"{maps[0].layers[-1]} with neurons 0–{live.shape.d_mlp - 1}; widen --layers or drop it"
            )
    names = tuple(_row(row, cell_map, chosen) for row, cell_map in zip(rows, maps, strict=True))
    kinds = tuple(_summary(kind, names) for kind in dict.fromkeys(row.kind for row in names))
    return Robustness(live.name, entity, n_prompts, maps[0].layers, chosen, names, kinds)


def _row(variant: Variant, cell_map: CellMap, cells: Sequence[Cell]) -> NameRow:
    indices = [cell_map.space.index(cell) for cell in cells]
    score, mean_z, std_z = (part.flatten() for part in (cell_map.score, cell_map.mean_z, cell_map.std_z))
    return NameRow(
        variant.name,
        variant.kind,
        variant.language,
        tuple(int((score > score[index]).sum()) + 1 for index in indices),
        tuple(mean_z[indices].tolist()),
        tuple(std_z[indices].tolist()),
    )


def _summary(kind: str, names: Sequence[NameRow]) -> KindSummary:
    rows = [row for row in names if row.kind == kind]
    ranks = torch.tensor([rank for row in rows for rank in row.ranks], dtype=torch.float64)
    z = torch.tensor([value for row in rows for value in row.mean_z], dtype=torch.float64)
    recognized = (ranks <= EXPERIMENTS.top_rank).double().mean().item()
    return KindSummary(kind, len(rows), ranks.quantile(0.5).item(), z.mean().item(), recognized)
