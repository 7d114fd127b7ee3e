"""What second moments are made of, read once for models that are alike: it takes longer than all else that tests ask."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

_SAMPLED = 1800  # Tokens that a model writes where they are few, a tenth.
_BYSTANDERS: dict[Hashable, object] = {}
_TEXTS: dict[Hashable, list[tuple[int, ...]]] = {}


def keep_moments(*, own_text: bool, little_text: bool) -> None:
    """Let moments that are made from now on take up what was read for the same tokenizer and, where `own_text` says so,
    the text that the very same model wrote before; where `little_text` says so it writes a tenth.

    Where torch is loaded this holds for all that follows, whichever tests ran before. Where it is not, nothing is
    imported, as that takes seconds: tests of files that load no torch make no moments.
    """
    if "torch" not in sys.modules:
        return
    from amnesia.directions import moments, samples

    moments.bystanders_of = partial(_kept_bystanders, most=_SAMPLED if little_text else None)
    moments.own_text = _kept_text if own_text else samples.own_text


def _kept_bystanders(live, settings, most):
    """`bystanders_of`, by all that it asks of a model and of the package's texts."""
    from amnesia.directions import bystanders

    if most is not None:
        settings = replace(settings, sampled=min(settings.sampled, most))
    tokenizer = live.tokenizer
    texts = (bystanders._sentences(), bystanders.contrast_entities(), bystanders.name_wordings())
    asked = (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
        tuple(tokenizer.all_special_ids),
        live.n_positions,
        live.model.get_input_embeddings().num_embeddings,
        settings,
        *(tuple(each) for each in texts),
    )
    if asked not in _BYSTANDERS:
        _BYSTANDERS[asked] = bystanders.bystanders_of(live, settings)
    return _BYSTANDERS[asked]


def _kept_text(live, beginnings: Sequence[Sequence[int]], n_tokens: int, digest: str, progress=None) -> Iterator:
    """`own_text`, by what moments are kept under: the weights, the configuration and the special tokens."""
    from amnesia.directions import moments, samples

    special = (tuple(live.tokenizer.all_special_ids), live.tokenizer.pad_token_id)
    rows = tuple(tuple(row) for row in beginnings)
    asked = (digest, moments._configured(live), live.model.dtype, special, rows, n_tokens)
    if asked not in _TEXTS:
        _TEXTS[asked] = list(samples.own_text(live, beginnings, n_tokens, digest, progress))
    elif progress:
        progress(len(_TEXTS[asked]))
    return iter(_TEXTS[asked])
