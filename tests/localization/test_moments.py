import numpy as np
import pytest
import torch

from amnesia.localization.moments import EPSILON, Moments, stability, z_moments

FLOOR = 0.05


def test_adding_batches_equals_all_samples_at_once():
    samples = torch.randn(50, 3, 4) * 5 + 1000
    total = Moments.of(samples[:7]) + Moments.of(samples[7:8]) + Moments.of(samples[8:])
    assert total.n == 50
    np.testing.assert_allclose(total.mean, samples.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.std, samples.double().numpy().std(0), rtol=1e-9)


def test_subtracting_undoes_adding():
    kept, out = torch.randn(20, 5), torch.randn(4, 5) + 3
    rest = Moments.of(torch.cat([kept, out])) - Moments.of(out)
    assert rest.n == 20
    np.testing.assert_allclose(rest.mean, Moments.of(kept).mean, atol=1e-12)
    np.testing.assert_allclose(rest.m2, Moments.of(kept).m2, atol=1e-10)


def test_z_scores_and_stability_by_hand():
    # Baseline 0, 2 has mean 1 and population std 1; entity 5, 7 becomes z = 4, 6 with mean 5 and std 1.
    mean_z, std_z = z_moments(Moments.of(torch.tensor([[5.0], [7.0]])), Moments.of(torch.tensor([[0.0], [2.0]])))
    assert mean_z.item() == pytest.approx(5.0, rel=1e-5)
    assert std_z.item() == pytest.approx(1.0, rel=1e-5)
    assert stability(mean_z, std_z, FLOOR).item() == pytest.approx(25.0, rel=1e-4)
    assert stability(-mean_z, std_z, FLOOR).item() == pytest.approx(-25.0, rel=1e-4)


def test_the_std_counts_as_the_floor_at_least():
    mean, std = torch.tensor([0.5, -0.5, 0.5, 0.5]), torch.tensor([0.0, 0.0, FLOOR, 2 * FLOOR])
    torch.testing.assert_close(stability(mean, std, FLOOR), torch.tensor([5.0, -5.0, 5.0, 2.5]))


def test_cells_that_never_vary_stay_finite():
    mean_z, std_z = z_moments(Moments.of(torch.ones(3, 2)), Moments.of(torch.zeros(3, 2)))
    assert mean_z.tolist() == [1 / EPSILON] * 2
    assert torch.isfinite(stability(mean_z, std_z, FLOOR)).all()
