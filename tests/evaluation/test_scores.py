import itertools
import math
import tracemalloc

import numpy as np
import pytest

from amnesia.errors import NumericalError
from amnesia.evaluation.results import Estimate
from amnesia.evaluation.scores import knowledge_score, mean_interval


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
    assert mean_interval([1.0] * 10) == Estimate(1.0, 1.0, 1.0)
    assert mean_interval([0.1] * 3) == Estimate(0.1, 0.1, 0.1)


def test_the_interval_has_the_width_of_the_standard_error():
    values = [0.0, 1.0] * 200
    found = mean_interval(values)
    assert found.mean == 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert mean_interval(values) == found


def test_the_interval_is_that_of_all_resamples():
    values = [0.0, 1.0, 5.0, 7.0]
    means = [sum(draw) / 4 for draw in itertools.product(values, repeat=4)]
    found = mean_interval(values)
    assert (found.mean, found.low, found.high) == (3.25, *np.percentile(means, [2.5, 97.5], method="inverted_cdf"))


def test_the_paired_interval_is_narrower_than_that_of_unpaired_values():
    before = [0.0, 1.0] * 50
    after = [value - 0.1 for value in before]
    change = mean_interval([new - old for old, new in zip(before, after, strict=True)])
    assert (change.low, change.mean, change.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert mean_interval(after).high > mean_interval(before).low


@pytest.mark.slow
def test_many_values_take_little_memory():
    tracemalloc.start()
    mean_interval(range(20_000))
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_the_mean_of_nothing_is_an_error(values):
    with pytest.raises(NumericalError):
        mean_interval(values)
