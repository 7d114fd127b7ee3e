"""The Pareto front of a choice: edits that none is better than in forgetting, in harm and in columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from amnesia.choice.atoms import Change
from amnesia.choice.direction import DirectionChoice, JudgedTrial, Trial
from amnesia.choice.results import FrontEdit, FrontPoint
from amnesia.domain import n_columns
from amnesia.edits import Edit
from amnesia.numbers import short, signed


def widen(choice: DirectionChoice) -> None:
    """Judge also what the choice was offered and did not need: all sizes of all its best trials.

    It comes after the choice, which sees nothing of it.
    """
    known = {_place(trial) for trial in choice.judged}
    for dense in choice.dense:
        for atoms in choice.sizes(dense):
            trial = choice.fitted(atoms, dense.multiplier)
            if _place(trial) not in known:
                known.add(_place(trial))
                choice.judge(trial)


def front_of(
    judged: Sequence[JudgedTrial], best: JudgedTrial, edits: tuple[Edit, ...], change: Change, spared: float | None
) -> tuple[FrontEdit, ...]:
    """The front of the trials that were judged, the fewest columns first, always with the chosen one.

    Of that, `edits` are all edits, with those for forms of the name, `change` is what texts lose by all of them,
    and `spared` the score of neighbors with them; what the targets and controls then score is still to come.
    """
    found = {_place(trial): _point(trial, trial.edits, trial.change.harm, False) for trial in judged}
    chosen = _point(replace(best, neighbor=spared), edits, change.harm, True)
    others = [row for place, row in found.items() if place != _place(best)]
    known = [*others, _point(best, best.edits, best.change.harm, True)]
    front = [row for row in others if not any(_beats(other.point, row.point) for other in known)]
    return tuple(sorted((*front, chosen), key=lambda row: (row.point.n_columns, row.point.target)))


CANDIDATES = (
    "what made the model forget best, tried by targets alone, is measured further on fewer columns (target: search "
    "facts with the name inside a line, where the model reads it otherwise at the beginning of one):"
)
"""What is said before the first candidate that was measured with its controls."""


def candidate_line(trial: JudgedTrial) -> str:
    """A candidate that was measured, in a line."""
    stream = {"layer": "", "stream": "the stream behind "}
    places = " and ".join(dict.fromkeys(f"{stream[atom.of]}layer {atom.layer}" for atom in trial.atoms))
    neighbors = "" if trial.neighbor is None else f", neighbors {signed(trial.neighbor)}"
    n = n_columns(trial.edits)
    return (
        f"candidate: {n} column{'s' * (n != 1)} of {places} × {short(trial.multiplier)}: target {signed(trial.score)}, "
        f"controls {signed(trial.control)}{neighbors}, harm to text {trial.change.harm:.4f} nats per token"
    )


def _place(trial: Trial) -> tuple[object, ...]:
    """What tells one trial from another: the same columns of the same places with the same multiplier are the same."""
    return tuple((atom.of, atom.place, atom.size) for atom in trial.atoms), trial.multiplier


def _point(trial: JudgedTrial, edits: tuple[Edit, ...], harm: float, chosen: bool) -> FrontEdit:
    point = FrontPoint(n_columns(edits), trial.score, trial.control, trial.neighbor, harm, chosen)
    return FrontEdit(point, edits)


def _beats(one: FrontPoint, other: FrontPoint) -> bool:
    mine, its = ((row.target, row.harm, row.n_columns) for row in (one, other))
    return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))
