"""The weakest multiplier at which atoms reach the goal, found in few measurements: which one to measure next.

A score falls from its start as more is taken away, as a rule, so that between a multiplier that missed and one that
reached the goal what was measured tells where to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

MULTIPLIERS = (0.25, 0.125, 0.0, -0.125, -0.25, -0.375, -0.5, -0.75, -1.0, -1.5, -2.0)
"""Tried from the weakest on."""

FINE_MULTIPLIERS = (0.25, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.75, -1.0)
"""The same where a norm follows the MLP, behind which a write turns instead of shrinking."""

BESIDE = (0.5, 0.375)
"""Weaker ones, tried before these beside edits that act already, where less may do."""

_TURNED = 0.05  # How far a score rises again before it counts as turned.


def next_level(
    multipliers: Sequence[float],
    known: Mapping[float, float],
    goal: float,
    expected: Callable[[float], float],
    is_wanted: Callable[[float], bool],
    is_gain: Callable[[float, float], bool],
) -> float | None:
    """The multiplier to measure next, None where the weakest one that reaches the goal is known or none is wanted.

    `multipliers` go from the weakest to the strongest, `known` are the scores (no unit) that were measured, `expected`
    tells what to expect of others. `is_wanted` says which are mild enough; what is stronger than one that is not is
    none either. Then those are measured of which `is_gain`, given a multiplier and the score to expect, says that they
    would be worth it though they may miss the goal.
    """
    found = _towards_goal(multipliers, known, goal, expected, is_wanted)
    if found is None:
        others = (multiplier for multiplier in multipliers if multiplier not in known)
        found = next((multiplier for multiplier in others if is_gain(multiplier, expected(multiplier))), None)
    return found


def _towards_goal(
    multipliers: Sequence[float],
    known: Mapping[float, float],
    goal: float,
    expected: Callable[[float], float],
    is_wanted: Callable[[float], bool],
) -> float | None:
    """The next one on the way to the weakest that reaches the goal."""
    levels = range(len(multipliers))
    reached = next((i for i in levels if known.get(multipliers[i], goal + 1.0) <= goal), None)
    if reached is None and _has_turned(multipliers, known):
        return None
    missed = max((i for i in levels[:reached] if multipliers[i] in known), default=-1)
    open_levels = multipliers[missed + 1 : reached]
    wanted = [multiplier for multiplier in open_levels if is_wanted(multiplier)]
    if not wanted:
        return None
    likely = next((multiplier for multiplier in wanted if expected(multiplier) <= goal), None)
    if likely is not None:
        return likely
    # Where a stronger one has reached the goal or harms too much, the strongest that is left settles it with one
    # measurement; else the score may turn on the way.
    return wanted[-1] if reached is not None or len(wanted) < len(open_levels) else wanted[0]


def _has_turned(multipliers: Sequence[float], known: Mapping[float, float]) -> bool:
    """Whether the score rises again where more than all is taken away: more of the same does not help."""
    found = [multiplier for multiplier in multipliers if multiplier in known]
    return bool(found) and found[-1] <= -1.0 and known[found[-1]] > min(known.values()) + _TURNED


def added_up(
    start: float, parts: Sequence[Mapping[float, float]], own: Mapping[float, float]
) -> Callable[[float], float]:
    """What to expect of atoms at a multiplier: what each does alone added up, and what they do beyond at the nearest.

    `start` is the score without them, `parts` are the scores of each alone by multiplier, `own` those of all together.
    """

    def alone(multiplier: float) -> float:
        return start + sum(curve(known, start, multiplier) - start for known in parts)

    def expected(multiplier: float) -> float:
        nearest = min(own, key=lambda other: abs(other - multiplier), default=None)
        return alone(multiplier) + (0.0 if nearest is None else own[nearest] - alone(nearest))

    return expected


def curve(known: Mapping[float, float], start: float, multiplier: float) -> float:
    """What to expect at a multiplier: on the line between the two nearest of `known`, of which `start` is that at 1.

    Beyond the last one the score goes on falling as from the start, or stays where it was if it has risen.
    """
    points = sorted({**known, 1.0: start}.items(), reverse=True)
    place = next((i for i, (other, _) in enumerate(points) if i and other <= multiplier), None)
    if place is not None:
        (above, first), (below, last) = points[place - 1 : place + 1]
        return first + (last - first) * (above - multiplier) / (above - below)
    below, last = points[-1]
    if below == 1.0 or last > points[-2][1]:
        return last
    return start + (last - start) * (1.0 - multiplier) / (1.0 - below)
