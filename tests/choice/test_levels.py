"""The search for the weakest multiplier: exact where scores fall, whatever is expected, and brief where that is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia.choice.levels import FINE_MULTIPLIERS, MULTIPLIERS, added_up, curve, next_level

GOAL = -0.1


def never(_multiplier, _score):
    return False


def found_by(scores, n_wanted, known, expected):
    """The weakest multiplier that reaches the goal and how many were measured; `known` is filled."""
    n_known = len(known)
    wanted = set(MULTIPLIERS[:n_wanted])
    while (level := next_level(MULTIPLIERS, known, GOAL, expected, wanted.__contains__, never)) is not None:
        assert level in wanted and level not in known
        known[level] = scores[level]
    return next((level for level in MULTIPLIERS if known.get(level, 1.0) <= GOAL), None), len(known) - n_known


falling = st.lists(st.floats(-2.0, 1.0), min_size=len(MULTIPLIERS), max_size=len(MULTIPLIERS)).map(
    lambda scores: dict(zip(MULTIPLIERS, sorted(scores, reverse=True), strict=True))
)


@given(falling, st.integers(0, len(MULTIPLIERS)), st.sets(st.sampled_from(MULTIPLIERS)), falling)
def test_the_weakest_is_found_whatever_is_known_and_expected(scores, n_wanted, before, expected):
    known = {level: scores[level] for level in before}
    found, _ = found_by(scores, n_wanted, dict(known), expected.__getitem__)
    reaching = [level for level in MULTIPLIERS if scores[level] <= GOAL]
    if reaching and reaching[0] in MULTIPLIERS[:n_wanted]:
        assert found == reaching[0]
    else:  # Nothing that is wanted reaches the goal: at most what was measured before does.
        assert found is None or found in before


@given(falling, st.integers(0, len(MULTIPLIERS)))
def test_what_is_expected_rightly_is_settled_by_one_measurement(scores, n_wanted):
    reaching = [level for level in MULTIPLIERS[:n_wanted] if scores[level] <= GOAL]
    if reaching:  # A second one shows that nothing weaker does.
        known = {}
        found, n_measured = found_by(scores, n_wanted, known, scores.__getitem__)
        assert found == reaching[0] and n_measured <= 2
    elif n_wanted < len(MULTIPLIERS):
        assert found_by(scores, n_wanted, {}, scores.__getitem__)[1] <= 1


@pytest.mark.parametrize(("last", "expected"), [(0.2, -2.0), (0.26, None)])
def test_a_score_that_rises_again_beyond_minus_one_ends_the_search(last, expected):
    known = {-0.75: 0.3, -1.0: 0.2, -1.5: last}
    assert next_level(MULTIPLIERS, known, GOAL, lambda _: 0.3, lambda _: True, never) == expected
    # Not where more is taken away than before, but not all of it twice, nor once the goal is reached.
    assert next_level(MULTIPLIERS, {-0.5: 0.2, -0.75: 0.9}, GOAL, lambda _: 0.3, lambda _: True, never) == -1.0
    assert next_level(FINE_MULTIPLIERS, {-0.5: -0.2, -1.0: 0.9}, GOAL, lambda _: 0.3, lambda _: True, never) == -0.4


def test_what_may_miss_the_goal_is_measured_where_it_would_be_a_gain():
    known = {-0.75: -0.05, -0.5: -0.02, -1.0: 0.05}
    seen = []

    def is_gain(multiplier, score):
        seen.append((multiplier, score))
        return multiplier < -0.2

    assert next_level(MULTIPLIERS, known, GOAL, lambda level: level, lambda _: False, is_gain) == -0.25
    assert seen == [(level, level) for level in (0.25, 0.125, 0.0, -0.125, -0.25)]


def test_nothing_that_is_not_wanted_is_measured():
    assert next_level(MULTIPLIERS, {}, GOAL, lambda _: -1.0, lambda _: False, never) is None


@pytest.mark.parametrize(
    ("known", "multiplier", "expected"),
    [
        ({}, -1.0, 1.0),
        ({0.0: 0.4}, 0.5, 0.7),  # Halfway between 1 at 1 and 0.4 at 0.
        ({0.0: 0.4}, 0.0, 0.4),
        ({0.0: 0.4}, -1.0, -0.2),  # Beyond the last one as from the start.
        ({0.0: 0.4, -1.0: 0.0}, -0.5, 0.2),
        ({0.0: 0.4, -1.0: 0.0}, -2.0, -0.5),
        ({0.0: 0.4, -1.0: 0.0}, 0.25, 0.55),
        ({0.0: 0.4, -1.0: 0.5}, -2.0, 0.5),  # It has risen.
    ],
)
def test_between_two_scores_a_line_is_expected(known, multiplier, expected):
    assert curve(known, 1.0, multiplier) == pytest.approx(expected)


def test_atoms_are_expected_to_do_what_each_does_alone_and_what_they_did_beyond():
    parts = [{0.0: 0.6}, {0.0: 0.8}]
    assert added_up(1.0, parts, {})(0.5) == pytest.approx(0.7)
    assert added_up(1.0, parts, {0.0: 0.3})(0.5) == pytest.approx(0.6)
    assert added_up(1.0, parts[:1], parts[0])(0.5) == pytest.approx(0.8)
