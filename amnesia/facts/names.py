"""Texts in which entities are placed, the entities they are compared with, and sentences about nothing in particular.

The rules for choosing from them; they themselves stand in `names.toml`, `others.toml` and `texts.toml`. Knows nothing
of models or tokenizers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amnesia.domain import Split, entity_name, name_key
from amnesia.errors import InputError
from amnesia.facts.packaged import check_keys, distinct, read_data

_NAMES_FILE = Path(__file__).with_name("names.toml")
_OTHERS_FILE = Path(__file__).with_name("others.toml")
_TEXTS_FILE = Path(__file__).with_name("texts.toml")
_MIN_UNSEEN = 3
_FUNCTION_WORDS = frozenset(("the", "and", "for", "from", "with", "von", "van", "der", "den", "del", "las", "les"))


@functools.cache
def _names() -> dict[str, Any]:
    """`names.toml`, checked: no name is of two kinds."""
    document = read_data(_NAMES_FILE, "unseen spare kinds")
    for row in document["kinds"]:
        check_keys(row, "a kind of names.toml", "kind names", "type")
    distinct((name for row in document["kinds"] for name in row["names"]), "names.toml")
    distinct((*document["unseen"], *document["spare"]), "names.toml")
    return document


@functools.cache
def _texts() -> dict[str, Any]:
    """`texts.toml`, checked: no template and no sentence comes twice."""
    document = read_data(_TEXTS_FILE, "templates passing sentences")
    check_keys(document["passing"], "texts.toml: passing", "wordings")
    for row in document["templates"]:
        check_keys(row, "a template of texts.toml", "about phrases")
    for row in document["sentences"]:
        check_keys(row, "a sentence of texts.toml", "register language texts")
    distinct((phrase for row in document["templates"] for phrase in row["phrases"]), "texts.toml")
    distinct((text for row in document["sentences"] for text in row["texts"]), "texts.toml")
    return document


@functools.cache
def entity_templates() -> tuple[str, ...]:
    """A hundred prompts that end with `{entity}`, on attributes of people, then of places, works, organizations, all.

    The entity stands last, so that attention cannot let it see anything of the relation's answer.
    """
    return tuple(f"Fact: {phrase} {{entity}}" for row in _texts()["templates"] for phrase in row["phrases"])


def name_wordings() -> tuple[str, ...]:
    """Beginnings of texts that end with `{entity}`, in which the moments of other names are read."""
    return tuple(_texts()["passing"]["wordings"])


@functools.cache
def entities_by_kind() -> Mapping[str, tuple[str, ...]]:
    """Well-known names by kind; kinds are about equally large."""
    return {row["kind"]: tuple(row["names"]) for row in _names()["kinds"]}


@functools.cache
def contrast_entities() -> tuple[str, ...]:
    """Well-known names of all kinds, with which an entity is compared."""
    return tuple(name for names in entities_by_kind().values() for name in names)


@functools.cache
def _others() -> Mapping[str, tuple[str, ...]]:
    """`others.toml`, checked: names by type, none of them twice or in `names.toml`."""
    document = read_data(_OTHERS_FILE, "types")
    for row in document["types"]:
        check_keys(row, "a type of others.toml", "type names")
    distinct((*contrast_entities(), *(name for row in document["types"] for name in row["names"])), "others.toml")
    return {row["type"]: tuple(row["names"]) for row in document["types"]}


def well_known() -> tuple[str, ...]:
    """Well-known names of all kinds: those of `contrast_entities`, and others of more than one word."""
    return (*contrast_entities(), *(name for names in _others().values() for name in names))


@functools.cache
def _sentences() -> Mapping[str, tuple[str, ...]]:
    """Sentences by language, a language tag or "code"."""
    found: dict[str, tuple[str, ...]] = {}
    for row in _texts()["sentences"]:
        found[row["language"]] = found.get(row["language"], ()) + tuple(row["texts"])
    return found


def generic_sentences() -> tuple[str, ...]:
    """English sentences of ten registers that name nobody, without their full stops."""
    return _sentences()["en"]


def foreign_sentences() -> tuple[str, ...]:
    """Sentences in six other languages."""
    others = (texts for language, texts in _sentences().items() if language not in ("en", "code"))
    return tuple(text for texts in others for text in texts)


def code_snippets() -> tuple[str, ...]:
    """Pieces of program code."""
    return _sentences()["code"]


def neutral_texts(split: Split) -> tuple[str, ...]:
    """The generic sentences that the search may see (even positions), or those held out from it (odd positions)."""
    return generic_sentences()[("search", "held_out").index(split) :: 2]


def given_names(names: Iterable[str]) -> list[str]:
    """Names of entities as they were given, tidy and each once; raises InputError for none, and as `entity_name`."""
    return list(dict.fromkeys(map(entity_name, tuple(names) or ("",))))


def share_words(name: str, others: Iterable[str]) -> bool:
    """Whether `name` contains one of `others` or is contained in one, word by word and without regard to case."""
    words = _words(name)
    return any(_overlap(words, own) for other in others if (own := _words(other)))


def shares_a_word(name: str, others: Iterable[str]) -> bool:
    """Whether `name` has a word of three letters or more in common with one of `others`, but for function words."""
    words = {word for word in _words(name) if len(word) > 2} - _FUNCTION_WORDS
    return any(not words.isdisjoint(_words(other)) for other in others)


@functools.cache
def _kinds() -> Mapping[tuple[str, ...], str]:
    """Types of well-known names by their words."""
    kinds = [(row.get("type", row["kind"]), row["names"]) for row in _names()["kinds"]]
    return {_words(name): kind for kind, names in (*_others().items(), *kinds) for name in names}


def kind_of(name: str) -> str | None:
    """Whether a well-known name is that of a person, a place, a work or something else; None for other names."""
    return _kinds().get(_words(name))


def unseen_names(entity: str, aliases: Sequence[str] = ()) -> tuple[str, ...]:
    """First names that say nothing about anybody, and are no part of the entity's name or aliases; three at least.

    What an answer is worth for them is what it is worth for an unknown entity. Where less than three remain, other
    first names join. Raises InputError when even these are parts of the name.
    """
    own = {word for name in (entity, *aliases) for word in _words(name)}
    names = [name for name in _names()["unseen"] if name.casefold() not in own]
    names += [name for name in _names()["spare"] if name.casefold() not in own][: max(0, _MIN_UNSEEN - len(names))]
    if len(names) < _MIN_UNSEEN:
        raise InputError(f"{entity!r} and its aliases contain nearly every unseen name: give fewer aliases")
    return tuple(names)


@functools.lru_cache(2**16)
def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"\w+", name_key(name))
    return tuple(words[1:] if words[:1] == ["the"] and len(words) > 1 else words)


def contains(name: str, others: Iterable[str]) -> bool:
    """Whether `name` consists of one of `others` and further words, without regard to case."""
    words = _words(name)
    return any(len(own) < len(words) and _overlap(words, own) for other in others if (own := _words(other)))


def is_part(name: str, others: Iterable[str]) -> bool:
    """Whether `name` is one of `others`, or consists of some of its words that follow each other."""
    words = _words(name)
    return any(len(words) <= len(own) and _overlap(words, own) for own in map(_words, others))


def begins(name: str, others: Iterable[str]) -> bool:
    """Whether the first words of `name` are all those of one of `others`."""
    words = _words(name)
    return any(own and words[: len(own)] == own for own in map(_words, others))


def ends(name: str, others: Iterable[str]) -> bool:
    """Whether the last words of `name` are all those of one of `others`."""
    words = _words(name)
    return any(own and words[-len(own) :] == own for own in map(_words, others))


def words_shared(name: str, other: str) -> list[int]:
    """Which words of `name`, by their places, are words of `other`, as `shares_a_word` counts them."""
    found = _words(other)
    return [
        place
        for place, word in enumerate(_words(name))
        if len(word) > 2 and word not in _FUNCTION_WORDS and word in found
    ]


def _overlap(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether the shorter sequence of words occurs in the longer one."""
    short, long = (f" {' '.join(words)} " for words in sorted((first, second), key=len))
    return short in long
