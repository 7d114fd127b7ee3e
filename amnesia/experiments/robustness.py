"""Do an entity's directions and cells answer to its other names? Under variants, against unrelated names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amnesia.directions.keys import name_rows
from amnesia.domain import Cell, tidy
from amnesia.edits import DirectionEdit
from amnesia.errors import InputError
from amnesia.experiments.settings import EXPERIMENTS
from amnesia.facts.names import contrast_entities, entity_templates, share_words
from amnesia.facts.variants import Variant
from amnesia.live.model import LiveModel
from amnesia.live.watching import activations
from amnesia.localization.cells import SETTINGS, CellMap, cell_maps
from amnesia.progress import Progress


@dataclass(frozen=True)
class Followed:
    """A direction: its layer, the token of the name whose key it was solved for (0 is the last), its columns."""

    layer: int
    token: int
    n_columns: int


@dataclass(frozen=True)
class NameRow:
    """What answers to one name: of each direction uᵀa, of each cell its rank by stability (1 is best) and z.

    `answers` and `std_answers` are mean and standard deviation over prompts, at the name's token at which the mean is
    greatest; 1 is the answer to the key that the direction was solved for. `language` is the code of a translation's.
    """

    name: str
    kind: str
    language: str | None
    answers: tuple[float, ...]
    std_answers: tuple[float, ...]
    ranks: tuple[int, ...]
    mean_z: tuple[float, ...]
    std_z: tuple[float, ...]


@dataclass(frozen=True)
class KindSummary:
    """Over the names of one kind: mean answer of the directions (None without any), and of all cells median rank, mean
    z, and the share of ranks within `top_rank`."""

    kind: str
    n: int
    mean_answer: float | None
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
    directions: tuple[Followed, ...]
    cells: tuple[Cell, ...]
    names: tuple[NameRow, ...]
    kinds: tuple[KindSummary, ...]


def unrelated_names(forms: Sequence[str], n: int = EXPERIMENTS.n_unrelated) -> tuple[str, ...]:
    """A spread of `n` well-known names that share no word with any of the forms of a name."""
    others = [name for name in contrast_entities() if not share_words(name, forms)]
    return tuple(others[:: max(1, len(others) // max(1, n))][:n])


def robustness(
    live: LiveModel,
    entity: str,
    variants: Sequence[Variant],
    *,
    directions: Sequence[DirectionEdit] = (),
    cells: Sequence[Cell] = (),
    n_cells: int = EXPERIMENTS.n_cells,
    unrelated: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    n_prompts: int = SETTINGS.n_prompts,
    progress: Progress | None = None,
) -> Robustness:
    """Answers of directions, ranks and z-scores of the entity's cells, under each variant and under unrelated names.

    Without `unrelated`, a spread of well-known names is taken. Without `cells`, the `n_cells` best for the entity's own
    name are, so that its own row is no evidence: the others are. Ranks are among all cells of `layers`. Raises
    InputError for cells outside of these and for no variant.
    """
    entity, unrelated = tidy(entity), tuple(map(tidy, unrelated))
    own = tuple(dict.fromkeys(variant.name for variant in variants))
    others = tuple(unrelated) or unrelated_names(own)
    rows = [*variants, *(Variant(name, "unrelated") for name in others)]
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
    texts = entity_templates()[:n_prompts]
    names = tuple(
        _row(row, _answers(live, row.name, directions, texts, progress), cell_map, chosen)
        for row, cell_map in zip(rows, maps, strict=True)
    )
    followed = tuple(Followed(edit.layer, edit.token, len(edit.columns)) for edit in directions)
    kinds = tuple(_summary(kind, names) for kind in dict.fromkeys(row.kind for row in names))
    return Robustness(live.label, entity, n_prompts, maps[0].layers, followed, chosen, names, kinds)


@torch.inference_mode()
def _answers(
    live: LiveModel,
    name: str,
    directions: Sequence[DirectionEdit],
    texts: Sequence[str],
    progress: Progress | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each direction's uᵀa over texts, at the name's token of the greatest mean."""
    if not directions:
        return (), ()
    layers = sorted({edit.layer for edit in directions})
    reads = torch.zeros(len(layers), live.shape.d_mlp, len(directions), device=live.device)
    for n, edit in enumerate(directions):
        reads[layers.index(edit.layer), list(edit.columns), n] = torch.tensor(edit.read.array.copy()).to(reads)
    rows = [(back, row) for back, own in name_rows(live, name, texts=texts).items() for row in own]
    found = torch.zeros(len(rows), len(directions))
    for indices, batch in activations(live, [row for _, row in rows], layers, progress):
        found[list(indices)] = torch.einsum("bld,ldn->bn", batch, reads).cpu()
    backs = torch.tensor([back for back, _ in rows])
    by_token = [found[backs == back] for back in backs.unique()]
    mean = torch.stack([own.mean(0) for own in by_token])
    std = torch.stack([own.std(0, correction=0) for own in by_token])
    at = mean.argmax(0, keepdim=True)
    return tuple(mean.gather(0, at)[0].tolist()), tuple(std.gather(0, at)[0].tolist())


def _row(
    variant: Variant, answers: tuple[tuple[float, ...], tuple[float, ...]], cell_map: CellMap, cells: Sequence[Cell]
) -> NameRow:
    indices = [cell_map.space.index(cell) for cell in cells]
    score, mean_z, std_z = (part.flatten() for part in (cell_map.score, cell_map.mean_z, cell_map.std_z))
    return NameRow(
        variant.name,
        variant.kind,
        variant.language,
        *answers,
        tuple(int((score > score[index]).sum()) + 1 for index in indices),
        tuple(mean_z[indices].tolist()),
        tuple(std_z[indices].tolist()),
    )


def _summary(kind: str, names: Sequence[NameRow]) -> KindSummary:
    rows = [row for row in names if row.kind == kind]
    ranks = torch.tensor([rank for row in rows for rank in row.ranks], dtype=torch.float64)
    z = torch.tensor([value for row in rows for value in row.mean_z], dtype=torch.float64)
    answers = [value for row in rows for value in row.answers]
    answer = sum(answers) / len(answers) if answers else None
    recognized = (ranks <= EXPERIMENTS.top_rank).double().mean().item()
    return KindSummary(kind, len(rows), answer, ranks.quantile(0.5).item(), z.mean().item(), recognized)
