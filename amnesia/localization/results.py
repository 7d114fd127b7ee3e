"""Results of a localization: scores of cells."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia.domain import Cell


@dataclass(frozen=True)
class CellScore:
    """A ranked cell: stability score with the sign of the mean, mean and standard deviation of its z-scores."""

    cell: Cell
    score: float
    mean_z: float
    std_z: float


@dataclass(frozen=True)
class EntityCells:
    """The cells of one entity, best first."""

    entity: str
    cells: tuple[CellScore, ...]


@dataclass(frozen=True)
class Localization:
    """Result of ranking cells: for each entity the best cells, and over what they were computed.

    `n_prompts` counts entity prompts that were used, `n_skipped` those in which the entity could not be placed.
    """

    model: str
    baseline: str
    n_prompts: int
    n_skipped: int
    layers: tuple[int, ...]
    entities: tuple[EntityCells, ...]
