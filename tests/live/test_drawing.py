import pytest
import torch

from amnesia.live.drawing import drawn


def test_tokens_are_drawn_by_their_probabilities() -> None:
    shares = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.15, 0.05, 0.0])
    rows = 20_000
    torch.manual_seed(0)
    found = drawn()(torch.zeros(rows, 1, dtype=torch.long), shares.log().expand(rows, -1).clone())

    assert (found.isfinite().sum(1) == 1).all()
    counts = torch.bincount(found.argmax(1), minlength=len(shares))
    # Three standard deviations of a share of 20,000 draws are 1.1 % at most.
    assert torch.allclose(counts / rows, shares, atol=0.011)
    assert counts[shares == 0].sum() == 0


@pytest.mark.slow
def test_a_rare_token_of_a_large_vocabulary_is_drawn_as_often_as_it_should_be() -> None:
    n_tokens, rows = 50_000, 400
    scores = torch.zeros(rows, n_tokens)
    scores[:, 0] = torch.tensor(float(n_tokens)).log()  # Half of the draws; all others are one in 100,000.
    torch.manual_seed(1)
    tokens = drawn()(torch.zeros(rows, 1, dtype=torch.long), scores).argmax(1)

    others = tokens[tokens > 0]
    assert 160 <= len(others) <= 240
    # Spread over the whole vocabulary, its end included.
    assert abs(others.double().mean().item() / n_tokens - 0.5) < 0.1
    assert others.max() > 0.9 * n_tokens


def test_the_same_seed_draws_the_same() -> None:
    scores = torch.randn(8, 1000)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(drawn()(torch.zeros(8, 1, dtype=torch.long), scores.clone()).argmax(1))
    assert torch.equal(*draws)
