import itertools

import pytest
import torch

from amnesia import bystanders
from amnesia.bystanders import observe, out_weight
from amnesia.encoding import Continuation, Placed, continuations, encode
from amnesia.forward import activations, answer_rows
from amnesia.model import scaled_by
from amnesia.passes import collate
from tiny_text import tiny_live

NAMES = [("the capital of Peru is", "water"), ("Canada is known for", "the garden"), ("Kenya is in", "a house")]
TEXTS = ["She waited for the water to boil", "the river was cold in the morning", "nobody heard the old door"]
LAYERS = (0, 2)


def observed(live):
    names = continuations(live.tokenizer, NAMES)
    texts = [Continuation(row.ids, 2) for row in encode(live.tokenizer, TEXTS)]
    beginning = encode(live.tokenizer, ["the story of"])[0].ids
    tokens = [Placed((*beginning, token), len(beginning)) for token in (300, 301, 302, 303)]
    return observe(live, LAYERS, names, texts, tokens), names, texts, tokens


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_leakage_is_what_scaled_columns_add_to_the_stream(model_type):
    live = tiny_live(model_type)
    crowd, names, texts, tokens = observed(live)
    d_mlp = live.shape.d_mlp
    cells, changes = [5, d_mlp + 9], torch.tensor([-2.0, -9.0])
    leakage = crowd.leakage(cells, changes)

    def direct(ids, token):
        (_, found), *_ = activations(live, [Placed(tuple(ids), token)], LAYERS)
        roots = [crowd.roots[0] @ out_weight(live, 0)[5], crowd.roots[1] @ out_weight(live, 2)[9]]
        added = -2.0 * found[0, 0, 5] * roots[0] - 9.0 * found[0, 1, 9] * roots[1]
        return added.pow(2).sum().item()

    expected = [[direct(row.ids, token) for token in range(len(row.ids) - 1)] for row in (*names, *texts)]
    singles = [direct(row.ids, row.token) for row in tokens]
    # Activations are kept with eleven bits.
    assert leakage.tolist() == pytest.approx([*itertools.chain(*expected), *singles], rel=0.01, abs=1e-9)
    assert crowd.by_row(leakage).tolist() == pytest.approx([sum(row) for row in expected], rel=0.01)
    others = 0.5 * sum(map(sum, expected[:3])) / 3 + 0.5 * sum(singles) / 4
    assert (crowd.others @ leakage).item() == pytest.approx(others, rel=0.01)
    assert (crowd.texts @ leakage).item() == pytest.approx(sum(map(sum, expected[3:])) / 3, rel=0.01)


def test_quadratic_forms_sum_the_leakage(monkeypatch):
    monkeypatch.setattr(bystanders, "TAIL", 0.0)
    live = tiny_live()
    crowd, *_ = observed(live)
    cells, changes = [5, 17, live.shape.d_mlp + 9], torch.tensor([-2.0, -9.0, 0.5])
    leakage = crowd.leakage(cells, changes)
    for form, weights in zip(crowd.quadratics(cells, leakage), (crowd.others, crowd.texts), strict=True):
        assert (changes @ form @ changes).item() == pytest.approx((weights @ leakage).item(), rel=1e-3)
    for cell in cells:
        for price, form in zip(crowd.prices(), crowd.quadratics([cell], leakage), strict=True):
            assert price[cell].item() == pytest.approx(form.item(), rel=1e-3)


def test_tokens_with_much_leakage_gain_weight():
    live = tiny_live()
    crowd, *_ = observed(live)
    leakage = torch.zeros(len(crowd.owner))
    even = crowd.quadratics([5], leakage)[0].item()
    strongest = int((crowd.activations[:, 5].float().abs() * (crowd.others > 0)).argmax())
    leakage[strongest] = 1.0
    assert crowd.quadratics([5], leakage)[0].item() > 1.2 * even


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_fisher_information_is_that_of_sampled_predictions(model_type):
    """Its mean eigenvalue, over many draws, is what squared gradients of all possible predictions come to."""
    live = tiny_live(model_type)
    crowd, names, texts, _ = observed(live)
    names, texts = names[:1], texts[:1]
    rows = [*names, *texts]
    d_model = crowd.roots.shape[1]
    expected = 0.0
    for row in rows:
        batch = collate(live, [row.ids], [0])
        added = torch.zeros(len(row.ids), d_model, requires_grad=True)
        handle = live.out_proj(0).register_forward_hook(lambda _m, _i, output, added=added: output + added)
        logits, _ = answer_rows(live, [row], batch)
        handle.remove()
        for place in range(row.n_answer):
            logprobs = logits[place].log_softmax(-1)
            chances = logprobs.detach().exp()
            for token in range(len(chances)):
                (gradient,) = torch.autograd.grad(logprobs[token], added, retain_graph=True)
                expected += (chances[token] * gradient.pow(2).sum()).item() / len(rows) / d_model
    found = [
        observe(live, LAYERS, names, texts, [], seed=seed).roots[0].pow(2).sum().item() / d_model for seed in range(10)
    ]
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.15)


def test_leakage_tells_which_change_harms_more():
    live = tiny_live()
    crowd, names, *_ = observed(live)
    rows = collate(live, [row.ids for row in names], range(len(names)))

    def divergence(cell, change):
        vector = torch.ones(live.shape.d_mlp)
        vector[cell] += change
        with torch.no_grad():
            before = answer_rows(live, names, rows)[0].log_softmax(-1)
            with scaled_by(live, {0: vector}):
                after = answer_rows(live, names, rows)[0].log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean().item()

    order = crowd.reach[: live.shape.d_mlp].argsort().tolist()
    weak, strong = order[:8], order[-8:]
    changes = torch.tensor([-3.0])
    cells = [*weak, *strong]
    leaks = [crowd.by_row(crowd.leakage([cell], changes))[: len(names)].mean().item() for cell in cells]
    harms = [divergence(cell, -3.0) for cell in cells]
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (leaks, harms)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.6
