"""The logit lens: what each layer would answer, read out through the model's own last norm and head.

From "interpreting GPT: the logit lens" (nostalgebraist, 2020). Layers early in a model need not speak the head's
language, so a low rank says that an answer is there, and a high one does not say that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amnesia.domain import Fact
from amnesia.errors import InputError
from amnesia.live.batches import agree, batches
from amnesia.live.forward import Readout, readout
from amnesia.live.model import LiveModel, not_finite
from amnesia.live.streams import after_layers
from amnesia.live.tokens import continuations, place
from amnesia.progress import Progress

Ranks = tuple[tuple[int, ...], tuple[int, ...]]
"""The rank of an answer's first token at each layer, at the entity's last token and at the token before the answer."""


@torch.inference_mode()
def lens_ranks(live: LiveModel, facts: Sequence[Fact], progress: Progress | None = None) -> tuple[Ranks, ...]:
    """Ranks (0 is best) for each fact, in order. Raises InputError where more than a norm stands before the head."""
    rows = continuations(live.tokenizer, [fact.pair() for fact in facts])
    names = place(live.tokenizer, [(fact.prompt, fact.entity) for fact in facts])
    head = readout(live)
    norm: Callable[[Tensor], Tensor] | None = None
    results: list[Ranks | None] = [None] * len(rows)
    for batch in batches(live, [row.ids[: len(row.ids) - row.n_answer] for row in rows]):
        states, logits = _states(live, batch.inputs)
        if norm is None:
            norm = _last_norm(live, head, states[-1][:, -1], logits[:, -1])
        for line, index in enumerate(batch.indices):
            padding = int(batch.padding[line])
            token = rows[index].ids[-rows[index].n_answer]
            own = []
            for spot in (padding + names[index].token, states[0].shape[1] - 1):
                layers = torch.stack([layer[line, spot].to(live.device) for layer in states])
                read = head.logits(norm(layers))
                if not read.isfinite().all():
                    raise not_finite(live, "log-probabilities")
                own.append(tuple((read > read[:, token, None]).sum(1).tolist()))
            results[index] = (own[0], own[1])
        if progress:
            progress(len(batch.indices))
    return tuple(result for result in results if result is not None)


def _states(live: LiveModel, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """What every layer gives to the next, (batch, tokens, d_model) each, and the logits."""
    states: list[Tensor] = []

    with after_layers(live, dict.fromkeys(range(live.shape.n_layers), states.append)):
        logits = live.model(**inputs, use_cache=False).logits
    return states, logits


def _last_norm(live: LiveModel, head: Readout, last: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm beside the layers that turns the last one's states (batch, d_model) into what gives `logits`."""
    parent = live.model.get_submodule(live.shape.layer_path(0).rpartition(".")[0].rpartition(".")[0])
    for module in parent.children():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (live.shape.d_model,):
            found = head.logits(module(last))
            if found.shape == logits.shape and agree(live, found, logits):
                return module
    raise InputError(f"the layers of {live.name} cannot be read out: more than a norm stands between them and the head")
