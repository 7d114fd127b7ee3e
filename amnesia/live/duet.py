"""A model and its edited self, which answer a prompt together, token by token.

Both are rows of one batch over one copy of the weights: at the second row, the output projections that the edit changes
are taken with the stored numbers of its columns, so that this row is the model that the edited files hold, and not the
edit before it was rounded. Of these few matrices there is a second copy.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from amnesia.errors import InputError, LayoutError
from amnesia.live.batches import check_ids
from amnesia.live.disk import numbers_of
from amnesia.live.drawing import DrawnAlone
from amnesia.live.model import LiveModel, not_finite, plain_generation
from amnesia.live.tokens import encode
from amnesia.weights.checkpoint import EditedColumns
from amnesia.weights.scaling import number_type

Changes = Mapping[int, tuple[Tensor, Tensor, Tensor]]
"""Columns of output projections by layer: their numbers (n,), what they hold before and after an edit (n, d_model)."""

Show = Callable[[Sequence[str]], None]
"""Told of all texts whenever one of them has grown."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn, by a generator that begins with `seed`.

    Each answer has such a generator of its own, so that what differs between two of them is not by chance. An answer
    has at most `max_tokens` tokens.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Voice:
    """Rows of one model that answer together; with `changes`, the second of two is edited, at a `strength`."""

    live: LiveModel
    changes: Changes | None = None
    strength: float = 1.0

    @property
    def n_rows(self) -> int:
        return 1 if self.changes is None else 2


@dataclass(frozen=True)
class Duet:
    """The models that answer: one voice of two rows, or two voices of one, where the second is another model."""

    voices: tuple[Voice, ...]

    @property
    def strength(self) -> float | None:
        """Times the edit, which 1 is and 0 is not; None where the second model is another one."""
        return self.voices[0].strength if len(self.voices) == 1 else None

    def at(self, strength: float) -> Duet:
        """The same with another strength; raises InputError where the second model is another one."""
        if self.strength is None:
            raise InputError(
                "the strength cannot be changed: the second model is loaded as it is; give its edit with --edit"
            )
        return Duet((replace(self.voices[0], strength=strength),))

    def answer(self, texts: Sequence[str], sampling: Sampling, show: Show = lambda texts: None) -> tuple[str, ...]:
        """What each model makes of its text, special tokens left out; `texts` has one for each voice.

        Raises InputError for a text that is longer than the model takes, NumericalError when it gives NaN.
        """
        done: list[str] = []
        for voice, text in zip(self.voices, texts, strict=True):

            def grown(rows: Sequence[Sequence[int]], live: LiveModel = voice.live, before: int = len(done)) -> None:
                del done[before:]
                done.extend(live.tokenizer.batch_decode([*map(list, rows)], skip_special_tokens=True))
                show([*done, ""][:2])

            grown(continued_rows(voice, text, sampling, grown))
        return tuple(done)


def changes_of(columns: Sequence[EditedColumns], live: LiveModel) -> Changes:
    """What an edit changes in the weights of `live`; raises LayoutError for columns of routed experts."""
    changes = {}
    for row in columns:
        if row.plan.expert is not None:
            raise LayoutError(
                f"cells of experts of {live.name} cannot be edited in memory: write the edited model first"
            )
        number = number_type(row.plan.tensor.dtype)

        def as_loaded(vectors: Iterable[bytes], number: np.dtype = number) -> Tensor:
            found = np.stack([np.frombuffer(vector, number).astype(np.float32) for vector in vectors])
            return torch.from_numpy(found).to(live.model.dtype).float()

        before, after = as_loaded(row.before.values()), as_loaded(row.after[index] for index in row.before)
        changes[row.plan.layer] = torch.tensor(list(row.before)), before, after
    return changes


@contextlib.contextmanager
def second_row_edited(voice: Voice) -> Generator[None]:
    """Let the edited output projections of a voice write at the second of two rows."""
    handles = []
    try:
        for layer in voice.changes or ():
            twin = _edited_twin(voice, layer)

            def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor, twin: nn.Module = twin) -> Tensor:
                # Beside a mixture of experts, the tokens of all rows may come one after the other.
                activations = args[0].reshape(voice.n_rows, -1, args[0].shape[-1])[1:]
                changed = output.clone(memory_format=torch.contiguous_format)
                changed.view(voice.n_rows, -1, output.shape[-1])[1:] = twin(activations)
                return changed

            handles.append(voice.live.out_proj(layer).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edited_twin(voice: Voice, layer: int) -> nn.Module:
    """The output projection of a layer with edited columns, beside the one that is in the model."""
    assert voice.changes is not None, "layers come from it"
    columns, before, after = voice.changes[layer]
    module = voice.live.out_proj(layer)
    weight = numbers_of(module).clone()
    # Exactly what is stored at 1.
    values = after if voice.strength == 1.0 else before + (after - before) * voice.strength
    if voice.live.shape.layout.neuron_axis:
        weight[:, columns.to(weight.device)] = values.T.to(weight)
    else:
        weight[columns.to(weight.device)] = values.to(weight)
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    twin._forward_hooks = OrderedDict()
    # By its hook accelerate would run the module on the disk in the twin's place.
    if vars(twin).pop("_hf_hook", None) is not None:
        del twin.forward
    return twin


@torch.inference_mode()
def continued_rows(
    voice: Voice, text: str, sampling: Sampling, grown: Callable[[Sequence[Sequence[int]]], None]
) -> tuple[tuple[int, ...], ...]:
    """Token ids that follow a text in each row of a voice, up to a special token; `grown` gets those there are so far.

    Raises InputError for a text that is longer than the model takes, NumericalError when it gives NaN.
    """
    live = voice.live
    (row,) = encode(live.tokenizer, [text])
    check_ids(live, [row.ids], n_more=1)
    room = (live.n_positions or len(row.ids) + sampling.max_tokens) - len(row.ids)
    ends = {token for token, added in live.tokenizer.added_tokens_decoder.items() if added.special}
    own = live.model.generation_config.eos_token_id if live.model.generation_config else None
    # A negative number is no token's.
    ends.update(end for end in (own if isinstance(own, list) else [own]) if end is not None and end >= 0)
    config = GenerationConfig(
        max_new_tokens=min(sampling.max_tokens, room),
        pad_token_id=live.tokenizer.pad_token_id or 0,
        eos_token_id=sorted(ends) or None,
        do_sample=False,
    )
    ids = torch.tensor([row.ids] * voice.n_rows, device=live.device)
    rows = _Rows(voice.n_rows, ends, grown)
    chosen = [DrawnAlone(sampling.temperature, sampling.seed)] if sampling.temperature else []
    with plain_generation(live), second_row_edited(voice):
        cast(GenerationMixin, live.model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=[_Finite(live), *chosen],
            streamer=rows,
        )
    return tuple(map(tuple, rows.rows))


@torch.inference_mode()
def shifts(voice: Voice, text: str, max_tokens: int) -> tuple[tuple[str, ...], Tensor]:
    """How far an edit moves the residual stream at each of the first `max_tokens` of a text: their texts, and numbers.

    These are ‖h' − h‖ / ‖h‖ (dimensionless) of the states h after each layer: (n_layers, n_tokens), on the CPU. Raises
    InputError for a text that is longer than the model takes, NumericalError for NaN and infinity.
    """
    live = voice.live
    (row,) = encode(live.tokenizer, [text])
    ids = row.ids[:max_tokens]
    check_ids(live, [ids])
    found = torch.zeros(live.shape.n_layers, len(ids), dtype=torch.float64)
    handles = []
    for layer in range(live.shape.n_layers):

        def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...], layer: int = layer) -> None:
            before, after = (output if isinstance(output, Tensor) else output[0]).double()
            found[layer] = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)

        handles.append(live.model.get_submodule(live.shape.layer_path(layer)).register_forward_hook(hook))
    try:
        given = torch.tensor([ids] * voice.n_rows, device=live.device)
        with second_row_edited(voice):
            live.model.base_model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not torch.isfinite(found).all():
        raise not_finite(live, "states", "the strength is too large")
    names = live.tokenizer.convert_ids_to_tokens(list(ids))
    spans = row.offsets[: len(ids)]
    return tuple(text[slice(*span)] or name for span, name in zip(spans, names, strict=True)), found


class _Rows(BaseStreamer):
    """Collects the tokens of each row until one ends it."""

    def __init__(self, n_rows: int, ends: set[int], grown: Callable[[Sequence[Sequence[int]]], None]) -> None:
        self.rows: list[list[int]] = [[] for _ in range(n_rows)]
        self._open = [True] * n_rows
        self._ends, self._grown = ends, grown
        self._begun = False

    def put(self, value: Tensor) -> None:
        if not self._begun:  # That is the prompt.
            self._begun = True
            return
        for index, token in enumerate(value.tolist()):
            self._open[index] &= token not in self._ends
            if self._open[index]:
                self.rows[index].append(token)
        self._grown(self.rows)

    def end(self) -> None:
        pass


class _Finite(LogitsProcessor):
    """Passes all logits on that are numbers."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise not_finite(self._live, "logits", "the strength is too large, or its weights are damaged")
        return scores
