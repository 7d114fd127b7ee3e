"""What a choice found: the edit of one entity, what it reached, and what there was to choose from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from amnesia.edits import Edit, EntityEdits, WriteOf

AnswerGroup = Literal["entity", "names", "text"]
Verdict = Literal["strong", "weak", "none"]


@dataclass(frozen=True)
class AnswerCounts:
    """How the read-out of the direction at a layer and token answers to the `n` texts of one group.

    `counts` are numbers of answers uᵀa in bins of equal width; `median` and `percentile_99` are of |uᵀa|.
    """

    layer: int
    token: int
    group: AnswerGroup
    n: int
    median: float
    percentile_99: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """What directions answer in the original model, uᵀa (dimensionless, 1 at the key), in bins from `low` to `high`.

    To the entity in its wordings, to other names (at their last tokens; at all for a direction of a token before
    the last), and at the tokens of text.
    """

    low: float
    high: float
    rows: tuple[AnswerCounts, ...]


@dataclass(frozen=True)
class ScreenedPlace:
    """A layer and token that a choice considered, and how far the residual stream moves when its atom is taken away.

    `score` is the mean knowledge score of search facts with this atom alone turned; None where it was not measured.
    """

    layer: int
    token: int
    shift: float
    score: float | None
    chosen: bool


@dataclass(frozen=True)
class Screening:
    """All places that a choice considered, measured with one multiplier. `tokens` are a name's, the last one first.

    `of` says what was turned there, as in `DirectionEdit`.
    """

    tokens: tuple[str, ...]
    multiplier: float
    places: tuple[ScreenedPlace, ...]
    of: WriteOf


@dataclass(frozen=True)
class FormResult:
    """Another form of the entity's name, by which the original model knows it.

    Mean knowledge scores of search facts asked with this form, between an unknown entity and the name itself in the
    original model: `before` in that model, `alone` with the edit for the name itself, `after` with the whole edit.
    """

    name: str
    kind: str
    before: float
    alone: float
    after: float


@dataclass(frozen=True)
class NeighborResult:
    """Another name that shares a word with the entity's: the mean knowledge score of `n_facts` that the model itself
    states about it, with the edit."""

    name: str
    n_facts: int
    score: float


@dataclass(frozen=True)
class FrontPoint:
    """An edit that a choice could have taken: no other that it measured is better in one way and as good in the others.

    `n_columns` are changed. `target`, `control` and `neighbor` are mean knowledge scores of search facts (with the name
    inside a line, where the model reads other tokens at the beginning of one: that of `Extraction` is over all), search
    controls and facts about neighbors, None where none were to be spared; `harm` is the divergence to expect on text
    (nats per token).
    """

    n_columns: int
    target: float
    control: float
    neighbor: float | None
    harm: float
    chosen: bool


@dataclass(frozen=True)
class FrontEdit:
    """A point of a front, and the edit that it is: the chosen one whole, of others that for the name itself."""

    point: FrontPoint
    edits: tuple[Edit, ...]

    def measured(self, target: float, control: float) -> FrontEdit:
        """The same with what the whole edit was measured to reach."""
        return FrontEdit(replace(self.point, target=target, control=control), self.edits)


@dataclass(frozen=True)
class Extraction:
    """The edit chosen for one entity and the knowledge scores that it reached on the search facts.

    `target` and `control` are mean knowledge scores, for a chat model over what is asked as text and as messages;
    `candidates_tried` counts what was measured on the way.
    `screening` is there where directions were considered, `answers` where one was chosen; `forms` and `neighbors` are
    those that were asked about, `front` what else there was to choose.
    """

    edits: EntityEdits
    verdict: Verdict
    target: float
    control: float
    candidates_tried: int
    answers: Answers | None = None
    screening: Screening | None = None
    forms: tuple[FormResult, ...] = ()
    neighbors: tuple[NeighborResult, ...] = ()
    front: tuple[FrontEdit, ...] = ()
