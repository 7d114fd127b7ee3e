"""One edit for several entities: their single edits added up, or solved together, whichever measures better.

Edits that are added up add up their damage, and each does something to the names of the others. Solved together, the
read-outs of a layer are on all columns that any of the single edits changes there. Each answers 1 at its own key, 0 at
the keys of the other entities, and of all such read-outs least to what must stay: UᵀK = I in the metric C. Where that
takes neighbors along, their keys count among what must stay. Where many edits meet they may go beyond the goal, so that
weaker ones do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from amnesia.choice.atoms import add_names, own_tokens
from amnesia.choice.forms import forms_of, texts_of
from amnesia.choice.known import KnownFacts, Scores, reserved_names
from amnesia.choice.neighbors import names_in, neighbor_results, tellable
from amnesia.choice.results import NeighborResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import BystanderMoments, early_layers, moments_of
from amnesia.directions.solve import MAX_ELIMINATED, Metric
from amnesia.edits import (
    ColumnEdit,
    DirectionEdit,
    Edit,
    EntityEdits,
    directions_of,
    merged,
    weakened,
)
from amnesia.errors import InputError
from amnesia.facts.names import share_words
from amnesia.facts.variants import Variant
from amnesia.live.model import LiveModel
from amnesia.progress import SILENT, Progress
from amnesia.recipe import Recipe
from amnesia.vector import Vector

JointForm = Literal["sum", "solve", "apart"]
"""Added up, solved together, and solved together with the keys of neighbors among what must stay."""

_STRENGTHS = (1.0, 0.95, 0.9, 0.8)
_GOAL = ChoiceSettings.goal + ChoiceSettings.slack
_SAME = 1e-3  # Share of its length by which a key may differ when it is computed again.


@dataclass(frozen=True)
class Part:
    """One entity of a joint edit: its recipe, its single edit, and the facts that its choice may see and measures.

    `neighbors` are facts that the model itself states about neighbors of the name.
    """

    recipe: Recipe
    edits: EntityEdits
    targets: KnownFacts
    controls: KnownFacts
    neighbors: KnownFacts = ()

    @property
    def apart(self) -> KnownFacts:
        """Facts about those neighbors that an edit can tell from the name; none where the recipe spares none."""
        return tellable(self.neighbors, self.recipe.target) if self.recipe.edit.neighbors else ()


@dataclass(frozen=True)
class JointTrial:
    """A joint edit that was measured on the search facts: mean knowledge scores, the worst of the targets' and the mean
    of the controls', and the divergence to expect on text, nats per token. `strength` is 1 for edits as they were.
    `lost` are the neighbors that keep less than `ChoiceSettings.min_neighbor`, of those that can be told apart."""

    form: JointForm
    strength: float
    worst_target: float
    control: float
    harm: float
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Joint:
    """The joint edit by entity, its form, all that was tried, and what it leaves of each neighbor."""

    form: JointForm
    groups: tuple[EntityEdits, ...]
    tried: tuple[JointTrial, ...]
    neighbors: tuple[NeighborResult, ...]


def join(
    live: LiveModel,
    parts: Sequence[Part],
    task: Callable[[str], contextlib.AbstractContextManager[Progress]] = SILENT.task,
    cache: Path | None = None,
) -> Joint:
    """The joint edit of one or more parts. `cache` is the folder in which the moments of models are kept."""
    with task("joining the edits") as progress:
        return _Joining(live, parts, cache, progress, Scores(live)).best()


@dataclass
class _Joining:
    """The work on one joint edit; `found` are the trials with their edits."""

    live: LiveModel
    parts: Sequence[Part]
    cache: Path | None
    progress: Progress
    scores: Scores
    found: list[tuple[JointTrial, tuple[EntityEdits, ...]]] = field(default_factory=list)

    @cached_property
    def moments(self) -> BystanderMoments:
        early = self.live.watchable(early_layers(self.live.shape.n_layers))
        layers = early if {*self.layers} <= {*early} else self.layers
        return moments_of(self.live, layers, self.cache, progress=self.progress)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Those in which there is a direction."""
        return tuple(sorted({edit.layer for part in self.parts for edit in directions_of(part.edits.edits)}))

    def best(self) -> Joint:
        """The form that brings the targets to the goal, spares controls and neighbors and harms text least, in this
        order; of what misses the goal, `slack` more or less counts for nothing."""
        alone = tuple(part.edits for part in self.parts)
        if len(alone) == 1:
            return Joint("sum", alone, (), self._neighbors(alone[0].edits))
        self._fit("sum", alone)
        if self.layers:
            self._solve("solve")
            if self._least()[0].lost or self._of_streams:
                self._solve("apart")
        trial, groups = self._least()
        acting = combined(edit for group in groups for edit in group.edits)
        return Joint(trial.form, groups, tuple(row for row, _ in self.found), self._neighbors(acting))

    def _least(self) -> tuple[JointTrial, tuple[EntityEdits, ...]]:
        return min(
            self.found,
            key=lambda pair: (
                max(0, math.ceil((pair[0].worst_target - _GOAL) / ChoiceSettings.slack)),
                pair[0].control < ChoiceSettings.min_control,
                len(pair[0].lost),
                pair[0].harm,
            ),
        )

    def _neighbors(self, edits: tuple[Edit, ...]) -> tuple[NeighborResult, ...]:
        facts = {fact.pair: fact for part in self.parts for fact in part.neighbors}
        return neighbor_results(self.scores, tuple(facts.values()), edits)

    @property
    def _of_streams(self) -> bool:
        """Whether a direction takes away what a stream carries."""
        return any(edit.of == "stream" for part in self.parts for edit in directions_of(part.edits.edits))

    def _solve(self, form: JointForm) -> None:
        with contextlib.suppress(torch.linalg.LinAlgError):  # Two entities may have one key.
            self._fit(form, solved(self.live, self.moments, self.parts, apart=form == "apart"))

    def _fit(self, form: JointForm, groups: Sequence[EntityEdits]) -> None:
        """Measure the edits weaker and weaker, as long as all targets are at the goal."""
        for strength in _STRENGTHS:
            if self._measure(form, groups, strength).worst_target > _GOAL:
                break

    def _measure(self, form: JointForm, groups: Sequence[EntityEdits], strength: float) -> JointTrial:
        """The mean scores of search facts, while the edits act with this strength."""
        groups = tuple(
            replace(group, edits=tuple(weakened(edit, strength) for edit in group.edits)) for group in groups
        )
        controls, near = (
            tuple({fact.pair: fact for facts in rows for fact in facts}.values())
            for rows in ([part.controls for part in self.parts], [part.apart for part in self.parts])
        )
        edits = tuple(edit for group in groups for edit in group.edits)
        acting = combined(edits)
        scores = [self.scores.mean(part.targets, acting) for part in self.parts]
        control = self.scores.mean(controls, acting)
        kept = neighbor_results(self.scores, near, acting)
        self.progress(len(self.parts))
        lost = tuple(row.name for row in kept if row.score < ChoiceSettings.min_neighbor)
        trial = JointTrial(form, strength, max(scores), control, self._harm(edits), lost)
        self.found.append((trial, groups))
        return trial

    def _harm(self, edits: Sequence[Edit]) -> float:
        """KL(original || edited) to expect on text, nats per token; scaled cells outside the moments are left out."""
        if not self.layers:
            return 0.0
        response, change = self.moments.response, torch.zeros(0)
        for edit in edits:
            layer = edit.layer
            if layer not in self.moments.layers:
                continue
            cells, read = torch.tensor(edit.columns), torch.from_numpy(edit.read.array.copy())
            if isinstance(edit, ColumnEdit):
                write = self.live.out_weight(layer)[:, edit.cell.neuron]
            else:
                write = torch.from_numpy(edit.write.array.copy())
            place, device = self.moments.layers.index(layer), response.activations.device
            own = response.to(place, cells.to(device), read.to(device), write.to(device))
            change = (1.0 - edit.multiplier) * own + (change if len(change) else 0.0)
        return 0.5 * change.square().mean().item() if len(change) else 0.0


def solved(
    live: LiveModel, moments: BystanderMoments, parts: Sequence[Part], *, apart: bool = False
) -> tuple[EntityEdits, ...]:
    """The edits with the read-outs of directions solved together, layer by layer.

    Scaled cells stay as they are, and without `apart` directions of a stream, too, which were solved to answer little
    to the names of neighbors; with it, all are.
    Raises torch.linalg.LinAlgError where two entities have one key.
    """
    layers = {edit.layer for part in parts for edit in directions_of(part.edits.edits)}
    found = {id(old): new for layer in sorted(layers) for old, new in _solved(live, moments, layer, parts, apart)}
    return tuple(
        replace(part.edits, edits=tuple(found.get(id(edit), edit) for edit in part.edits.edits)) for part in parts
    )


def _solved(
    live: LiveModel, moments: BystanderMoments, layer: int, parts: Sequence[Part], apart: bool
) -> Iterable[tuple[DirectionEdit, DirectionEdit]]:
    """Each direction of a layer, with what becomes of it when all are solved together."""
    own = [
        (edit, part)
        for part in parts
        for edit in directions_of(part.edits.edits)
        if edit.layer == layer and (apart or edit.of == "layer")
    ]
    if not own:
        return
    names = [name for part in parts for name in part.recipe.target.names]
    reserved = {*names, *(name for part in parts for name in reserved_names(part.recipe))}
    second, _ = moments.without(live, layer, lambda other: share_words(other, reserved), own_tokens(live, names))
    for facts in (part.apart for part in parts if apart and part.apart):
        add_names(live, layer, names_in(facts), second, ChoiceSettings.apart_share)
    cells = _columns([edit for edit, _ in own], second)
    metric = Metric(second).on(cells)
    keys = torch.stack([_key(live, edit, part)[cells] for edit, part in own], dim=1)
    spread = Vector.of(metric.moments.diagonal().sqrt().float().cpu())
    groups = [part.edits.entity for _, part in own]
    for (edit, _), key, read_out in zip(own, keys.T, metric.apart(keys, groups), strict=True):
        yield (
            edit,
            replace(
                edit,
                columns=tuple(cells.tolist()),
                read=Vector.of(read_out.u.cpu()),
                key=Vector.of(key.cpu()),
                spread=spread,
            ),
        )


def combined(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """Edits in which no cell is scaled twice: where two entities scale one, by the product of their multipliers."""
    return merged([EntityEdits("all", (edit,)) for edit in edits], allow_overlap=True)


def _columns(edits: Sequence[DirectionEdit], second: Tensor) -> Tensor:
    """All columns that the edits change; of too many for one solve those by which they answer most."""
    columns = torch.tensor(sorted({column for edit in edits for column in edit.columns}), device=second.device)
    if len(columns) <= MAX_ELIMINATED:
        return columns
    total = torch.zeros(len(second), dtype=torch.float64, device=second.device)
    for edit in edits:
        read = torch.from_numpy(edit.read.array.copy()).to(total)
        total[list(edit.columns)] += read.square() * second.diagonal()[list(edit.columns)]
    return total.topk(MAX_ELIMINATED).indices.sort().values


def _key(live: LiveModel, edit: DirectionEdit, part: Part) -> Tensor:
    """The key (d_mlp,) of a direction on all columns: that of the form of the name which it was chosen for."""
    own = torch.from_numpy(edit.key.array.copy()).to(live.device)
    nearest, distance = None, math.inf
    entity = part.recipe.target.entity
    for form in (Variant(entity, "name"), Variant(entity, "first in a line"), *forms_of(part.recipe.target)):
        keys = name_keys(live, form.name, [edit.layer], edit.token + 1, texts_of(live, form))
        if edit.token in keys:
            (key,) = keys[edit.token]
            away = (key[list(edit.columns)] - own).norm().item()
            if away < distance:
                nearest, distance = key, away
            if away < _SAME * own.norm().item():
                break
    if nearest is None:
        raise InputError(f"the edit for {part.edits.entity!r} is at a token that the name has not: extract it again")
    return nearest
