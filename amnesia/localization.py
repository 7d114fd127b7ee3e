"""Find the cells of an entity: rank all neurons by how stably they answer to its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch

from amnesia.domain import Cell, CellScore, EntityCells, Localization
from amnesia.encoding import Placed, encode, place, templates_from
from amnesia.errors import InputError
from amnesia.forward import activations
from amnesia.model import LiveModel, Progress, not_finite
from amnesia.prompts import CONTRAST_ENTITIES, ENTITY_TEMPLATES, GENERIC_SENTENCES, share_words
from amnesia.statistics import Moments, stability, z_moments

CONTRASTS_PER_PROMPT = 4
"""About how many other entities each prompt is asked about for the contrast baseline."""


@dataclasses.dataclass(frozen=True)
class CellMap:
    """Per-cell statistics of one entity, each (n_layers, d_mlp) in float64: stability, mean and std of z-scores."""

    layers: tuple[int, ...]
    score: torch.Tensor
    mean_z: torch.Tensor
    std_z: torch.Tensor

    def top(self, n: int) -> tuple[CellScore, ...]:
        """The `n` cells of highest score, best first; equal scores in order of layer and neuron."""
        d_mlp = self.score.shape[1]
        order = torch.argsort(self.score.flatten(), descending=True, stable=True)[:n].tolist()
        return tuple(
            CellScore(
                Cell(self.layers[index // d_mlp], index % d_mlp),
                *(tensor.flatten()[index].item() for tensor in (self.score, self.mean_z, self.std_z)),
            )
            for index in order
        )


def localize(
    live: LiveModel,
    entities: str | Sequence[str],
    *,
    baseline: Literal["contrast", "generic"] = "contrast",
    n_prompts: int = len(ENTITY_TEMPLATES),
    prompts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    top: int = 20,
    progress: Progress | None = None,
) -> Localization:
    """Rank the cells of one or more entities, best first, by the stability of their z-scores.

    `baseline` is "contrast" (the same prompts about other entities) or "generic" (general sentences, last token).
    `prompts` replaces the package's templates; each holds `{entity}` or mentions the entity or one of its `aliases`,
    those that do not are counted in `n_skipped`. `layers` is a range, both ends included; default: all layers.

    Raises InputError for a range outside the model and for an entity that no prompt mentions; NumericalError when
    activations are NaN or infinite.
    """
    names = list(dict.fromkeys([entities] if isinstance(entities, str) else entities))
    if not names or not all(map(str.strip, names)):
        raise InputError("no entity given, or an empty one: name at least one")
    maps, n_used, n_skipped = cell_maps(
        live,
        names,
        baseline=baseline,
        n_prompts=n_prompts,
        prompts=prompts,
        aliases=aliases,
        layers=layers,
        progress=progress,
    )
    return Localization(
        live.name,
        baseline,
        n_used,
        n_skipped,
        maps[0].layers,
        tuple(EntityCells(name, cell_map.top(top)) for name, cell_map in zip(names, maps, strict=True)),
    )


def cell_maps(
    live: LiveModel,
    names: Sequence[str],
    *,
    baseline: str,
    n_prompts: int,
    prompts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    known: Moments | None = None,
    progress: Progress | None = None,
) -> tuple[list[CellMap], int, int]:
    """Statistics of every cell for each name, the number of prompts used, and the number left out; see `localize`.

    `known` are the moments of the baseline where `baseline_moments` has already found them for the same prompts.
    """
    chosen = layer_range(live, layers)
    if n_prompts > len(ENTITY_TEMPLATES):
        raise InputError(
            f"n_prompts is {n_prompts}: there are {len(ENTITY_TEMPLATES)} templates, ask for as many or fewer"
        )
    own = list(prompts if prompts is not None else ENTITY_TEMPLATES[:n_prompts])
    pairs = {name: templates_from(own, (name, *aliases)) for name in names}
    if min(map(len, pairs.values())) < 2:
        raise InputError("a single prompt shows no stability: give at least two prompts about each entity")
    templates = list(dict.fromkeys(template for name in names for template, _ in pairs[name]))
    contrasts = contrast_pairs(templates) if baseline == "contrast" else []
    # The baseline is shared by all entities; what is about one of them is taken out of it again.
    related = {name: [pair for pair in contrasts if share_words(pair[1], (name, *aliases))] for name in names}
    rows = [] if known is not None else baseline_rows(live, baseline, contrasts)
    # All of them in one go, because prompts about one entity share their beginnings with those about the others.
    groups = [rows, *(place(live.tokenizer, side[name]) for name in names for side in (pairs, related))]
    computed, *found = moments(live, groups, chosen, progress)
    total = known if known is not None else computed
    assert total is not None, "every baseline has texts"
    maps = []
    for entity, rest in zip(found[::2], found[1::2], strict=True):
        assert entity is not None, "there are at least two prompts"
        mean_z, std_z = z_moments(entity, total if rest is None else total - rest)
        score = stability(mean_z, std_z)
        if not torch.isfinite(score).all():
            raise not_finite(live, "activations")
        maps.append(CellMap(chosen, score.cpu(), mean_z.cpu(), std_z.cpu()))
    n_used = sum(len(rows) for rows in pairs.values())
    return maps, n_used, len(own) * len(names) - n_used


def baseline_rows(live: LiveModel, baseline: str, contrasts: Sequence[tuple[str, str]]) -> list[Placed]:
    """The texts of a baseline: general sentences at their last token, or the given prompts about other entities."""
    if baseline == "generic":
        return [Placed(item.ids, len(item.ids) - 1) for item in encode(live.tokenizer, GENERIC_SENTENCES)]
    return place(live.tokenizer, contrasts)


def baseline_moments(
    live: LiveModel, baseline: str, n_prompts: int, layers: Sequence[int], progress: Progress | None = None
) -> Moments:
    """Moments (n_layers, d_mlp) of a baseline for the package's templates, for `cell_maps` to use again and again."""
    rows = baseline_rows(live, baseline, contrast_pairs(ENTITY_TEMPLATES[:n_prompts]))
    (total,) = moments(live, [rows], layers, progress)
    assert total is not None, "every baseline has texts"
    return total


def contrast_pairs(templates: Sequence[str]) -> list[tuple[str, str]]:
    """Templates with the contrast entities that they are asked about: each entity about equally often."""
    n = max(CONTRASTS_PER_PROMPT * len(templates), len(CONTRAST_ENTITIES))
    # The offset after each full round keeps a template from meeting the same entities again.
    return [
        (
            templates[(index + index // len(CONTRAST_ENTITIES)) % len(templates)],
            CONTRAST_ENTITIES[index % len(CONTRAST_ENTITIES)],
        )
        for index in range(n)
    ]


def moments(
    live: LiveModel, groups: Sequence[Sequence[Placed]], layers: Sequence[int], progress: Progress | None
) -> list[Moments | None]:
    """Moments (n_layers, d_mlp) of the activations over each group of rows, None for an empty one.

    A row that several groups hold runs once. Memory does not grow with the rows.
    """
    owners: dict[Placed, list[int]] = {}
    for number, group in enumerate(groups):
        for row in group:
            owners.setdefault(row, []).append(number)
    rows = list(owners)
    totals: list[Moments | None] = [None] * len(groups)
    for indices, batch in activations(live, rows, layers, progress):
        lines: dict[int, list[int]] = {}
        for line, index in enumerate(indices):
            for number in owners[rows[index]]:
                lines.setdefault(number, []).append(line)
        for number, chosen in lines.items():
            part = Moments.of(batch[chosen])
            before = totals[number]
            totals[number] = part if before is None else before + part
    return totals


def layer_range(live: LiveModel, layers: tuple[int, int] | None) -> tuple[int, ...]:
    """The layers of an inclusive range, default all; raises InputError when the range leaves the model."""
    last = live.shape.n_layers - 1
    low, high = layers or (0, last)
    if not 0 <= low <= high <= last:
        raise InputError(f"layers {low}-{high} are out of range: {live.name} has layers 0–{last}; choose from these")
    return tuple(range(low, high + 1))
