from dataclasses import replace

import pytest
import torch

from amnesia.choice.atoms import Atom, Change
from amnesia.choice.direction import DirectionChoice, JudgedTrial
from amnesia.choice.extraction import verdict
from amnesia.directions.solve import ReadOut
from amnesia.recipe import Accept


@pytest.mark.parametrize(
    ("target", "control", "expected"),
    [(0.2, 0.95, "strong"), (0.21, 1.0, "weak"), (0.1, 0.94, "weak"), (0.61, 1.0, "none"), (0.0, 0.89, "none")],
)
def test_verdicts(target, control, expected):
    assert verdict(target, control, Accept()) == expected


def missing(score, control, harm, neighbor=None, n_columns=256):
    """A trial that misses some bound; `harm` in nats per token."""
    change = Change(torch.full((4,), (2 * harm) ** 0.5), torch.zeros(0))
    read_out = ReadOut(torch.arange(n_columns), torch.ones(n_columns), 0.1)
    atom = Atom(0, 0, torch.ones(1), torch.ones(1), torch.ones(1), 1.0, read_out, change)
    return JudgedTrial((atom,), 0.0, score, change, control, neighbor)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (missing(0.45, 0.99, 0.008), missing(0.42, 0.99, 0.018)),  # About as much is forgotten.
        (missing(0.42, 0.99, 0.018), missing(0.65, 0.99, 0.008)),
        (missing(-0.5, 0.99, 0.012), missing(-0.9, 0.99, 0.020)),  # Both are forgotten.
        (missing(0.3, 0.99, 0.018), missing(0.3, 0.90, 0.008)),
        (missing(0.3, 0.99, 0.018, 0.95), missing(0.3, 0.99, 0.008, 0.5)),
        (missing(-0.2, 0.97, 0.009, None, 128), missing(-0.2, 0.97, 0.005, None, 1536)),  # Neither harms too much.
        (missing(-0.2, 0.97, 0.005, None, 1536), missing(-0.2, 0.97, 0.012, None, 128)),
        (missing(0.03, 0.99, 0.018, None, 128), missing(0.06, 0.99, 0.008, None, 1536)),  # It nearly forgets.
        (missing(0.03, 0.99, 0.008, None, 1536), missing(0.03, 0.99, 0.019, None, 128)),
        (missing(0.42, 0.99, 0.008, None, 1536), missing(0.42, 0.99, 0.018, None, 128)),
        (missing(0.03, 0.99, 0.012, None, 128), missing(0.03, 0.99, 0.013, None, 128)),
        (missing(-0.2, 0.975, 0.010, None, 1536), missing(-0.2, 0.97, 0.004, None, 64)),  # Controls keep more.
        (missing(-0.2, 0.98, 0.010, None, 64), missing(-0.2, 0.99, 0.004, None, 1536)),
    ],
)
def test_of_what_misses_the_bounds_forgetting_counts_first_and_harm_last(better, worse):
    choice = DirectionChoice(None, None, (), ())
    assert choice.closest([better, worse]) is better and choice.closest([worse, better]) is better


def test_what_was_made_weaker_to_keep_to_128_columns_gives_way_to_more_of_them():
    few, all_columns = missing(0.03, 0.99, 0.018, None, 128), missing(-0.03, 0.99, 0.009, None, 1536)
    for multiplier, chosen in ((-1.0, all_columns), (0.0, few)):  # That of the atoms on all columns; few have 0.
        choice = DirectionChoice(None, None, (), (), dense=[replace(all_columns, multiplier=multiplier)])
        assert choice.closest([few, all_columns]) is chosen


@pytest.mark.parametrize(("n_columns", "least"), [(16, 0.99), (64, 0.99), (128, 0.98), (1536, 0.98)])
def test_on_fewer_than_128_columns_controls_must_keep_more(n_columns, least):
    trial = missing(-0.2, 0.985, 0.004, None, n_columns)
    assert DirectionChoice(None, None, (), ()).least_control(trial.atoms) == pytest.approx(least)


@pytest.mark.parametrize(
    ("spared", "chosen"), [([0.24, 0.25, 0.27], 0), ([0.2, 0.5, 0.6], 1), ([0.2, 0.3, 0.6], 2), ([-0.4, 0.8, 0.3], 1)]
)
def test_more_columns_change_only_where_much_more_of_the_neighbors_is_kept(spared, chosen):
    trials = [missing(-0.2, 0.99, 0.005, score) for score in spared]
    assert DirectionChoice(None, None, (), ()).first_sparing(trials) is trials[chosen]
