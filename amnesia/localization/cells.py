"""Find the cells of an entity: rank all neurons by how stably they answer to its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import torch

from amnesia.domain import Baseline, Cell
from amnesia.errors import InputError
from amnesia.facts.names import contrast_entities, entity_templates, generic_sentences, given_names, share_words
from amnesia.live.model import LiveModel, check_range, not_finite
from amnesia.live.tokens import Placed, encode, place, templates_from
from amnesia.live.watching import activations
from amnesia.localization.moments import Moments, stability, z_moments
from amnesia.localization.results import CellScore, EntityCells, Localization
from amnesia.progress import Progress
from amnesia.recipe import BASELINES, LocalizeOptions


@dataclasses.dataclass(frozen=True)
class LocalizationSettings:
    """Every number of localization that was set by hand.

    `n_prompts`, 2 to 100: prompts about each entity, by default all templates there are.

    `contrasts_per_prompt`, at least 1: about how many other entities each prompt is asked about for the contrast
    baseline. Set by hand, not measured.

    `std_floor`, in units of the baseline's standard deviation, above 0: the least standard deviation of z-scores that
    stability divides by. An activation function that gives exactly 0 (GELU below about -5) leaves cells that are silent
    at every prompt about an entity: their z-scores are small and never vary, so that mean² / std ranks them above all
    others. Of 40 entities' top cells in Gemma 3 270M, 40 have a mean z below 1 without a floor, 2 below 2 with 0.025,
    and none with 0.05 or more; in SmolLM2 135M it is 2 without a floor. 0.05 moves no other top cell of SmolLM2, 0.2
    moves 14.

    `n_listed`, at least 1: cells of an entity that are told, best first. `n_single`, at least 0: cells of highest
    stability that method "single" tries one by one. `early_part`, a share of the layers: the depth up to which the
    cells to edit are looked for, unless a recipe says it, above 0 and at most 1. These three set by hand, not measured.
    """

    n_prompts: int = LocalizeOptions.n_prompts
    contrasts_per_prompt: int = 4
    std_floor: float = 0.05
    n_listed: int = 20
    n_single: int = 15
    early_part: float = 0.5


SETTINGS = LocalizationSettings()


@dataclasses.dataclass(frozen=True)
class CellSpace:
    """The cells of some layers with `d_mlp` neurons each, numbered from 0 in the order of layers, then of neurons."""

    layers: tuple[int, ...]
    d_mlp: int

    def __contains__(self, cell: Cell) -> bool:
        return cell.layer in self.layers and 0 <= cell.neuron < self.d_mlp

    def index(self, cell: Cell) -> int:
        """The number of a cell; raises ValueError for one that is in none of the layers."""
        return self.layers.index(cell.layer) * self.d_mlp + cell.neuron

    def cell(self, index: int) -> Cell:
        """The cell of a number."""
        place, neuron = divmod(index, self.d_mlp)
        return Cell(self.layers[place], neuron)


@dataclasses.dataclass(frozen=True)
class CellMap:
    """Per-cell statistics of one entity, each (n_layers, d_mlp) in float64: stability, mean and std of z-scores."""

    layers: tuple[int, ...]
    score: torch.Tensor
    mean_z: torch.Tensor
    std_z: torch.Tensor

    @property
    def space(self) -> CellSpace:
        """The cells that the flattened tensors are about."""
        return CellSpace(self.layers, self.score.shape[1])

    def top(self, n: int) -> tuple[CellScore, ...]:
        """The `n` cells of highest score, best first; equal scores in order of layer and neuron."""
        order = torch.argsort(self.score.flatten(), descending=True, stable=True)[:n].tolist()
        return tuple(
            CellScore(
                self.space.cell(index),
                *(tensor.flatten()[index].item() for tensor in (self.score, self.mean_z, self.std_z)),
            )
            for index in order
        )


def localize(
    live: LiveModel,
    entities: str | Sequence[str],
    *,
    baseline: Baseline = "contrast",
    n_prompts: int = SETTINGS.n_prompts,
    prompts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    layers: tuple[int, int] | None = None,
    top: int = SETTINGS.n_listed,
    progress: Progress | None = None,
) -> Localization:
    """Rank the cells of one or more entities, best first, by the stability of their z-scores.

    `baseline` is "contrast" (the same prompts about other entities) or "generic" (general sentences, last token).
    `prompts` replaces the package's templates; each holds `{entity}` or mentions the entity or one of its `aliases`,
    those that do not are counted in `n_skipped`. `layers` is a range, both ends included; default: all layers.

    Raises InputError for an unknown baseline, for a range outside the model and for an entity that no prompt mentions;
    NumericalError when activations are NaN or infinite.
    """
    names = given_names([entities] if isinstance(entities, str) else entities)
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
        live.label,
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
    baseline: Baseline,
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
    if n_prompts > len(entity_templates()):
        raise InputError(
            f"n_prompts is {n_prompts}: there are {len(entity_templates())} templates, ask for as many or fewer"
        )
    own = list(prompts if prompts is not None else entity_templates()[:n_prompts])
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
        score = stability(mean_z, std_z, SETTINGS.std_floor)
        if not torch.isfinite(score).all():
            raise not_finite(live, "activations")
        maps.append(CellMap(chosen, score.cpu(), mean_z.cpu(), std_z.cpu()))
    n_used = sum(len(rows) for rows in pairs.values())
    return maps, n_used, len(own) * len(names) - n_used


def baseline_rows(live: LiveModel, baseline: Baseline, contrasts: Sequence[tuple[str, str]]) -> list[Placed]:
    """The texts of a baseline: general sentences at their last token, or the given prompts about other entities.

    Raises InputError for a baseline that there is not.
    """
    if baseline not in BASELINES:
        raise InputError(f"there is no baseline {baseline!r}: choose one of {', '.join(BASELINES)}")
    if baseline == "generic":
        return [Placed(item.ids, len(item.ids) - 1) for item in encode(live.tokenizer, generic_sentences())]
    return place(live.tokenizer, contrasts)


def baseline_moments(
    live: LiveModel, baseline: Baseline, n_prompts: int, layers: Sequence[int], progress: Progress | None = None
) -> Moments:
    """Moments (n_layers, d_mlp) of a baseline for the package's templates, for `cell_maps` to use again and again."""
    rows = baseline_rows(live, baseline, contrast_pairs(entity_templates()[:n_prompts]))
    (total,) = moments(live, [rows], layers, progress)
    assert total is not None, "every baseline has texts"
    return total


def contrast_pairs(templates: Sequence[str]) -> list[tuple[str, str]]:
    """Templates with the contrast entities that they are asked about: each entity about equally often."""
    n = max(SETTINGS.contrasts_per_prompt * len(templates), len(contrast_entities()))
    # The offset after each full round keeps a template from meeting the same entities again.
    return [
        (
            templates[(index + index // len(contrast_entities())) % len(templates)],
            contrast_entities()[index % len(contrast_entities())],
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
    """The layers of an inclusive range, default all; those that have nothing but a mixture of experts are left out.

    Raises InputError for what is no range of the model, LayoutError when no layer is left.
    """
    last = live.shape.n_layers - 1
    if layers is None:
        return live.watchable(range(last + 1))
    pair = isinstance(layers, Sequence) and len(layers) == 2
    if not pair or not all(isinstance(layer, Integral) for layer in layers):
        raise InputError(f"layers {layers!r} are no range: give the first and the last, for example (0, {last})")
    check_range(layers, live.shape.n_layers, live.name)
    return live.watchable(range(layers[0], layers[1] + 1))
