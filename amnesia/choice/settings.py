"""The numbers of the choice that were set by hand to weigh forgetting, harm and columns against each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceSettings:
    """How the choice goes about it.

    All were set together, while looking at 60 entities of `tests/benchmarks/extraction.py` on SmolLM2-135M; none was
    measured by itself. `max_harm` and `few_harm` were set again, while looking at twelve of them, when harm came to be
    told by what the model itself expects (`directions.response`), which halved it. Scores are mean knowledge scores (no
    unit, 1 as before, 0 like an unknown name), harms divergences to expect on text (nats per token, from 0 on).

    What is to be reached: `goal`, the score of the search facts, from 1 downwards and lower than what a recipe accepts,
    because held-out wordings fall less. It may be missed by `slack` (a score, from 0 on); an edit goes beyond it where
    that costs no more than the share `cheap` (0 to 1) of the harm that is allowed. `much` (a score, above 0) is a
    difference that counts: an edit goes so far beyond the goal, an atom is tried further that alone makes forget so
    much, so much more of neighbors is worth more columns, to come so much nearer the goal the harm that is allowed, and
    an edit for a form of the name lowers its score by as much, or to its goal, the score `form_goal`.

    What is tried: `n_screened` (from 1 on) atoms are measured, those that move the residual stream most, and all others
    where these are not enough. The `n_paired` (from 1 on) best of them are combined. Candidates are measured on
    `n_facts` (from 1 on) search facts, taken evenly, the chosen edit on all. `columns` are the numbers of columns that
    are offered of atoms, together where there are several; one cell alone is scaled.

    What is spared: beyond `max_harm`, and below `min_control` and `min_neighbor`, scores of the search controls and of
    facts about neighbors, an edit gives way to one on more columns. `few` are the columns to which it should keep where
    it can: on so many it may harm `few_harm` times (from 1 on) as much. `margin` is the share (0 to 1) of the harm for
    what must leave some of it: edits of fewer columns, with which controls should lose no more than this share of what
    they may, too, that for the name itself where there are forms of it, and, of what is left, one for a form on few
    columns where other forms follow. `near_cost` (from 0 on) is the weight of the harm on texts about neighbors beside
    that on text, `near_share` (0 to 1) the weight of these texts among the second moments, `apart_share` that of the
    neighbors' own keys where nothing else spares them. Beside such an edit, by which text loses more than is expected,
    forms keep to the share `apart_harm` (0 to 1) of the harm, all but the name where it begins a line.
    """

    goal: float = -0.1
    slack: float = 0.05
    cheap: float = 0.4
    much: float = 0.2
    form_goal: float = 0.1
    n_screened: int = 8
    n_paired: int = 3
    n_facts: int = 8
    columns: tuple[int, ...] = (1, 16, 32, 64, 128, 256)
    max_harm: float = 0.0055
    margin: float = 0.5
    few: int = 128
    few_harm: float = 1.3
    min_control: float = 0.98
    min_neighbor: float = 0.9
    near_cost: float = 0.1
    near_share: float = 0.01
    apart_share: float = 0.1
    apart_harm: float = 0.8

    @property
    def beyond(self) -> float:
        """The score to which an edit goes beyond the goal."""
        return self.goal - self.much

    @property
    def useful(self) -> float:
        """The score to which what is tried further must bring the search facts."""
        return 1.0 - self.much

    def loss(self, score: float, harm: float) -> float:
        """What is missing from the goal and what it costs, each as a share of what counts (no unit, from 0 on)."""
        return max(0.0, score - self.goal) / self.much + harm / max(self.max_harm, 1e-12)
