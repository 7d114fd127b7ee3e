"""Texts to the exact token ids that the model is fed, and the tokens in them that matter. Needs only a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from amnesia.domain import plain_apostrophes, tidy
from amnesia.errors import InputError, clipped
from amnesia.plain_text import is_unspaced

if TYPE_CHECKING:
    from torch import Tensor


MAX_CHARACTERS = 50_000
"""Of one text; set by hand: the memory of attention grows with the square of a text, here to about a gigabyte."""


class Tokenizer(Protocol):
    """What is asked of a fast tokenizer of transformers. Token ids are those of the model."""

    def __call__(
        self,
        text: str | list[str],
        *,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
    ) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def batch_decode(self, sequences: Tensor | list[list[int]], skip_special_tokens: bool = False) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> Any: ...

    # Transformers finds its special tokens late: `pad_token_id`, `bos_token`, ..., each None where there is none.
    def __getattr__(self, key: str, /) -> Any: ...


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text, with the special tokens before it, and the character span (start, end) of each token."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def token_at(self, character: int) -> int:
        """Index of the last token that covers the character at index `character`.

        Several byte-level tokens may cover one character of a non-Latin name; the last of them completes it.
        Raises InputError when no token covers it.
        """
        for index in reversed(range(len(self.offsets))):
            start, end = self.offsets[index]
            if start <= character < end:
                return index
        raise InputError(f"no token covers character {character}: the tokenizer drops part of the text; reword it")


@dataclass(frozen=True)
class Placed:
    """An encoded text and the index `token` of the entity's last token in it."""

    ids: tuple[int, ...]
    token: int


@dataclass(frozen=True)
class Continuation:
    """Token ids of a prompt followed by an answer; the answer's tokens are the last `n_answer`."""

    ids: tuple[int, ...]
    n_answer: int


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokenize as the model is fed. Raises InputError for a text without tokens, and for one beyond all measure.

    Special tokens that the tokenizer itself puts after every text, as its end, are left out: all texts here go on.
    """
    if not texts:
        return []
    if (longest := max(texts, key=len)) and len(longest) > MAX_CHARACTERS:
        raise InputError(
            f"text {clipped(repr(longest))} has {len(longest)} characters: prompts have at most "
            f"{MAX_CHARACTERS}; shorten it"
        )
    batch = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True)
    encoded = []
    for ids, spans, added in zip(*map(batch.get, ("input_ids", "offset_mapping", "special_tokens_mask")), strict=True):
        end = max((place for place, mark in enumerate(added, start=1) if not mark), default=0)
        encoded.append(Encoded(tuple(ids[:end]), tuple((start, stop) for start, stop in spans[:end])))
    for text, item in zip(texts, encoded, strict=True):
        if not item.ids:
            raise InputError(f"text {text!r} has no tokens: give a non-empty prompt")
    return encoded


def place(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Placed]:
    """Fill names into templates, given as (template with `{entity}`, name), and find the last token of each name.

    The template itself says where the name ends; token sequences are never searched. Where a template mentions the
    entity twice, the last mention counts: there the model has read the most.
    """
    texts = [template.replace("{entity}", name) for template, name in pairs]
    placed = []
    for item, text, (template, _) in zip(encode(tokenizer, texts), texts, pairs, strict=True):
        tail = len(template) - template.rindex("{entity}") - len("{entity}")
        placed.append(Placed(item.ids, item.token_at(len(text) - tail - 1)))
    return placed


def templates_from(prompts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Turn prompts into (template, name) pairs for `place`; prompts about somebody else are left out.

    A prompt with `{entity}` takes the first name. Otherwise the last mention of any of `names` (an entity and its
    aliases) becomes the placeholder, and stays written as it is. Raises InputError when no prompt is left.
    """
    pairs = []
    for given in prompts:
        prompt = unicodedata.normalize("NFC", given)
        if "{entity}" in prompt:
            pairs.append((prompt, tidy(names[0])))
        elif span := mention_span(prompt, names):
            pairs.append((prompt[: span[0]] + "{entity}" + prompt[span[1] :], prompt[slice(*span)]))
    if not pairs:
        raise InputError(
            f"entity {names[0]!r} appears in no prompt: write its name as the prompts do, add an alias, "
            "or put {entity} into the prompts"
        )
    return pairs


def mention_span(text: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Character span of the last whole-word mention of any of `names` in a composed (NFC) `text`, or None.

    Either apostrophe and any spaces may stand in a mention. Of two mentions that end together the longer one counts
    ("Michael Jordan", not the alias "Jordan" in it).
    """
    plain = plain_apostrophes(text)
    found = []
    for name in filter(None, map(tidy, names)):
        pattern = r"\s+".join(map(re.escape, plain_apostrophes(name).split()))
        for match in re.finditer(f"(?=({pattern}))", plain):
            start, end = match.span(1)
            if not _joined(text[start - 1 : start], name[0]) and not _joined(name[-1], text[end : end + 1]):
                found.append((end, -start))
    if not found:
        return None
    end, negative_start = max(found)
    return -negative_start, end


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word; scripts without spaces never join."""
    return bool(left and right) and all(char.isalnum() and not is_unspaced(char) for char in (left, right))


def join(prompt: str, answer: str) -> str:
    """The text in which `answer` follows `prompt`: one space between them unless the prompt ends in white space."""
    return prompt + answer if prompt[-1:].isspace() else f"{prompt} {answer}"


def continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Tokenize (prompt, answer) pairs as one text each.

    The answer starts at the first token that reaches past the prompt, so the space before it is part of it.
    Raises InputError when nothing is left to score or to condition on.
    """
    encoded = encode(tokenizer, [join(prompt, answer) for prompt, answer in pairs])
    rows = []
    for (prompt, answer), item in zip(pairs, encoded, strict=True):
        first = next((index for index, (_, end) in enumerate(item.offsets) if end > len(prompt)), len(item.ids))
        if not 0 < first < len(item.ids):
            raise InputError(f"prompt {prompt!r} with answer {answer!r} leaves no tokens to score: lengthen both")
        rows.append(Continuation(item.ids, len(item.ids) - first))
    return rows
