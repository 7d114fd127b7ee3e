"""What a live model makes of texts: log-probabilities of answers, continuations. Nothing is changed."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin

from amnesia.domain import Answer
from amnesia.errors import clipped
from amnesia.live.batches import (
    PROBES,
    Around,
    Batch,
    Pass,
    agree,
    batches,
    batches_to_write,
    collate,
    from_shared,
    passes,
    plain_pass,
    too_long,
    with_room,
)
from amnesia.live.drawing import drawn
from amnesia.live.model import LiveModel, not_finite, plain_generation
from amnesia.live.places import at_head
from amnesia.live.tokens import Continuation, continuations, encode
from amnesia.live.watching import StopForwardError
from amnesia.progress import Progress


@dataclass(frozen=True)
class Readout:
    """The language-model head of a model, which turns final states into predictions without the rest of it."""

    head: nn.Module
    scale: float
    softcap: float | None
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits (n, vocabulary) of the next token, from states (n, d_model)."""
        logits = self.head(states.to(self.device, self.dtype)) * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.float()


# Whether the head, scale and softcap of a model give its logits.
_HAS_READOUT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def readout(live: LiveModel) -> Readout:
    """The head of a model; while it is kept, the rest of the model may leave the memory.

    A model that does more than is known here to turn states into logits has none: `final_states` then are its logits,
    which the read-out leaves as they are. That is tried on one text, once for each model.
    """
    config = live.text_config
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    found = Readout(live.model.get_output_embeddings(), scale, softcap, live.device, live.model.dtype)
    if live.model not in _HAS_READOUT:
        (row,) = encode(live.tokenizer, [PROBES[0]])
        batch = collate(live, [row.ids], [0])
        with torch.inference_mode():
            logits = live.model(**batch.inputs, use_cache=False).logits[0]
            _HAS_READOUT[live.model] = agree(live, found.logits(_at_head(live, batch)[0]), logits)
    if _HAS_READOUT[live.model]:
        return found
    return Readout(nn.Identity(), 1.0, None, live.device, live.model.dtype)


def _at_head(live: LiveModel, batch: Batch) -> Tensor:
    """What the head of a model is given for a batch, (batch, tokens, d_model)."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise StopForwardError

    handle = live.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        with contextlib.suppress(StopForwardError):
            live.model(**batch.inputs, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


@torch.inference_mode()
def final_states(
    live: LiveModel, rows: Sequence[Continuation], head: Readout, progress: Progress | None = None
) -> list[Tensor]:
    """What `head` turns into predictions of the answer's tokens: (n_answer, d_model) of each row, on the CPU."""
    results: list[Tensor | None] = [None] * len(rows)
    plain = isinstance(head.head, nn.Identity)
    for batch in batches(live, [row.ids[:-1] for row in rows]):
        seen = live.model(**batch.inputs, use_cache=False).logits if plain else _at_head(live, batch)
        for line, index in enumerate(batch.indices):
            # A copy, because a view would keep the whole batch.
            results[index] = seen[line, -rows[index].n_answer :].cpu().clone()
        if progress:
            progress(len(batch.indices))
    return [result for result in results if result is not None]


@torch.inference_mode()
def answer_logprobs(
    live: LiveModel,
    pairs: Sequence[tuple[str, str]],
    progress: Progress | None = None,
    around: Around | None = None,
) -> list[Answer]:
    """Each answer after its prompt, nothing generated, in the order of `pairs`; `around` is entered for each batch.

    Raises NumericalError when the model's output is NaN or infinite, InputError for what is beyond its context.
    """
    rows = continuations(live.tokenizer, pairs)
    for (prompt, answer), row in zip(pairs, rows, strict=True):
        if len(row.ids) - 1 > (live.n_positions or sys.maxsize):
            # Prompts may all begin with the same words of a chat template.
            what = f"prompt {clipped(prompt)!r}, which ends in {prompt[-30:]!r}, with answer {clipped(answer)!r}"
            raise too_long(live, what, len(row.ids))
    results: list[Answer | None] = [None] * len(rows)
    # An answer's last token predicts nothing that is asked for.
    for one, context in _passes_within(live, [row.ids[:-1] for row in rows], around):
        spots: dict[tuple[int, int], int] = {}  # Where the head is needed, once even if several rows share the place.
        heads = [
            [spots.setdefault((line, slot), len(spots)) for slot in slots[-rows[index].n_answer :]]
            for index, line, slots in zip(one.indices, one.lines, one.slots, strict=True)
        ]
        lines, places = (torch.tensor(column) for column in zip(*spots, strict=True))
        with context, at_head(live, lines, places):
            logits = live.model(**one.inputs, use_cache=False).logits[0].float()  # (n_spots, vocabulary)
        wanted = [token for index in one.indices for token in rows[index].ids[-rows[index].n_answer :]]
        at = torch.tensor([spot for spots_of_row in heads for spot in spots_of_row], device=logits.device)
        chosen = logits[at, torch.tensor(wanted, device=logits.device)]
        logprobs = (chosen - logits.logsumexp(1)[at]).tolist()
        start = 0
        for index, spots_of_row in zip(one.indices, heads, strict=True):
            own = logprobs[start : start + len(spots_of_row)]
            if not math.isfinite(sum(own)):
                raise not_finite(live, "log-probabilities")
            rank = int((logits[spots_of_row[0]] > chosen[start]).sum())
            results[index] = Answer(sum(own), own[0], rank)
            start += len(own)
        if progress:
            progress(len(one.indices))
    return [result for result in results if result is not None]


def _passes_within(
    live: LiveModel, rows: Sequence[Sequence[int]], around: Around | None
) -> Iterator[tuple[Pass, contextlib.AbstractContextManager[None]]]:
    """Forward passes over all rows with the context to run each in; one that needs a batch gets plain ones."""
    if around is None:
        for one in passes(live, rows):
            yield one, contextlib.nullcontext()
    else:
        for batch in batches(live, rows):
            yield plain_pass(batch, rows), around(batch)


@torch.inference_mode()
def generate(
    live: LiveModel,
    prompts: Sequence[str],
    max_new_tokens: int = 12,
    progress: Progress | None = None,
    around: Around | None = None,
) -> list[str]:
    """Greedy continuation of each prompt up to a special token; `around` is entered for each batch."""
    results = [""] * len(prompts)
    rows = [item.ids for item in encode(live.tokenizer, prompts)]
    for batch, new in _following(live, rows, max_new_tokens, _ends(live), around):
        for index, text in zip(batch.indices, _decoded(live, new), strict=True):
            results[index] = text
        if progress:
            progress(len(batch.indices))
    return results


def as_generated(live: LiveModel, tokens: Sequence[int], max_new_tokens: int = 12) -> str:
    """What `generate` gives where a model goes on with `tokens`, and with whatever after a special one."""
    return live.tokenizer.batch_decode([list(_before_end(live, tokens, max_new_tokens))], skip_special_tokens=True)[0]


def n_generated(live: LiveModel, tokens: Sequence[int], max_new_tokens: int = 12) -> int:
    """How many of the first of `tokens` decide what `as_generated` gives: a special one is the last."""
    n = len(_before_end(live, tokens, max_new_tokens))
    return min(n + 1, max_new_tokens, len(tokens))


def _before_end(live: LiveModel, tokens: Sequence[int], max_new_tokens: int) -> Sequence[int]:
    ends = set(_ends(live) or ())
    return tuple(itertools.takewhile(lambda token: token not in ends, tokens[:max_new_tokens]))


@torch.inference_mode()
def continued(live: LiveModel, prompts: Sequence[str], n_tokens: int) -> list[Continuation]:
    """Each prompt with the `n_tokens` that the model finds likeliest, one after the other, up to its context's end."""
    rows = [item.ids for item in encode(live.tokenizer, prompts)]
    results: list[Continuation | None] = [None] * len(rows)
    for batch, new in _following(live, rows, n_tokens, None):
        for index, ids in zip(batch.indices, new.tolist(), strict=True):
            results[index] = Continuation((*rows[index], *ids), len(ids))
    return [result for result in results if result is not None]


@torch.inference_mode()
def sampled(
    live: LiveModel,
    prompts: Sequence[str],
    n: int,
    max_new_tokens: int,
    seed: int,
    progress: Progress | None = None,
) -> list[tuple[str, ...]]:
    """`n` continuations of each prompt, drawn from the model's own distribution (temperature 1, nothing cut off).

    The same model gives the same ones for the same prompts and seed.
    """
    rows = [item.ids for item in encode(live.tokenizer, prompts) for _ in range(n)]
    texts = [""] * len(rows)
    devices = [live.device] if live.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for batch, new in _following(live, rows, max_new_tokens, _ends(live), is_drawn=True):
            for index, text in zip(batch.indices, _decoded(live, new), strict=True):
                texts[index] = text
            if progress:
                progress(len(batch.indices))
    return [tuple(texts[start : start + n]) for start in range(0, len(texts), n)]


def _ends(live: LiveModel) -> list[int] | None:
    """Tokens that decoding drops and that say no more: an end, a turn of the other side."""
    return [token for token, added in live.tokenizer.added_tokens_decoder.items() if added.special] or None


def _decoded(live: LiveModel, tokens: Tensor) -> list[str]:
    return live.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _following(
    live: LiveModel,
    rows: Sequence[Sequence[int]],
    n_tokens: int,
    stop: list[int] | None,
    around: Around | None = None,
    *,
    is_drawn: bool = False,
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of rows with the tokens that follow them, (batch, at most n_tokens); `stop` ends a row early.

    The likeliest tokens, or, when `is_drawn`, tokens by their probability. A row ends where the context does.
    """
    settings = {
        # After an early end; where there is no token for it, an end, which decoding drops, too.
        "pad_token_id": stop[0] if stop and live.tokenizer.pad_token_id is None else live.tokenizer.pad_token_id or 0,
        "eos_token_id": stop,
    }
    model = cast(GenerationMixin, live.model)
    groups = batches_to_write(live, rows, n_tokens) if around is None else batches(live, rows)
    parts = (with_room(live, rows, one, n_tokens) for one in groups)
    for batch in itertools.chain.from_iterable(parts):
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        room = (live.n_positions or sys.maxsize) - inputs["input_ids"].shape[1]
        with around(batch) if around else contextlib.nullcontext(), plain_generation(live):
            if around is None:
                inputs |= from_shared(live, [rows[index] for index in batch.indices], n_tokens)
            config = GenerationConfig(max_new_tokens=min(n_tokens, room), **settings)
            output = model.generate(**inputs, generation_config=config, logits_processor=drawn() if is_drawn else None)
        yield batch, output[:, inputs["input_ids"].shape[1] :]
