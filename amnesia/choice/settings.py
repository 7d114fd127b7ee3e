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
    measured on all. `columns`: sizes of the supports that are offered, of each atom. `max_leak`: how much an edit may
    write, in mean square, into what should stay, as a share of what the layer writes there, before it is measured.
    `min_control`: mean knowledge score of the search controls, `max_text`: relative rise of the perplexity of search
    text, both beyond which an edit gives way to one on more columns.
    """

    goal: float = -0.1
    multipliers: tuple[float, ...] = (0.25, 0.0, -0.25, -0.5, -0.75, -1.0, -1.5, -2.0)
    fine_multipliers: tuple[float, ...] = (0.25, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.75, -1.0)
    n_screened: int = 8
    useful: float = 0.85
    n_paired: int = 3
    max_tokens: int = 3
    n_facts: int = 8
    columns: tuple[int, ...] = (16, 32, 64, 128)
    max_leak: float = 0.0025
    min_control: float = 0.98
    max_text: float = 0.006
