"""The two forms in which an entity is injected at a placeholder: what layers write about it, or values of its cells.

Each knows its controls, too: the same of another entity, a random one of the same size, the mean over many names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from amnesia.directions.keys import mean_keys, name_rows, token_texts, wordings
from amnesia.directions.moments import early_layers
from amnesia.domain import Answer, Cell
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, check_known, known_facts
from amnesia.experiments.settings import EXPERIMENTS, check_put
from amnesia.facts.names import contrast_entities, name_wordings, share_words
from amnesia.facts.questions import questions_of
from amnesia.live.forward import answer_logprobs
from amnesia.live.interventions import Asked, Injection, injected, place_asked
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Placed
from amnesia.progress import Progress
from amnesia.recipe import Recipe

Controls = Mapping[str, Sequence[Injection]]
Keys = Mapping[int, Tensor]
"""Mean activations (n_layers, d_mlp) by token, counted from the last one of a name (0) backwards."""


@dataclass(frozen=True)
class DirectionPut:
    """`strength` · W(k − k_X) of each of `layers`, added to what it writes at each token of the placeholder.

    k are the mean activations at a token of the entity's name, k_X at the placeholder's. `tokens` are those of the
    name, its last one first, and `moves` how far the residual stream moves there, by layer and token, in its own units.
    """

    placeholder: str
    layers: tuple[int, ...]
    strength: float
    tokens: tuple[str, ...]
    moves: tuple[tuple[float, ...], ...]
    form: Literal["direction"] = "direction"


@dataclass(frozen=True)
class FactorTried:
    """Mean log-probability (nats) of the right answers to the search facts at one amplification."""

    factor: float
    mean_logprob: float


@dataclass(frozen=True)
class CellsPut:
    """Cells set to `values` at the placeholder's last token: `factor` times the entity's own unless they were given.

    `tried` are the factors that there were to choose from, judged by the `n_search` search facts; the other facts took
    no part.
    """

    placeholder: str
    cells: tuple[Cell, ...]
    values: tuple[float, ...]
    factor: float | None
    n_search: int
    tried: tuple[FactorTried, ...]
    form: Literal["cells"] = "cells"


Put = DirectionPut | CellsPut


class Form(Protocol):
    """What of a recipe's entity is injected at the last `n_tokens` tokens of a placeholder, in `layers`."""

    @property
    def live(self) -> LiveModel: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def n_tokens(self) -> int: ...

    @property
    def put(self) -> Put: ...

    def own(self) -> list[Injection]:
        """The entity's."""
        ...

    def onto(self, means: Keys) -> list[Injection]:
        """The entity's where the layers' activations are set to `means` at the placeholder's tokens."""
        ...

    def controls(self, seed: int) -> Controls:
        """What is injected in place of the entity, by name of the condition."""
        ...


@dataclass(frozen=True, eq=False)
class Direction:
    """What layers write about an entity; `keys` are its own, `base` are the placeholder's."""

    live: LiveModel
    recipe: Recipe
    put: DirectionPut
    keys: Keys
    base: Keys

    @property
    def layers(self) -> tuple[int, ...]:
        return self.put.layers

    @property
    def n_tokens(self) -> int:
        return len(self.keys)

    def own(self) -> list[Injection]:
        return self._moved(self.keys, self.base)

    def onto(self, means: Keys) -> list[Injection]:
        return [*_set(self.layers, means), *self._moved(self.keys, means)]

    def of(self, other: str) -> list[Injection]:
        """What the layers write about another name, at as many of its last tokens as there are placeholders."""
        return self._moved(key_of(self.live, other, self.layers, self.n_tokens), self.base)

    def controls(self, seed: int) -> Controls:
        mean = names_mean(self.live, self.recipe, self.layers, self.n_tokens)
        return {
            "wrong entity": self.of(other_entity(self.recipe, seed)),
            "random": self._random(seed),
            "mean entity": self._moved(mean, self.base),
        }

    def _moved(self, to: Keys, base: Keys) -> list[Injection]:
        """From the mean activations `base` by `strength` towards `to`, at the tokens that both have."""
        return [
            Injection(layer, None, self.put.strength * (to[back][n] - base[back][n]), add=True, back=back)
            for back in base.keys() & to.keys()
            for n, layer in enumerate(self.layers)
        ]

    def _random(self, seed: int) -> list[Injection]:
        """Random combinations of the cells' writes, each as long as what the layer writes about the entity there."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for own in self.own():
            weight, value = self.live.out_weight(own.layer), torch.as_tensor(own.value)
            other = torch.randn(len(value), generator=generator).to(value)
            other *= (weight @ value).norm() / (weight @ other).norm()
            found.append(replace(own, value=other))
        return found


@dataclass(frozen=True, eq=False)
class CellValues:
    """Cells of an entity set to values."""

    live: LiveModel
    recipe: Recipe
    put: CellsPut

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({cell.layer for cell in self.put.cells}))

    @property
    def n_tokens(self) -> int:
        return 1

    def own(self) -> list[Injection]:
        return set_cells(self.put.cells, self.put.values)

    def onto(self, means: Keys) -> list[Injection]:
        return [*_set(self.layers, means), *self.own()]

    def controls(self, seed: int) -> Controls:
        mean = names_mean(self.live, self.recipe, self.layers, 1)
        draw = random.Random(seed)
        chance = [Cell(cell.layer, draw.randrange(self.live.shape.width(cell.layer))) for cell in self.put.cells]
        return {
            "wrong entity": set_cells(self._wrong_cells(mean[0], seed), self.put.values),
            "random": set_cells(chance, self.put.values),
            "mean entity": _set(self.layers, mean),
        }

    def _wrong_cells(self, mean: Tensor, seed: int) -> list[Cell]:
        """For each cell, one of the same layer that stands out for another entity of the recipe's controls."""
        other = other_entity(self.recipe, seed)
        excess = key_of(self.live, other, self.layers, 1)[0] - mean
        for place, layer in enumerate(self.layers):
            excess[place, self.live.shape.width(layer) :] = -torch.inf  # Narrower layers are padded.
        places = {layer: n for n, layer in enumerate(self.layers)}
        for cell in self.put.cells:
            excess[places[cell.layer], cell.neuron] = -torch.inf
        chosen = []
        for cell in self.put.cells:
            chosen.append(Cell(cell.layer, int(excess[places[cell.layer]].argmax())))
            excess[places[cell.layer], chosen[-1].neuron] = -torch.inf
        return chosen


def direction(
    live: LiveModel,
    recipe: Recipe,
    layers: Sequence[int] | None = None,
    strength: float = 1.0,
    placeholder: str = EXPERIMENTS.placeholder,
) -> Direction:
    """What layers write about the recipe's entity, for as many placeholders as its name has tokens.

    Without `layers`, the early layer is taken in which it moves the residual stream furthest at the token at which it
    moves it least: one token may be a sink of attention ("the", for example), whose activations have another size.
    Raises InputError for an empty placeholder and a strength that is not finite.
    """
    check_put(placeholder, strength=strength)
    name = recipe.target.entity
    read = tuple(sorted(layers)) if layers is not None else early_layers(live.shape.n_layers)
    keys = key_of(live, name, read)
    text = _placeholders(live, placeholder, len(keys))
    base = key_of(live, text, read, len(keys))
    moves = [[_move(live, read, n, keys[back], base[back], strength) for back in base] for n in range(len(read))]
    places = list(range(len(read))) if layers is not None else [max(range(len(read)), key=lambda n: min(moves[n]))]
    put = DirectionPut(
        text,
        tuple(read[n] for n in places),
        strength,
        token_texts(live, name, len(base)),
        tuple(tuple(moves[n]) for n in places),
    )
    kept, there = ({back: each[back][places] for back in base} for each in (keys, base))
    return Direction(live, recipe, put, kept, there)


def _move(live: LiveModel, layers: Sequence[int], n: int, key: Tensor, base: Tensor, strength: float) -> float:
    """How far the residual stream moves when layer number `n` writes `strength` of the way from `base` to `key`."""
    weight, norm = live.out_weight(layers[n]), live.norm_after(layers[n])
    written = torch.stack([weight @ base[n], weight @ (base[n] + strength * (key[n] - base[n]))])
    if norm is not None:
        written = norm(written.to(live.model.dtype)).float()
    return (written[1] - written[0]).norm().item()


def cell_values(
    live: LiveModel,
    recipe: Recipe,
    cells: Sequence[Cell],
    facts: Sequence[KnownFact],
    *,
    factor: float | None = None,
    value: float | None = None,
    placeholder: str = EXPERIMENTS.placeholder,
    progress: Progress | None = None,
) -> CellValues:
    """The cells at `value`, or at `factor` times their mean activations for the entity.

    Without both, the factor is taken under which those of `facts` that a search may see are likeliest. Raises
    InputError when both are given, for what is not finite, and when there is no such fact to choose a factor by.
    """
    check_put(placeholder, factor=factor, value=value)
    search = [fact for fact in facts if fact.question.split == "search"]
    if value is not None:
        return CellValues(
            live, recipe, CellsPut(placeholder, tuple(cells), (value,) * len(cells), None, len(search), ())
        )
    layers = sorted({cell.layer for cell in cells})
    keys = key_of(live, recipe.target.entity, layers, 1)[0]
    strength = [keys[layers.index(cell.layer), cell.neuron].item() for cell in cells]
    tried: list[FactorTried] = []
    if factor is None:
        if not search:
            raise InputError("the model knows no search fact to choose a factor by: give --factor or --value")
        for candidate in EXPERIMENTS.factors:
            put = set_cells(cells, [candidate * own for own in strength])
            found = answers_with(live, search, placeholder, put, progress)
            tried.append(FactorTried(candidate, sum(row.logprob for row in found) / len(found)))
        factor = max(tried, key=lambda row: row.mean_logprob).factor
    values = tuple(factor * own for own in strength)
    return CellValues(live, recipe, CellsPut(placeholder, tuple(cells), values, factor, len(search), tuple(tried)))


def known_targets(live: LiveModel, recipe: Recipe, progress: Progress | None = None) -> tuple[KnownFact, ...]:
    """The recipe's facts about the entity that the model knows: no others can be brought back. Raises InputError when
    it knows none."""
    questions = [question for question in questions_of(recipe) if question.role == "target"]
    facts = known_facts(live, questions, recipe.scoring, progress)
    check_known(facts)
    return tuple(fact for fact in facts if not fact.excluded)


def answers_with(
    live: LiveModel,
    facts: Sequence[KnownFact],
    placeholder: str,
    put: Sequence[Injection],
    progress: Progress | None = None,
) -> list[Answer]:
    """What the model says of the placeholder in each fact while `put` is injected there."""
    asked = [Asked(fact.question.fact.prompt, placeholder, fact.question.fact.answer) for fact in facts]
    tokens = [row.token for row in place_asked(live, asked)]
    puts = [put] * len(asked)
    return answer_logprobs(
        live, [row.pair for row in asked], progress, lambda batch: injected(live, batch, tokens, puts)
    )


def other_entity(recipe: Recipe, seed: int) -> str:
    """An entity of the recipe's controls that shares no word with the recipe's own; raises InputError for none."""
    others = sorted({fact.entity for fact in recipe.controls if not share_words(fact.entity, recipe.target.names)})
    if not others:
        raise InputError("every control of the recipe shares a word with the entity: add facts about somebody else")
    return random.Random(seed).choice(others)


def key_of(live: LiveModel, name: str, layers: Sequence[int], max_tokens: int | None = None) -> Keys:
    """Mean activations at a name's tokens in the middle of texts: at their beginning, many a name has other tokens."""
    return mean_keys(live, name_rows(live, name, max_tokens, _middle()), layers)


def _middle() -> tuple[str, ...]:
    return tuple(text for text in wordings() if not text.startswith("{entity}"))


def names_mean(live: LiveModel, recipe: Recipe, layers: Sequence[int], n_tokens: int) -> Keys:
    """Mean activations at the tokens of many other names, each in some wordings."""
    rows: dict[int, list[Placed]] = {back: [] for back in range(n_tokens)}
    inside = [text for text in name_wordings() if not text.startswith("{entity}")]
    for name in contrast_entities():
        if not share_words(name, recipe.target.names):
            for back, own in name_rows(live, name, n_tokens, inside).items():
                rows[back] += own
    return mean_keys(live, {back: own for back, own in rows.items() if own}, layers)


def set_cells(cells: Sequence[Cell], values: Sequence[float]) -> list[Injection]:
    """Set each of the cells to its value."""
    return [Injection(cell.layer, cell.neuron, value) for cell, value in zip(cells, values, strict=True)]


def _set(layers: Sequence[int], means: Keys) -> list[Injection]:
    """Set all activations of layers to means, at each token."""
    return [Injection(layer, None, own[n], back=back) for back, own in means.items() for n, layer in enumerate(layers)]


def _placeholders(live: LiveModel, word: str, n_tokens: int) -> str:
    """The word as often as it takes for as many tokens, at most so many times."""
    texts = [" ".join([word] * n) for n in range(1, n_tokens + 1)]
    return next((text for text in texts[:-1] if len(name_rows(live, text, texts=_middle())) >= n_tokens), texts[-1])
