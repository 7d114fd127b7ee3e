import pytest

from amnesia.domain import Fact
from amnesia.forward import answer_logprobs
from amnesia.measurement import measure_unknown
from amnesia.prompts import UNSEEN_NAMES
from amnesia.questions import Question
from tiny_text import tiny_live

TARGET = Question("target", Fact("Japan", "the capital of {entity} is", "Tokyo"))


def test_the_unknown_level_is_the_mean_over_unseen_names():
    live = tiny_live()
    (found,) = measure_unknown(live, [TARGET])
    single = [answer_logprobs(live, [(f"the capital of {name} is", "Tokyo")])[0] for name in UNSEEN_NAMES]
    assert found.total == pytest.approx(sum(row.total for row in single) / 5, abs=1e-4)
    assert found.first == pytest.approx(sum(row.first for row in single) / 5, abs=1e-4)
