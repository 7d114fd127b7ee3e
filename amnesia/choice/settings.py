"""Every number of the choice that was set by hand, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceSettings:
    """How the choice goes about it.

    `goal`: mean knowledge score (dimensionless) of the search facts that an edit must reach; lower than what a recipe
    accepts, because held-out wordings fall less. `multipliers`: tried from the weakest on; `fine_multipliers` where a
    norm follows the MLP, behind which a write turns instead of shrinking. `n_screened`: atoms that are measured, those
    that move the residual stream most. `useful`: score to which an atom alone must bring the search facts to be tried
    further; `n_paired`: the best of these that are combined. `max_tokens`: tokens of a name whose keys are read, from
    the last one backwards. `n_facts`: search facts that candidates are measured on, taken evenly; the chosen edit is
    measured on all. `columns`: sizes of the supports that are offered, of each atom; one cell alone is scaled.
    `max_harm`: divergence to expect on text (nats per token), `min_control`: mean knowledge score of the search
    controls, beyond which an edit gives way to one on more columns; below 128 columns only `margin` of the harm is
    allowed. `harm_of_score`: divergence that a score of one less may cost.

    `single_multipliers`: what method "single" multiplies a cell by; powers of two are exact in every type.
    `weak_target`: mean knowledge score of the search facts up to which an edit that misses the recipe's bounds still
    counts as a weak one.
    """

    goal: float = -0.1
    multipliers: tuple[float, ...] = (0.25, 0.125, 0.0, -0.125, -0.25, -0.375, -0.5, -0.75, -1.0, -1.5, -2.0)
    fine_multipliers: tuple[float, ...] = (0.25, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.75, -1.0)
    n_screened: int = 8
    useful: float = 0.85
    n_paired: int = 3
    max_tokens: int = 3
    n_facts: int = 8
    columns: tuple[int, ...] = (1, 16, 32, 64, 128, 256)
    max_harm: float = 0.013
    margin: float = 0.5
    harm_of_score: float = 0.05
    min_control: float = 0.98
    single_multipliers: tuple[float, ...] = (-1.0, -2.0, -4.0, -8.0)
    weak_target: float = 0.6
