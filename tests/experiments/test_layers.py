"""Layer significance against a direct computation with plain transformers, one prompt at a time."""

import numpy as np
import pytest
import torch

from amnesia.errors import InputError
from amnesia.experiments.layers import layer_significance, significance
from amnesia.facts.names import contrast_entities, entity_templates, share_words
from amnesia.live.tokens import place
from amnesia.localization import cells
from amnesia.localization.cells import contrast_pairs
from oracles import plain
from support.tiny_text import tiny_live

TEMPLATES = entity_templates()[:3]
OTHERS = contrast_entities()[::4]


def direct_outputs(live, pairs):
    """What the MLPs write at the entity's last token, (n_pairs, n_layers, d_model)."""
    rows = [plain.run(live.model, row.ids)[2][:, row.token] for row in place(live.tokenizer, pairs)]
    return torch.stack(rows).double().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", plain.FIVE)
def test_significance_equals_a_direct_computation(model_type, monkeypatch):
    monkeypatch.setattr(cells, "contrast_entities", lambda: OTHERS)
    live = tiny_live(model_type, bos=True)
    own = direct_outputs(live, [(template, "Michael Jordan") for template in TEMPLATES])
    contrasts = [pair for pair in contrast_pairs(TEMPLATES) if not share_words(pair[1], ("Michael Jordan",))]
    scale = np.linalg.norm(direct_outputs(live, contrasts), axis=2).mean(0)
    result = layer_significance(live, ["Japan", "Michael Jordan"], n_prompts=3)
    for layer in range(3):
        vectors = own[:, layer] / scale[layer]
        norms = np.linalg.norm(vectors, axis=1)
        cosines = [
            vectors[i] @ vectors[j] / norms[i] / norms[j]
            for i in range(len(vectors))
            for j in range(i + 1, len(vectors))
        ]
        expected = norms.mean() * np.mean(cosines) / (np.std(cosines) + 1e-6)
        # Where Pythia reads only the token itself, all vectors are alike and only ε keeps S finite.
        assert result.entities[1].significance[layer] == pytest.approx(expected, rel=1e-2)
        assert result.entities[1].mean_norm[layer] == pytest.approx(norms.mean(), rel=1e-4)


def test_significance_by_hand():
    # Unit vectors at 0, 90 and 90 degrees: cosines 0, 0 and 1.
    vectors = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    s, norm, mean, std = (value.item() for value in significance(vectors))
    assert (norm, mean) == pytest.approx((2.0, 1 / 3))
    assert std == pytest.approx((2 / 9) ** 0.5)
    assert s == pytest.approx(2.0 / (std / mean), rel=1e-4)


def test_bad_input():
    with pytest.raises(InputError, match="2 prompts: give 3 to 100"):
        layer_significance(tiny_live(), ["Japan"], n_prompts=2)
