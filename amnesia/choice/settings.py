"""Every number of the choice that was set by hand, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceSettings:
    """How the choice goes about it.

    `goal`: mean knowledge score (dimensionless) of the search facts that an edit must reach; lower than what a recipe
    accepts, because held-out wordings fall less. On few columns it may be missed by `slack`; an edit goes beyond it,
    down to `beyond`, where that costs no more than the share `cheap` of `max_harm`. `multipliers`: tried from the
    weakest on; `fine_multipliers` where a norm follows the MLP, behind which a write turns instead of shrinking.
    `n_screened`: atoms that are measured, those that move the residual stream most. `useful`: score to which an atom
    alone must bring the search facts to be tried further; `n_paired`: the best of these that are combined.
    `max_tokens`: tokens of a name whose keys are read, from the last one backwards. `n_facts`: search facts that
    candidates are measured on, taken evenly; the chosen edit is measured on all. `columns`: sizes of the supports that
    are offered, of each atom; one cell alone is scaled. `max_harm`: divergence to expect on text (nats per token),
    `min_control`: mean knowledge score of the search controls, `min_neighbor`: that of facts about neighbors, beyond
    which an edit gives way to one on more columns; below `few` columns, to which an edit should keep where it can, only
    `margin` of the harm is allowed. `harm_of_score`: divergence that a score of one less may cost; `near_cost`: weight
    of the divergence on texts about neighbors beside that on text. `near_share`: their share of the second moments.

    Forms of the name whose mean score of search facts is `known_form` in the original model are to reach `form_goal`;
    where there are some, the edit for the name itself may do the share `name_share` of the harm, and one for a form
    must lower its score by `form_gain`. `n_typos` misspellings are asked.

    `single_multipliers`: what method "single" multiplies a cell by; powers of two are exact in every type.
    `weak_target`: mean knowledge score of the search facts up to which an edit that misses the recipe's bounds still
    counts as a weak one.
    """

    goal: float = -0.1
    slack: float = 0.05
    beyond: float = -0.3
    cheap: float = 0.4
    multipliers: tuple[float, ...] = (0.25, 0.125, 0.0, -0.125, -0.25, -0.375, -0.5, -0.75, -1.0, -1.5, -2.0)
    fine_multipliers: tuple[float, ...] = (0.25, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.75, -1.0)
    n_screened: int = 8
    useful: float = 0.85
    n_paired: int = 3
    max_tokens: int = 3
    n_facts: int = 8
    columns: tuple[int, ...] = (1, 16, 32, 64, 128, 256)
    max_harm: float = 0.012
    margin: float = 0.5
    harm_of_score: float = 0.05
    min_control: float = 0.98
    min_neighbor: float = 0.9
    few: int = 128
    near_cost: float = 0.1
    near_share: float = 0.01
    known_form: float = 0.5
    form_goal: float = 0.1
    name_share: float = 0.5
    form_gain: float = 0.2
    n_typos: int = 2
    single_multipliers: tuple[float, ...] = (-1.0, -2.0, -4.0, -8.0)
    weak_target: float = 0.6
