import pytest

from amnesia.choice.extraction import verdict
from amnesia.recipe import Accept


@pytest.mark.parametrize(
    ("target", "control", "expected"),
    [(0.2, 0.95, "strong"), (0.21, 1.0, "weak"), (0.1, 0.94, "weak"), (0.61, 1.0, "none"), (0.0, 0.89, "none")],
)
def test_verdicts(target, control, expected):
    assert verdict(target, control, Accept()) == expected
