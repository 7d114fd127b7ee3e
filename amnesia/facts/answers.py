"""What a model wrote, held against the answers that are right. Pure functions of text.

A text matches an answer when, after both are normalized, the words of the answer occur one after the other among the
words of the text's first line. Normalization is that of SQuAD (Rajpurkar et al., 2016): lower case, without
punctuation, without articles, single spaces.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

from amnesia.domain import Reply

# At the beginning of a text, after `normalized` (which drops apostrophes and articles).
REFUSALS: tuple[str, ...] = (
    "i dont know", "i do not know", "i am not sure", "im not sure", "i am not aware", "im not aware",
    "i am not familiar", "im not familiar", "i dont have", "i do not have", "i cannot", "i cant", "i am unable",
    "im unable", "i am sorry", "im sorry", "sorry", "unfortunately", "as ai", "as language model", "unknown",
    "not known", "not available", "no information", "no answer", "none of above", "it is not known", "it is unknown",
    "there is no information",
)  # fmt: skip

_ARTICLES = frozenset(("a", "an", "the"))


@functools.lru_cache(2**16)
def normalized(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation and articles.

    Characters of scripts that are written without spaces are words of their own.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    chars = []
    for char in text:
        if unicodedata.category(char)[0] in "PS":
            continue
        chars.append(f" {char} " if unicodedata.east_asian_width(char) in "WF" else char)
    return tuple(word for word in "".join(chars).split() if word not in _ARTICLES)


def answer_line(generated: str) -> str:
    """The part of a generated text in which an answer is looked for: up to the first line break that follows a word."""
    return next(iter(generated.strip().splitlines()), "").rstrip()


def matches(generated: str, answers: Sequence[str]) -> bool:
    """Whether the first line of a generated text contains one of the answers as a run of whole words.

    Answers that consist of nothing but punctuation and articles match nothing.
    """
    words = normalized(answer_line(generated))
    return any(_contains(words, answer) for answer in map(normalized, answers) if answer)


def reply(generated: str, matched: bool) -> Reply:
    """What kind of reply a generated text is: without any word it is empty; a right answer is never a refusal."""
    words = normalized(answer_line(generated))
    if not words:
        return "empty"
    if not matched and any(words[: len(own)] == own for own in map(tuple, map(str.split, REFUSALS))):
        return "refusal"
    return "answer"


def _contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are the same after normalization."""
    words = normalized(first)
    return bool(words) and words == normalized(second)
