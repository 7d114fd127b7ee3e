"""What is read of all that must stay beside an entity, as rows of tokens: sentences, the vocabulary, other names."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from amnesia.facts.names import code_snippets, contrast_entities, foreign_sentences, name_wordings, neutral_texts
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Placed, encode

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MomentSettings:
    """What the moments are made of.

    `text`, `vocabulary` and `names` are the shares of the three kinds of bystanders, `ridge` the share of the mean
    diagonal that is added to it. `sampled` is the number of tokens that the model writes itself, in `length` steps from
    the first `beginning` tokens of each sentence; `answering` of these texts, one of every so many, are read beside the
    sentences for what harm is told by; `vocabulary_size` is the number of its tokens that are read in short
    contexts.

    Half or double of a share or of the ridge changes what a read-out on all columns leaves of texts, tokens and names
    that are in none of this by 13 % at most; without the vocabulary tokens keep 32 % more, without sampled text texts
    29 % more (geometric means of 24 entities on SmolLM2-135M, `tests/benchmarks/moments.py`).
    """

    text: float = 0.6
    vocabulary: float = 0.2
    names: float = 0.2
    ridge: float = 0.005
    sampled: int = 18_000
    length: int = 64
    beginning: int = 4
    answering: int = 24
    vocabulary_size: int = 12_000


@dataclass(frozen=True)
class NameToken:
    """One token of another name in one wording, and whether it is the name's last one."""

    name: str
    is_last: bool


@dataclass(frozen=True)
class Bystanders:
    """Rows of tokens for one model. `sentences` are those of this package; `vocabulary` has tokens in short contexts,
    each the last of its row; `name_rows` other names, each row up to the token that `names` tells of.

    The model itself goes on from `beginnings`, by `n_following` tokens.
    """

    sentences: Rows
    vocabulary: Rows
    names: tuple[NameToken, ...]
    name_rows: tuple[Placed, ...]
    beginnings: Rows
    n_following: int


def bystanders_of(live: LiveModel, settings: MomentSettings) -> Bystanders:
    """What is read for the moments of a model."""
    return Bystanders(
        _sentence_rows(live), vocabulary_rows(live, settings), *other_names(live), *_beginnings(live, settings)
    )


def _sentences() -> tuple[str, ...]:
    return (*neutral_texts("search"), *foreign_sentences(), *code_snippets())


def _sentence_rows(live: LiveModel) -> Rows:
    """The sentences as tokens, as far as the model has positions for them."""
    return tuple(item.ids[: live.n_positions] for item in encode(live.tokenizer, _sentences()))


def vocabulary_rows(live: LiveModel, settings: MomentSettings) -> Rows:
    """Rows that end in a token of the vocabulary each: a third after a common beginning, the others after 1 to 4
    random tokens. Special and unused tokens are left out."""
    draw = random.Random(0)
    special = set(live.tokenizer.all_special_ids)
    pieces = live.tokenizer.convert_ids_to_tokens(list(range(len(live.tokenizer))))
    # A tokenizer may have no piece for some of its ids.
    known = live.model.get_input_embeddings().num_embeddings  # A tokenizer may have more tokens than the model, too.
    named = [(token, piece) for token, piece in enumerate(pieces[:known]) if piece is not None and token not in special]
    pool = [token for token, piece in named if not piece.startswith("<unused")]
    tokens = draw.sample(pool, min(settings.vocabulary_size, len(pool)))
    beginning = encode(live.tokenizer, ["The story of"])[0].ids
    # What the tokenizer puts before every text, if anything.
    before = tuple(token for token in beginning[:1] if token in special)
    return tuple(
        (*beginning, token) if place % 3 == 0 else (*before, *draw.choices(tokens, k=draw.randint(1, 4)), token)
        for place, token in enumerate(tokens)
    )


def other_names(live: LiveModel) -> tuple[tuple[NameToken, ...], tuple[Placed, ...]]:
    """Other names in some wordings, a row for each of their tokens; what each row is about."""
    pairs = [(name, wording) for name in contrast_entities() for wording in name_wordings()]
    tokens, rows = [], []
    for (name, wording), item in zip(
        pairs, encode(live.tokenizer, [wording.replace("{entity}", name) for name, wording in pairs]), strict=True
    ):
        last = len(item.ids) - 1
        for token in range(max(1, item.token_at(wording.index("{entity}"))), last + 1):
            tokens.append(NameToken(name, token == last))
            rows.append(Placed(item.ids, token))
    return tuple(tokens), tuple(rows)


def _beginnings(live: LiveModel, settings: MomentSettings) -> tuple[Rows, int]:
    """What texts of the model begin with, a row each, and how many tokens follow."""
    starts = [item.ids[: settings.beginning + 1] for item in encode(live.tokenizer, _sentences())]
    starts = [ids for ids in starts if len(ids) == settings.beginning + 1]
    # Short where the model's positions end early.
    room = live.n_positions or settings.length
    length = max(1, min(settings.length, room - settings.beginning - 1))
    n_rows = math.ceil(settings.sampled / length)
    # The last token of a row would predict nothing.
    return tuple(starts[index % len(starts)] for index in range(n_rows)), max(1, length - 1)
