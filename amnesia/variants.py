"""Other ways to write a name: typos, initials, the last word alone, other case. Pure functions of text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from amnesia.errors import InputError

KINDS = ("name", "given", "last name", "acronym", "lower case", "upper case", "typo", "unrelated")
_SMALL_WORDS = {"of", "the", "and", "de", "da", "von", "van"}


@dataclass(frozen=True)
class Variant:
    """A way to write a name; `kind` is one of `KINDS`."""

    name: str
    kind: str


def variants_of(name: str, given: tuple[str, ...] = (), n_typos: int = 3, seed: int = 0) -> tuple[Variant, ...]:
    """The name itself, given forms (aliases, other languages and scripts), and generated ones, each form once."""
    words = name.split()
    found = [Variant(name, "name"), *(Variant(alias, "given") for alias in given)]
    if len(words) > 1:
        found.append(Variant(words[-1], "last name"))
    if acronym := acronym_of(name):
        found.append(Variant(acronym, "acronym"))
    found += [Variant(name.lower(), "lower case"), Variant(name.upper(), "upper case")]
    found += [Variant(typo, "typo") for typo in typos(name, n_typos, seed)]
    unique: dict[str, Variant] = {}
    for variant in found:
        unique.setdefault(variant.name, variant)
    return tuple(unique.values())


def acronym_of(name: str) -> str | None:
    """Initials of the words that are not small ones, or None for fewer than three."""
    initials = [word[0].upper() for word in name.split() if word.casefold() not in _SMALL_WORDS and word[0].isalpha()]
    return "".join(initials) if len(initials) >= 3 else None


def typos(name: str, n: int, seed: int = 0) -> tuple[str, ...]:
    """`n` different misspellings, each one edit away: two letters swapped, one left out, or one doubled.

    First letters of words stay. Raises InputError for a name that is too short for as many.
    """
    places = [i for i in range(1, len(name)) if name[i].isalpha() and name[i - 1].isalpha()]
    options: list[str] = []
    for i in places:
        if i + 1 < len(name) and name[i + 1].isalpha():
            options.append(name[:i] + name[i + 1] + name[i] + name[i + 2 :])
        options += [name[:i] + name[i + 1 :], name[:i] + name[i] + name[i:]]
    options = [option for option in dict.fromkeys(options) if option != name]
    if n > len(options):
        raise InputError(f"{name!r} has {len(options)} typos of one edit, asked for were {n}: ask for fewer")
    return tuple(random.Random(seed).sample(options, n))
