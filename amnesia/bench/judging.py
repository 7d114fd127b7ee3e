"""What a written text is worth, in the measures with which RWKU was published. Pure functions of text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

_ARTICLES = re.compile(r"\b(?:an?|the)\b")
_SIGNS = re.compile(r"[!-/:-@\[-`{-~]")
_TOKENS = re.compile(r"\w+|[^\w\s]")
_CONCLUSION = re.compile(r"[Tt]he answer is (.*?)\.")


def rouge_l_recall(written: str, answers: Sequence[str]) -> float:
    """The longest common subsequence of words as a share of the first answer's words (ROUGE-L recall; Lin, 2004).

    Words are parted by white space and full stops, and case counts, as in the package that RWKU was published with.
    """
    found, wanted = (text.replace(".", " ").split() for text in (first_line(written), answers[0]))
    if not wanted:
        return 0.0
    lengths = [0] * (len(wanted) + 1)
    for word in found:
        before = lengths[:]
        for n, other in enumerate(wanted, start=1):
            lengths[n] = before[n - 1] + 1 if word == other else max(before[n], lengths[n - 1])
    return lengths[-1] / len(wanted)


def f1(written: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the first line's words, by the best of the answers (SQuAD)."""
    words = _words(first_line(written))
    return max(_f1(words, _words(answer)) for answer in answers)


def exact_conclusion(written: str, answers: Sequence[str]) -> float:
    """Whether what follows "the answer is", up to a full stop, or else the whole text, is one of the answers: 1 or 0.

    Case, articles and the punctuation of ASCII count for nothing.
    """
    concluded = _CONCLUSION.search(written)
    words = _words(concluded[1] if concluded else written)
    return float(any(words == _words(answer) for answer in answers))


def entropy(written: str, _answers: Sequence[str] = ()) -> float:
    """How varied a text is, in bits: the entropies of its pairs and triples of words, weighed as 1 to 2 (RWKU; Meng et
    al., 2022).

    Signs are words of their own. A text that repeats itself has little.
    """
    words = _TOKENS.findall(written)
    return _entropy(pairwise(words)) / 3 + 2 * _entropy(zip(words, words[1:], words[2:], strict=False)) / 3


def first_line(text: str) -> str:
    """The first line of a text that is not blank."""
    return next((part for part in text.strip().splitlines() if part.strip()), "")


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _SIGNS.sub("", text.lower())).split()


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _entropy(grams: Iterable[tuple[str, ...]]) -> float:
    counts = Counter(grams).values()
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)
