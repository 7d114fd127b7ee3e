"""An adapter whose merge gives weights that were asked already: it is asked a handful of prompts, not everything again.

Its merge by PEFT, in the type in which the weights are stored, is compared number by number with the saved weights.
What remains is rounding: unmerged, an adapter adds what it changes without rounding it to the stored type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amnesia.domain import ROLES, Loading
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.measurement import measure
from amnesia.evaluation.results import Finding
from amnesia.live.loading import load, load_adapter, loaded, merge_adapter, weights_digest
from amnesia.live.model import LiveModel, weight_of
from amnesia.progress import Progress
from amnesia.sources.source import ModelSource
from amnesia.weights.merging import saved_factors

N_ASKED = 4
"""Target and control facts each that are asked of the unmerged adapter."""

MAX_DIFFERENCE = 0.1
"""Nats. Rounding to 16 bits moves answers by hundredths; a module that was left out, by nats."""


@dataclass(frozen=True)
class ByNumbers:
    """That the factors of an adapter, added to the original weights, give the declared edit; no model was asked.

    `n_rounded` numbers differ from it, each by no more than roundings. `is_split` says that processes share the model.
    """

    n_rounded: int
    is_split: bool

    def finding(self) -> Finding:
        """What was proven of the adapter, and what was not tried."""
        untried = (
            "It was asked on a model that processes share, beside whose weights its factors acted without PEFT, which "
            "cannot put it there"
            if self.is_split
            else "PEFT did not merge it into layers that were left on the disk"
        )
        how = _how(self.n_rounded)
        return Finding("info", f"{untried}: by its numbers, the adapter merged is the original with the edit {how}.")


@dataclass(frozen=True)
class SameWeights:
    """How the merge of an adapter compares with saved weights, and the unmerged adapter with their answers.

    `n_rounded` numbers of the weights differ, each by no more than one rounding; `numbers` where PEFT did not merge it.
    `difference` is the largest one of `n_asked` log-probabilities, in nats.
    """

    n_rounded: int
    n_asked: int
    difference: float
    numbers: ByNumbers | None = None

    def finding(self) -> Finding:
        """Where the figures of the adapter come from."""
        asked = f"Unmerged, it answers {self.n_asked} prompts within {self.difference:.4f} nats of them."
        if self.numbers is not None:
            proven = f"{self.numbers.finding().text} What was measured on the saved weights stands here too."
            return Finding("info", f"{proven} {asked}")
        return Finding(
            "info",
            f"Merged by PEFT, the adapter gives the saved weights {_how(self.n_rounded)}: what was measured on them "
            f"stands here too. {asked}",
        )


def _how(n: int) -> str:
    return f"but for the rounding of {n:,} numbers" if n else "bit for bit"


@dataclass(frozen=True)
class _Weights:
    """The edited matrices of a model by layer, and a digest of all else."""

    edited: dict[int, Tensor]
    digest: str | None

    @classmethod
    def of(cls, live: LiveModel, layers: Iterable[int]) -> _Weights:
        edited: dict[int, Tensor] = {layer: weight_of(live.out_proj(layer)) for layer in layers}
        return cls(edited, weights_digest(live, edited.values()))


def same_weights(
    source: ModelSource,
    adapter: Path,
    weights: Path,
    layers: Collection[int],
    evaluation: Evaluation,
    loading: Loading,
    progress: Progress | None = None,
    numbers: ByNumbers | None = None,
) -> SameWeights | None:
    """The comparison of an adapter with `weights`, a folder whose model was evaluated; None where they differ.

    `layers` are the edited ones. The models are in memory one after the other; none is merged where `numbers` say what
    a merge gives.
    """
    answers = {}
    for role in ROLES:
        scored = (row for row in evaluation.prompts if row.role == role and row.excluded is None)
        answers |= {(row.prompt, row.answer): row.after.logprob for row in islice(scored, N_ASKED)}
    asked = None
    if numbers is None:
        stored = replace(loading, dtype="auto")
        expected = _Weights.of(load(weights, str(weights), stored), layers)
        live = load_adapter(source.folder, adapter, str(adapter), stored)
        if live.model.dtype == getattr(torch, loading.dtype, live.model.dtype):
            asked = measure(live, answers, progress)
        n = _n_merged(live, expected, _terms(live, adapter, layers))
        del live, expected
    else:
        n = numbers.n_rounded
    if n is None:
        return None
    if asked is None:  # In another type than that in which it is merged.
        with loaded("adapter", source, adapter, loading) as unmerged:
            asked = measure(unmerged, answers, progress)
    difference = max(abs(asked[pair].logprob - logprob) for pair, logprob in answers.items())
    if not difference <= MAX_DIFFERENCE:
        return None
    return SameWeights(n, len(answers), difference, numbers)


def _terms(live: LiveModel, adapter: Path, layers: Collection[int]) -> dict[int, Tensor]:
    """The sizes of all that is summed in a merge, |W| + |B|·|A| by layer: where it nearly cancels, their roundings
    stay."""
    factors, found = saved_factors(adapter), {}
    for layer in layers:
        pair = factors[live.shape.out_proj_path(layer)]
        a, b = (torch.from_numpy(factor.astype(np.float32)).abs() for factor in pair)
        weight = weight_of(live.out_proj(layer)).float().abs()
        added = (b @ a).to(weight.device)
        found[layer] = weight + (added if live.shape.layout.neuron_axis else added.T)
    return found


def _n_merged(live: LiveModel, expected: _Weights, terms: Mapping[int, Tensor]) -> int | None:
    """Merge an adapter by PEFT: how many numbers then differ from the saved weights, each by a rounding; None: one by
    more."""
    merge_adapter(live)
    found = _Weights.of(live, terms)
    if found.digest is None or found.digest != expected.digest:
        return None
    differences = [_n_rounded(found.edited[layer], expected.edited[layer], terms[layer]) for layer in terms]
    return None if None in differences else sum(filter(None, differences))


def _n_rounded(found: Tensor, expected: Tensor, terms: Tensor) -> int | None:
    """How many numbers differ, each by roundings of the stored type and of the float32 sum; None where one by more."""
    found, size = found.float(), expected.float().abs()
    difference = (found - expected.float()).abs()
    bound = torch.finfo(expected.dtype).eps * size + 4 * torch.finfo(torch.float32).eps * (terms + size)
    if not bool((difference <= bound).all()):  # Neither where one of them is NaN.
        return None
    return int(difference.count_nonzero())
