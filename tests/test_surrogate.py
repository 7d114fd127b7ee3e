import pytest
import torch

from amnesia.surrogate import SOFT, SPARSITY, Surrogate

GRID = torch.tensor([-8.0, -4.0, -2.0, -1.0, -0.5, 0.5, 1.0])


def surrogate(start, slopes, quadratic, value=1.0):
    start = torch.tensor(start)
    return Surrogate(
        start=start,
        targets=torch.tensor([value]),
        target_slopes=torch.tensor([slopes]),
        shares=torch.tensor([1.0]),
        harms=torch.zeros(0),
        harm_slopes=torch.zeros(0, len(start)),
        harm_weights=torch.zeros(0),
        quadratic=torch.diag(torch.tensor(quadratic)),
    )


def test_the_loss_is_the_sum_of_its_parts():
    model = Surrogate(
        start=torch.tensor([1.0, 0.0]),
        targets=torch.tensor([0.5, -3.0]),
        target_slopes=torch.tensor([[0.1, 0.2], [9.0, 0.0]]),
        shares=torch.tensor([0.7, 0.3]),
        harms=torch.tensor([0.3, 0.1]),
        harm_slopes=torch.tensor([[0.0, -0.1], [0.0, 1.0]]),
        harm_weights=torch.tensor([2.0, 5.0]),
        quadratic=torch.tensor([[0.2, 0.1], [0.1, 0.3]]),
    )
    # At (0, −1): targets 0.2, which is soft, and far below zero, harms 0.4 and below zero, changes (−1, −2).
    target = 0.7 * 0.2**2 / (2 * SOFT)
    leakage = 0.2 + 2 * 0.1 * 2 + 0.3 * 4
    expected = target + leakage + 2.0 * 0.4 / 2 + SPARSITY * 3
    assert model.loss(torch.tensor([0.0, -1.0])).item() == pytest.approx(expected)


def test_the_slope_is_that_of_the_loss():
    model = surrogate([-2.0, 0.5], [0.4, -0.1], [0.1, 0.05])
    step = torch.tensor([1e-3, 0.0])
    secant = (model.loss(model.start + step) - model.loss(model.start - step)) / 2e-3
    assert model.slope()[0].item() == pytest.approx(secant.item(), abs=1e-3)
    # A target above the soft part: its slope, twice the leakage, and the price of the change.
    assert model.slope()[1].item() == pytest.approx(-0.1 + 2 * 0.05 * -0.5 - SPARSITY, rel=1e-4)


def test_the_minimum_is_where_slope_and_leakage_balance():
    model = surrogate([1.0, 1.0], [0.4, 0.1], [0.1, 0.05], value=3.0)
    found = model.minimize(model.start, torch.tensor([True, True]), -8.0, 9.0, 400)
    # slope = 2 · quadratic · change
    expected = [1 - (0.4 - SPARSITY) / 0.2, 1 - (0.1 - SPARSITY) / 0.1]
    assert found.tolist() == pytest.approx(expected, abs=0.05)


def test_the_minimum_keeps_to_limits_radius_and_what_is_free():
    model = surrogate([-7.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], value=99.0)
    found = model.minimize(model.start, torch.tensor([True, True, False]), -8.0, 1.5, 200)
    assert found.tolist() == pytest.approx([-8.0, -0.5, 0.0], abs=1e-4)


def test_rounding_takes_the_exact_value_of_least_loss_and_lets_the_rest_make_up_for_it():
    model = surrogate([-2.9, -2.9], [0.5, 0.5], [0.05, 0.05], value=3.0)
    best = model.minimize(model.start, torch.tensor([True, True]), -8.0, 4.0, 200)
    found, free = model.rounded(best, torch.tensor([True, True]), 1, GRID, -8.0, 4.0)
    assert free.sum() == 1
    fixed = found[~free]
    assert fixed.item() in GRID.tolist()
    done, free = model.rounded(found, free, 1, GRID, -8.0, 4.0)
    assert not free.any()
    assert set(done.tolist()) <= set(GRID.tolist())
    assert done[~torch.isclose(done, found)].numel() <= 1  # What was exact already stays.
    others = [torch.tensor([a, b]) for a in GRID.tolist() for b in GRID.tolist()]
    assert model.loss(done) <= min(model.loss(other) for other in others) + 0.1


def test_neighbors_are_the_next_values_of_the_grid():
    model = surrogate([-8.0, 0.5], [0.0, 0.0], [0.0, 0.0])
    assert [(value, moved.tolist()) for value, moved in model.neighbors(0, GRID)] == [(-4.0, [-4.0, 0.5])]
    assert [value for value, _ in model.neighbors(1, GRID)] == [-0.5, 1.0]
