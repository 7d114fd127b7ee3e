import math

import pytest

from amnesia.errors import NumericalError
from amnesia.scores import knowledge_score, mean_interval


def test_knowledge_score_by_hand():
    assert knowledge_score(after=-1.0, before=-1.0, unknown=-5.0) == 1.0
    assert knowledge_score(after=-5.0, before=-1.0, unknown=-5.0) == 0.0
    assert knowledge_score(after=-7.0, before=-1.0, unknown=-5.0) == -0.5
    assert knowledge_score(after=-4.0, before=-1.0, unknown=-5.0) == 0.25


@pytest.mark.parametrize("values", [(math.nan, -1, -5), (-1, -math.inf, -5), (-1, -1, math.nan), (-1, -5, -5)])
def test_what_has_no_score_is_an_error(values):
    with pytest.raises(NumericalError):
        knowledge_score(*values)


def test_constant_values_have_an_interval_of_one_point():
    assert mean_interval([1.0] * 10) == (1.0, 1.0, 1.0)


def test_the_interval_has_the_width_of_the_standard_error():
    values = [0.0, 1.0] * 200
    mean, low, high = mean_interval(values)
    assert mean == 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert mean_interval(values) == (mean, low, high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_the_mean_of_nothing_is_an_error(values):
    with pytest.raises(NumericalError):
        mean_interval(values)
