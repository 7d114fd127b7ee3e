"""Let the model read an entity where none is written: its cells are set at a placeholder token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.domain import Cell, Fact
from amnesia.errors import InputError
from amnesia.evaluation.results import Estimate
from amnesia.evaluation.scores import mean_interval
from amnesia.experiments.settings import EXPERIMENTS
from amnesia.facts.names import entity_templates, share_words
from amnesia.live.forward import activations, answer_logprobs, generate
from amnesia.live.interventions import Asked, Injection, injected, place_asked
from amnesia.live.model import LiveModel
from amnesia.live.tokens import place
from amnesia.localization.cells import CellSpace, contrast_pairs
from amnesia.progress import Progress
from amnesia.recipe import Recipe

CONDITIONS = ("entity cells", "wrong cells", "random cells", "mean entity", "nothing")


@dataclass(frozen=True)
class InjectedAnswer:
    """What the model said of the placeholder under one condition. `logprob` is the right answer's, in nats."""

    condition: str
    prompt: str
    answer: str
    generated: str
    rank: int
    logprob: float
    success: bool


@dataclass(frozen=True)
class Condition:
    """Share of facts answered rightly, and by how many nats the right answers are likelier than with nothing injected.

    Both are means over `n` facts. `mean_logprob` is that of the right answers.
    """

    condition: str
    n: int
    success: Estimate
    mean_logprob: float
    gain: Estimate


@dataclass(frozen=True)
class FactorTried:
    """Mean log-probability (nats) of the right answers to the search facts at one amplification."""

    factor: float
    mean_logprob: float


@dataclass(frozen=True)
class InjectionResult:
    """Success of the entity's cells against the controls.

    `values` are the activations that were set, `factor` times the entity's own unless they were given. `tried` are
    the factors that there were to choose from, judged by the `n_search` search facts; the other facts took no part.
    """

    model: str
    entity: str
    placeholder: str
    cells: tuple[Cell, ...]
    values: tuple[float, ...]
    factor: float | None
    n_search: int
    tried: tuple[FactorTried, ...]
    conditions: tuple[Condition, ...]
    answers: tuple[InjectedAnswer, ...]


def injections(cells: Sequence[Cell], values: Sequence[float]) -> list[Injection]:
    """Set each of the cells to its value."""
    return [Injection(cell.layer, cell.neuron, value) for cell, value in zip(cells, values, strict=True)]


def mean_activations(
    live: LiveModel, pairs: Sequence[tuple[str, str]], layers: Sequence[int], progress: Progress | None = None
) -> Tensor:
    """Mean activations (n_layers, d_mlp) at the last token of the names in (template, name) pairs."""
    total = torch.zeros(len(layers), live.shape.d_mlp, dtype=torch.float64)
    for _, batch in activations(live, place(live.tokenizer, pairs), layers, progress):
        total += batch.double().sum(0).cpu()
    return total / len(pairs)


def amplification(
    live: LiveModel,
    recipe: Recipe,
    cells: Sequence[Cell],
    factor: float | None,
    value: float | None,
    placeholder: str,
    progress: Progress | None = None,
) -> tuple[list[float], float | None, list[FactorTried]]:
    """Activations to set the cells to, the factor behind them, and the factors that were tried to find it.

    Raises InputError when both a factor and a value are given.
    """
    if value is not None and factor is not None:
        raise InputError("give either a value or a factor of the entity's own activation, not both")
    if value is not None:
        return [value] * len(cells), None, []
    layers = sorted({cell.layer for cell in cells})
    pairs = [(template, recipe.target.entity) for template in _templates()]
    own = mean_activations(live, pairs, layers, progress)
    space = CellSpace(tuple(layers), live.shape.d_mlp)
    strength = own.flatten()[[space.index(cell) for cell in cells]].tolist()
    tried: list[FactorTried] = []
    if factor is None:
        search = [fact for fact in recipe.facts if fact.split == "search"]
        for candidate in EXPERIMENTS.factors:
            put = injections(cells, [candidate * s for s in strength])
            found = _logprobs(live, search, placeholder, put, progress)
            tried.append(FactorTried(candidate, sum(found) / len(found)))
        factor = max(tried, key=lambda row: row.mean_logprob).factor
    return [factor * s for s in strength], factor, tried


def inject(
    live: LiveModel,
    recipe: Recipe,
    cells: Sequence[Cell],
    *,
    factor: float | None = None,
    value: float | None = None,
    placeholder: str = EXPERIMENTS.placeholder,
    seed: int = 0,
    progress: Progress | None = None,
) -> InjectionResult:
    """Ask the recipe's facts about a placeholder while the cells are set at its last token.

    Each cell is set to `value`, or to `factor` times its mean activation for the entity; without both, the factor under
    which the search facts are likeliest is taken. Controls: as many cells of another entity's highest activations in
    the same layers and random cells, at the same values, and the layers' mean activations over many entities.
    Raises InputError when both value and factor are given.
    """
    values, factor, tried = amplification(live, recipe, cells, factor, value, placeholder, progress)
    layers = sorted({cell.layer for cell in cells})
    names = recipe.target.names
    others = [pair for pair in contrast_pairs(_templates()) if not share_words(pair[1], names)]
    mean = mean_activations(live, others, layers, progress)
    draw = random.Random(seed)
    wrong = _wrong_cells(live, recipe, cells, layers, mean, draw)
    chance = [Cell(cell.layer, draw.randrange(live.shape.d_mlp)) for cell in cells]
    puts: dict[str, list[Injection]] = {
        "entity cells": injections(cells, values),
        "wrong cells": injections(wrong, values),
        "random cells": injections(chance, values),
    }
    puts["mean entity"] = [Injection(layer, None, mean[n].float()) for n, layer in enumerate(layers)]
    puts["nothing"] = []
    answers = [row for name in CONDITIONS for row in _ask(live, recipe.facts, placeholder, name, puts[name], progress)]
    by_condition = {name: [row for row in answers if row.condition == name] for name in CONDITIONS}
    conditions = [
        Condition(
            name,
            len(rows),
            mean_interval([float(row.success) for row in rows]),
            sum(row.logprob for row in rows) / len(rows),
            mean_interval(
                [row.logprob - nothing.logprob for row, nothing in zip(rows, by_condition["nothing"], strict=True)]
            ),
        )
        for name, rows in by_condition.items()
    ]
    return InjectionResult(
        live.name,
        recipe.target.entity,
        placeholder,
        tuple(cells),
        tuple(values),
        factor,
        sum(fact.split == "search" for fact in recipe.facts),
        tuple(tried),
        tuple(conditions),
        tuple(answers),
    )


def _templates() -> Sequence[str]:
    """The prompts over which mean activations are taken."""
    return entity_templates()[: EXPERIMENTS.n_templates]


def _wrong_cells(
    live: LiveModel, recipe: Recipe, cells: Sequence[Cell], layers: Sequence[int], mean: Tensor, draw: random.Random
) -> list[Cell]:
    """For each cell, one of the same layer that stands out for another entity of the recipe's controls."""
    names = recipe.target.names
    others = sorted({fact.entity for fact in recipe.controls if not share_words(fact.entity, names)})
    if not others:
        raise InputError("every control of the recipe shares a word with the entity: add facts about somebody else")
    other = draw.choice(others)
    excess = mean_activations(live, [(t, other) for t in _templates()], layers) - mean
    space, excess = CellSpace(tuple(layers), live.shape.d_mlp), excess.flatten()
    excess[[space.index(cell) for cell in cells]] = -torch.inf
    chosen = []
    for cell in cells:
        start = space.index(Cell(cell.layer, 0))
        chosen.append(space.cell(start + int(excess[start : start + space.d_mlp].argmax())))
        excess[space.index(chosen[-1])] = -torch.inf
    return chosen


def _asked(facts: Sequence[Fact], placeholder: str) -> list[Asked]:
    return [Asked(fact.prompt, placeholder, fact.answer) for fact in facts]


def _logprobs(
    live: LiveModel, facts: Sequence[Fact], placeholder: str, put: list[Injection], progress: Progress | None
) -> list[float]:
    asked = _asked(facts, placeholder)
    tokens = [row.token for row in place_asked(live, asked)]
    around = lambda batch: injected(live, batch, tokens, [put] * len(asked))  # noqa: E731
    return [row.logprob for row in answer_logprobs(live, [row.pair for row in asked], progress, around)]


def _ask(
    live: LiveModel,
    facts: Sequence[Fact],
    placeholder: str,
    condition: str,
    put: list[Injection],
    progress: Progress | None,
) -> list[InjectedAnswer]:
    asked = _asked(facts, placeholder)
    tokens = [row.token for row in place_asked(live, asked)]
    alone = [row.token for row in place(live.tokenizer, [(fact.prompt, placeholder) for fact in facts])]
    scored = answer_logprobs(
        live,
        [row.pair for row in asked],
        progress,
        lambda batch: injected(live, batch, tokens, [put] * len(asked)),
    )
    texts = generate(
        live,
        [row.pair[0] for row in asked],
        progress=progress,
        around=lambda batch: injected(live, batch, alone, [put] * len(asked)),
    )
    return [
        InjectedAnswer(
            condition,
            row.pair[0],
            row.answer,
            text,
            score.rank,
            score.logprob,
            text.strip().casefold().startswith(row.answer.casefold()),
        )
        for row, score, text in zip(asked, scored, texts, strict=True)
    ]
