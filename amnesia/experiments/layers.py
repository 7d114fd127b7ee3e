"""In which layer an entity stands out: how alike and how large its MLP outputs are over many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.domain import tidy
from amnesia.experiments.settings import check_n_prompts
from amnesia.facts.names import entity_templates, share_words
from amnesia.live.model import LiveModel, not_finite
from amnesia.live.tokens import place
from amnesia.live.watching import mlp_outputs
from amnesia.localization.cells import SETTINGS, contrast_pairs, layer_range
from amnesia.localization.moments import EPSILON
from amnesia.progress import Progress


@dataclass(frozen=True)
class LayerProfile:
    """One entity in each layer: significance S, mean norm relative to the baseline, mean and std of the cosines."""

    entity: str
    significance: tuple[float, ...]
    mean_norm: tuple[float, ...]
    mean_cosine: tuple[float, ...]
    std_cosine: tuple[float, ...]


@dataclass(frozen=True)
class LayerSignificance:
    """Profiles of entities over `layers`, from `n_prompts` prompts about each."""

    model: str
    n_prompts: int
    layers: tuple[int, ...]
    entities: tuple[LayerProfile, ...]


def significance(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S, mean norm, mean and population std of the pairwise cosines of `vectors` (n, d), as scalars.

    S = mean norm / CV with CV = std(c) / mean(c), of the cosines c of all pairs. From "Friends and Grandmothers in
    Silico" (Yona, Barzilay and Karasik, 2026), technical details.
    """
    vectors = vectors.double()
    norms = vectors.norm(dim=1)
    unit = vectors / norms.clamp(min=EPSILON)[:, None]
    n = len(vectors)
    first, second = torch.triu_indices(n, n, offset=1)
    cosines = (unit @ unit.T)[first, second]
    mean, std = cosines.mean(), cosines.std(correction=0)
    return norms.mean() * mean / (std + EPSILON), norms.mean(), mean, std


def layer_significance(
    live: LiveModel,
    entities: Sequence[str],
    *,
    n_prompts: int = SETTINGS.n_prompts,
    layers: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> LayerSignificance:
    """Significance of every layer for each entity.

    MLP outputs at the entity's last token are divided by the layer's mean norm over the same prompts about other
    entities. Raises InputError for a bad range or number of prompts, NumericalError for NaN and infinity.
    """
    check_n_prompts(n_prompts)
    chosen = layer_range(live, layers)
    names = list(dict.fromkeys(map(tidy, entities)))
    templates = entity_templates()[:n_prompts]
    own = [(template, name) for name in names for template in templates]
    contrasts = contrast_pairs(templates)
    rows = place(live.tokenizer, [*own, *contrasts])
    vectors: Tensor | None = None  # (own prompts, n_layers, d_model)
    norms = torch.zeros(len(contrasts), len(chosen), dtype=torch.float64)
    for indices, batch in mlp_outputs(live, rows, chosen, progress):
        batch = batch.cpu()
        if vectors is None:
            vectors = torch.zeros(len(own), *batch.shape[1:])
        for line, index in enumerate(indices):
            if index < len(own):
                vectors[index] = batch[line]
            else:
                norms[index - len(own)] = batch[line].double().norm(dim=1)
    assert vectors is not None, "there are prompts"
    profiles = []
    for number, name in enumerate(names):
        others = [n for n, (_, other) in enumerate(contrasts) if not share_words(other, (name,))]
        scaled = vectors[number * n_prompts :][:n_prompts] / norms[others].mean(0).clamp(min=EPSILON)[:, None]
        values = torch.tensor([[v.item() for v in significance(scaled[:, n])] for n in range(len(chosen))])
        if not torch.isfinite(values).all():
            raise not_finite(live, "MLP outputs")
        profiles.append(LayerProfile(name, *(tuple(column) for column in values.T.tolist())))
    return LayerSignificance(live.label, n_prompts, chosen, tuple(profiles))
