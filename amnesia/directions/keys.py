"""Keys of a name: the mean activations at its tokens, over many wordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amnesia.facts.names import entity_templates, neutral_texts
from amnesia.facts.relations import relation_templates
from amnesia.live.chat_form import chat_format
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Placed, encode
from amnesia.live.watching import activations

_N_LINES = 16  # Sentences after which a name begins a line.


def wordings() -> tuple[str, ...]:
    """Texts with `{entity}`: the search wordings of all relations, and the prompts of localization."""
    held_out = {text for each in relation_templates().values() for text in each.held_out}
    texts = [text for each in relation_templates().values() for text in each.search] + list(entity_templates())
    return tuple(dict.fromkeys(text for text in texts if text not in held_out))


def line_starts(live: LiveModel) -> tuple[str, ...]:
    """Texts with `{entity}` at the beginning of a line: after a sentence, and after a message to a chat model."""
    texts, chat = neutral_texts("search")[:_N_LINES], chat_format(live.tokenizer)
    return tuple(f"{before}{{entity}}" for text in texts for before in (f"{text}\n", *((chat(text),) if chat else ())))


def name_rows(
    live: LiveModel, name: str, max_tokens: int | None = None, texts: Sequence[str] | None = None
) -> dict[int, list[Placed]]:
    """All wordings (or `texts`) of a name up to each of its tokens, counted from its last one (0) backwards.

    At most `max_tokens` of its tokens, as far as every wording has so many. What follows a token cannot change its
    activations, so that wordings that begin alike count once.
    """
    filled = [(text.replace("{entity}", name), text.index("{entity}")) for text in texts or wordings()]
    spans = []
    for item, (_, start) in zip(encode(live.tokenizer, [text for text, _ in filled]), filled, strict=True):
        spans.append((item.ids, item.token_at(start), item.token_at(start + len(name) - 1)))
    n_tokens = min(last - first + 1 for _, first, last in spans)
    return {
        # But not at the first token of a row, which is a sink of attention.
        back: list(dict.fromkeys(Placed(ids[: last - back + 1], last - back) for ids, _, last in spans if last > back))
        for back in range(n_tokens if max_tokens is None else min(n_tokens, max_tokens))
    }


def token_texts(live: LiveModel, name: str, n: int) -> tuple[str, ...]:
    """What the last `n` tokens of a name stand for in the middle of a text, from its last one backwards."""
    wording = next(text for text in wordings() if not text.startswith("{entity}"))
    text = wording[: wording.index("{entity}")] + name
    (item,) = encode(live.tokenizer, [text])
    last = item.token_at(len(text) - 1)
    return tuple(text[slice(*item.offsets[last - back])] for back in range(n))


def name_keys(
    live: LiveModel, name: str, layers: Sequence[int], max_tokens: int, texts: Sequence[str] | None = None
) -> Mapping[int, Tensor]:
    """Keys (n_layers, d_mlp) of a name, float32, by token as in `name_rows`: means over its wordings (or `texts`)."""
    return mean_keys(live, name_rows(live, name, max_tokens, texts), layers)


def mean_keys(live: LiveModel, rows: Mapping[int, Sequence[Placed]], layers: Sequence[int]) -> Mapping[int, Tensor]:
    """Mean activations (n_layers, d_mlp), float32, at the tokens of each group of rows, by the group's key."""
    flat = [(group, row) for group, own in rows.items() for row in own]
    total = {group: torch.zeros(len(layers), live.shape.d_mlp, device=live.device) for group in rows}
    for indices, batch in activations(live, [row for _, row in flat], layers):
        for index, values in zip(indices, batch, strict=True):
            total[flat[index][0]] += values
    return {group: total[group] / len(rows[group]) for group in rows}
