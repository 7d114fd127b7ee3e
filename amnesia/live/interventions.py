"""Experiments on the forward pass: vary multipliers, set activations at a token, freeze components.

Everything is batched, and nothing of the model's changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.architectures import LAYOUTS
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, Edit
from amnesia.live.batches import Batch, Pass, passes
from amnesia.live.model import LiveModel, acting, added_by, edited, hooks, no_rows, not_finite, scaled_by
from amnesia.live.places import at_head, at_mlp, can_spare
from amnesia.live.tokens import Continuation, Placed, continuations, join, place
from amnesia.live.trees import LABEL
from amnesia.progress import Progress


@dataclass(frozen=True)
class Asked:
    """A template with `{entity}`, the name that stands there, and the answer whose log-probability is wanted."""

    template: str
    name: str
    answer: str

    @property
    def pair(self) -> tuple[str, str]:
        """Prompt and answer."""
        return self.template.replace("{entity}", self.name), self.answer


def place_asked(live: LiveModel, asked: Sequence[Asked]) -> list[Placed]:
    """Token ids of each prompt with its answer, and the last token of the name in them."""
    return place(live.tokenizer, [(join(row.template, row.answer), row.name) for row in asked])


MAX_SPOTS = 128
"""Places at which the head of a model is asked in one pass of several variants: each has logits of the vocabulary."""


@torch.inference_mode()
def edited_logprobs(
    live: LiveModel,
    pairs: Sequence[tuple[str, str]],
    variants: Sequence[Sequence[Edit]],
    progress: Progress | None = None,
) -> Tensor:
    """Log-probabilities (n_variants, n_pairs) in nats of whole answers after their prompts, with each of the edits.

    Many variants are lines of one pass; the layers below the first edited one, and what prompts share at their
    beginning, run once for all of them. Raises NumericalError for NaN and infinity.
    """
    rows = continuations(live.tokenizer, pairs)
    result = torch.zeros(len(variants), len(pairs), dtype=torch.float64)
    # Beside a mixture of experts a batch cannot grow: what the experts write has the size that it had before.
    grows = live.shape.layout.model_type in LAYOUTS and not live.shape.n_experts
    layers = {edit.layer for own in variants for edit in own}
    # An answer's last token predicts nothing that is asked for.
    for one in passes(live, [row.ids[:-1] for row in rows], single=True):
        own = [rows[index] for index in one.indices]
        heads = [slots[-row.n_answer :] for row, slots in zip(own, one.slots, strict=True)]
        n_tokens, n_spots = one.inputs["input_ids"].shape[1], sum(map(len, heads))
        step = max(1, min(live.max_tokens // n_tokens, MAX_SPOTS // n_spots)) if grows else 1
        for start in range(0, len(variants), step):
            part = variants[start : start + step]
            with edited(live, part[0]) if len(part) == 1 else edited_lines(live, part):
                logprobs = _answers(live, one, heads, own, layers)
            result[start : start + step, list(one.indices)] = logprobs
            if progress:
                progress(len(one.indices) * len(part))
    return _finite(live, result)


@contextlib.contextmanager
def edited_lines(live: LiveModel, variants: Sequence[Sequence[Edit]]) -> Generator[None]:
    """Act, in line i of a batch, as if the edits `variants[i]` had been written into the weights.

    A batch of one line becomes as many as there are variants, in the first layer that any of them edits: what layers
    below it do is done once. All else that layers are given is broadcast.
    """
    parts = [acting(live, edits) for edits in variants]
    vectors: dict[int, Tensor] = {}
    deltas: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in {layer for own, _ in parts for layer in own}:
        ones = torch.ones(live.shape.width(layer), device=live.device)
        vectors[layer] = torch.stack([own.get(layer, ones) for own, _ in parts])[:, None]
    for layer in {layer for _, own in parts for layer in own}:
        found = [own.get(layer) for _, own in parts]
        (a, b), *_ = (pair for pair in found if pair is not None)
        rank = max(len(pair[0]) for pair in found if pair is not None)
        wide = a.new_zeros(len(parts), rank, a.shape[1]), b.new_zeros(len(parts), len(b), rank)
        for line, pair in enumerate(found):
            if pair is not None:
                wide[0][line, : len(pair[0])], wide[1][line, :, : len(pair[0])] = pair
        deltas[layer] = wide
    with added_by(live, deltas), scaled_by(live, vectors):
        yield


@torch.inference_mode()
def varied_logprobs(
    live: LiveModel,
    asked: Sequence[Asked],
    cells: Sequence[Cell],
    multipliers: Sequence[float],
    *,
    entity_only: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Log-probabilities (n_multipliers, n_asked) in nats of whole answers, with all `cells` scaled by each multiplier.

    The cells are scaled at every token, or only at the last token of the name. The layers below the first cell, and
    what prompts share at their beginning, run once for all multipliers. Raises NumericalError for NaN and infinity.
    """
    if not entity_only:
        variants = [[ColumnEdit(cell, each) for cell in cells] if each != 1.0 else [] for each in multipliers]
        return edited_logprobs(live, [row.pair for row in asked], variants, progress)
    rows = continuations(live.tokenizer, [row.pair for row in asked])
    names = [row.token for row in place_asked(live, asked)]
    # An answer's last token predicts nothing that is asked for.
    texts = [row.ids[:-1] for row in rows]
    result = torch.zeros(len(multipliers), len(asked), dtype=torch.float64)
    # One row for each multiplier and text. The name's token carries the multiplier's number as a label, so that
    # what comes before it is shared and what comes after it is not.
    labelled = [
        (*text[:token], text[token] + number * LABEL, *text[token + 1 :])
        for number in range(1, len(multipliers) + 1)
        for text, token in zip(texts, names, strict=True)
    ]
    layers = {cell.layer for cell in cells}
    for one in passes(live, labelled):
        factors = torch.ones(one.inputs["input_ids"].shape)
        wanted = [divmod(index, len(asked)) for index in one.indices]
        for (number, text), line, slots in zip(wanted, one.lines, one.slots, strict=True):
            factors[line, slots[names[text]]] = multipliers[number]
        heads = [slots[-rows[text].n_answer :] for (_, text), slots in zip(wanted, one.slots, strict=True)]
        with _scaled(live, cells, factors):
            logprobs = _answers(live, one, heads, [rows[text] for _, text in wanted], layers)
        for (number, text), value in zip(wanted, logprobs[0].tolist(), strict=True):
            result[number, text] = value
        if progress:
            progress(len(one.indices))
    return _finite(live, result)


def _finite(live: LiveModel, logprobs: Tensor) -> Tensor:
    if not torch.isfinite(logprobs).all():
        raise not_finite(live, "log-probabilities", "the multipliers are too large")
    return logprobs


def _answers(
    live: LiveModel, one: Pass, heads: Sequence[Sequence[int]], rows: Sequence[Continuation], layers: set[int]
) -> Tensor:
    """Log-probabilities (n_copies, n_rows) of the answers of one pass; `heads` are the places that predict them.

    There may be several copies of a pass of one line, if a hook in one of the `layers`, those that change, has made
    them.
    """
    single = one.inputs["input_ids"].shape[0] == 1
    lines = torch.tensor([line for line, slots in zip(one.lines, heads, strict=True) for _ in slots])
    places = torch.tensor([slot for slots in heads for slot in slots])
    spots = (None if single else lines, places)
    # In the last layer what changes is told by its place in the pass, so that all must be there.
    last = live.shape.n_layers - 1
    sparing = last not in layers and can_spare(live, last)
    with at_head(live, *spots), at_mlp(live, last, *spots) if sparing else contextlib.nullcontext():
        logits = live.model(**one.inputs, use_cache=False).logits.float()  # (n_copies, n_heads, vocabulary)
    wanted = torch.tensor([token for row in rows for token in row.ids[-row.n_answer :]], device=logits.device)
    found = logits.gather(2, wanted.expand(len(logits), -1)[..., None])[..., 0]
    logprobs = (found - logits.logsumexp(2)).double().cpu()
    owner = torch.tensor([n for n, slots in enumerate(heads) for _ in slots])
    return torch.zeros(len(logits), len(rows), dtype=torch.float64).index_add_(1, owner, logprobs)


def _scaled(live: LiveModel, cells: Sequence[Cell], factors: Tensor) -> contextlib.AbstractContextManager[None]:
    """Scale the cells by `factors` (batch, tokens)."""

    def scale(neurons: list[int]) -> Callable[[Tensor], Tensor]:
        def function(values: Tensor) -> Tensor:
            lines = values.clone()
            lines[..., neurons] *= factors.to(values)[..., None]
            return lines

        return function

    layers = sorted({cell.layer for cell in cells})
    return hooks(live, {n: scale([cell.neuron for cell in cells if cell.layer == n]) for n in layers})


@dataclass(frozen=True)
class Injection:
    """Activations to set at one token: of one cell to a number, or, without `neuron`, of a layer to a (d_mlp,).

    With `add`, the value is added to what is there. The token is `back` tokens before the one that `injected` is given.
    """

    layer: int
    neuron: int | None
    value: float | Tensor
    add: bool = False
    back: int = 0


def injected(
    live: LiveModel, batch: Batch, tokens: Sequence[int], injections: Sequence[Sequence[Injection]]
) -> contextlib.AbstractContextManager[None]:
    """Set activations while a batch runs: of each row of the caller's, at its token number `tokens`, one by one.

    Generated tokens, which come one at a time after the prompts, are left alone, and so is what lies before a text.
    """
    width = batch.inputs["input_ids"].shape[1]
    by_layer: dict[int, list[tuple[int, int, Injection]]] = {}
    for line, (index, padding) in enumerate(zip(batch.indices, batch.padding.tolist(), strict=True)):
        for injection in injections[index]:
            if injection.back <= tokens[index]:
                spot = padding + tokens[index] - injection.back
                by_layer.setdefault(injection.layer, []).append((line, spot, injection))

    def set_all(rows: list[tuple[int, int, Injection]]) -> Callable[[Tensor], Tensor | None]:
        def function(values: Tensor) -> Tensor | None:
            if values.shape[1] != width:
                return None
            values = values.clone()
            for line, spot, injection in rows:
                target = values[line, spot, slice(None) if injection.neuron is None else injection.neuron]
                value = torch.as_tensor(injection.value).to(target)
                target.copy_(target + value if injection.add else value)
            return values

        return function

    return hooks(live, {layer: set_all(rows) for layer, rows in by_layer.items()})


@contextlib.contextmanager
def replaced_outputs(
    live: LiveModel, functions: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
) -> Generator[None]:
    """Replace what components write to the residual stream, by (component "attention" or "mlp", layer).

    Each function takes and returns (batch, tokens, d_model). Raises LayoutError for outputs of another form.
    """
    handles = []
    try:
        for (component, layer), function in functions.items():
            module = live.whole_mlp(layer) if component == "mlp" else live.mixer(layer)

            def hook(_module: object, _args: object, output: Tensor, function=function, layer=layer) -> Tensor:
                if output.ndim != 3:
                    raise no_rows(live, layer, output)
                return function(output)

            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
