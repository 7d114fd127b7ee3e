"""Other ways to write a name: typos, initials, the last word alone, other case. Pure functions of text."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from amnesia.domain import name_key, tidy
from amnesia.errors import InputError

Kind = Literal[
    "name",
    "given",
    "translation",
    "last name",
    "acronym",
    "lower case",
    "upper case",
    "typo",
    "typo of 2 edits",
    "first in a line",
    "unrelated",
]
N_TYPOS = 3
"""Typos of one edit, and of two; set by hand."""

_SMALL_WORDS = {"of", "the", "and", "de", "da", "von", "van"}


@dataclass(frozen=True)
class Variant:
    """A way to write a name; `language` is the code of a translation's language."""

    name: str
    kind: Kind
    language: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", tidy(self.name))

    @property
    def label(self) -> str:
        """The name as a reader tells it from the other variants."""
        return f"{self.name} ({self.kind})" if self.kind == "first in a line" else self.name


def variants_of(
    name: str, given: Sequence[Variant] = (), n_typos: int = N_TYPOS, *, at_most: bool = False
) -> tuple[Variant, ...]:
    """The name itself, given forms (aliases, translations), and generated ones; each form once.

    There are `n_typos` typos of one edit and as many of two; see `typos`.
    """
    name = tidy(name)
    words = name.split()
    found = [Variant(name, "name"), *given]
    if len(words) > 1:
        found.append(Variant(words[-1], "last name"))
    if acronym := acronym_of(name):
        found.append(Variant(acronym, "acronym"))
    found += [Variant(name.lower(), "lower case"), Variant(name.upper(), "upper case")]
    found += [Variant(typo, "typo") for typo in typos(name, n_typos, at_most=at_most)]
    found += [Variant(typo, "typo of 2 edits") for typo in typos(name, n_typos, 2, at_most=at_most)]
    return distinct(found)


def distinct(variants: Iterable[Variant]) -> tuple[Variant, ...]:
    """The variants without those whose name has come before."""
    unique: dict[str, Variant] = {}
    for variant in variants:
        unique.setdefault(variant.name, variant)
    return tuple(unique.values())


def acronym_of(name: str) -> str | None:
    """Initials of the words that are not small ones, or None for fewer than three."""
    initials = [word[0].upper() for word in name.split() if word.casefold() not in _SMALL_WORDS and word[0].isalpha()]
    return "".join(initials) if len(initials) >= 3 else None


def typos(name: str, n: int, n_edits: int = 1, *, at_most: bool = False) -> tuple[str, ...]:
    """`n` different misspellings at an edit distance of `n_edits`: letters swapped, left out, or doubled.

    First letters of words stay. A name with few letters side by side has fewer: with `at_most` these are all, else
    InputError is raised.
    """
    draw = random.Random(0)
    reached = {name}
    for _ in range(n_edits):
        reached = {typo for text in reached for typo in _one_edit(text)}
    # In a fixed order, so that the same ones are drawn each time; two edits may also come to one, or to none.
    options = sorted(reached)
    draw.shuffle(options)
    found: list[str] = []
    for option in options:
        if len(found) < n and edit_distance(name, option) == n_edits:
            found.append(option)
    if len(found) < n and not at_most:
        edits = "one edit" if n_edits == 1 else f"{n_edits} edits"
        raise InputError(f"{name!r} has {len(found)} typos of {edits}, asked for were {n}: ask for fewer")
    return tuple(found)


def _one_edit(name: str) -> set[str]:
    options = set()
    for i in range(1, len(name)):
        if name[i].isalpha() and name[i - 1].isalpha():
            options |= {name[:i] + name[i + 1 :], name[:i] + name[i] + name[i:]}
            if i + 1 < len(name) and name[i + 1].isalpha():
                options.add(name[:i] + name[i + 1] + name[i] + name[i + 2 :])
    return options


_LONG = {"st": "saint", "mt": "mount", "bros": "brothers", "co": "company", "ft": "fort"}
_LETTERS = 10  # From so many on, names that differ by one letter are one.


def is_spelling(name: str, other: str) -> bool:
    """Whether two names are one that is spelled in two ways.

    With and without accents, initials, middle names and small words, with abbreviations, in another order, or by one
    letter of many.
    """
    first, second = (_plain(each) for each in (name, other))
    short, long = sorted((first, second), key=len)
    if not short:
        return False
    rest = iter(long)
    if sorted(first) == sorted(second) or (
        len(short) > 1 and (short[0], short[-1]) == (long[0], long[-1]) and all(word in rest for word in short)
    ):
        return True
    texts = " ".join(first), " ".join(second)
    return min(map(len, texts)) >= _LETTERS and edit_distance(*texts) <= 1


def _plain(name: str) -> list[str]:
    """The words of a name without accents, small words and single initials; several initials are a word."""
    letters = unicodedata.normalize("NFKD", name_key(name))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    text = re.sub(r"\b(?:\w\.\s?){2,}", lambda found: re.sub(r"\W", "", found[0]) + " ", text)
    words = [_LONG.get(word, word) for word in re.findall(r"\w+", text)]
    return [word for word in words if word not in _SMALL_WORDS and (len(word) > 1 or not word.isalpha())] or words


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbors between two texts (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(second, 1):
            best = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                best = min(best, earlier[j - 2] + 1)
            row.append(best)
    return row[-1]
