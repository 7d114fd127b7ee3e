"""What a model wrote, held against the answers that are right. Pure functions of text.

A text matches an answer when, after both are normalized, the words of the answer occur one after the other among the
words of the text's first line. Normalization follows SQuAD (Rajpurkar et al., 2016): lower case, without articles,
single spaces. A letter that ends a name is no article: "Vitamin A" is not "Vitamin C". Punctuation is not dropped but
parts words as loosely as a reader takes it: "Spider-Man" is "Spider Man" and "Spiderman", and "Paris" is found in
"Paris/London" and "Paris-based". Signs that belong to a name (C++, C#), to a negative number or to a decimal fraction
stay, and so does what stands in a time, a power or a fraction. Letters count without their accents, and without the
strokes and vowel points that readers leave out; a number may have its thousands apart.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
import unicodedata
from collections.abc import Sequence

from amnesia.domain import Reply, plain_apostrophes
from amnesia.plain_text import is_unspaced

# At the beginning of a text; articles count for nothing.
REFUSALS: tuple[str, ...] = (
    "i dont know", "i do not know", "i am not sure", "im not sure", "i am not aware", "im not aware",
    "i am not familiar", "im not familiar", "i dont have", "i do not have", "i cannot", "i cant", "i am unable",
    "im unable", "i am sorry", "im sorry", "sorry", "unfortunately", "as ai", "as language model", "unknown",
    "not known", "not available", "no information", "no answer", "none of above", "it is not known", "it is unknown",
    "there is no information",
)  # fmt: skip

_ARTICLES = re.compile(r"(?<![^ ])(?:an?|the) ")
_WORD_SIGNS = re.compile(
    r"(?<=\w)[+#♭]+(?!\w)"  # C++, C#, A+, B♭
    r"|(?<=\d)[.,:^](?=\d)"  # 3.14, 3,14, 19:30, 10^6
    r"|(?<=\w\w)\.(?=[a-z]{2})"  # Node.js
    r"|(?<![\d/])\d{1,2}/\d{1,2}(?![\d/])"  # 3/4, but not 1998/99
    r"|(?<![^\s(])[-−–](?=\d)"  # −5, but not 1939-1945
)
_POWERS = re.compile("([0-9])([\u2070\u00b9\u00b2\u00b3\u2074-\u2079])")  # 10²
_FRACTIONS = re.compile("(?<=[0-9])([\u00bc-\u00be\u2150-\u215e])")  # 2½
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]?\d)")  # 1 000 000
_PIECES = re.compile(r"([ -]|(?<!\d)\.)")  # The parts of normalized words, and what parts them.
_KEPT = {"-": "−", "–": "−", ",": "."}  # Signs that stay are written alike.

# Letters with a stroke or grown together, which Unicode does not take apart.
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h", "ı": "i"})
_ACCENTED = ("LATIN", "GREEK")  # Scripts of which a reader takes letters for the same with and without accents.
_STRESSED = "аеиоуыэюя"  # Of Cyrillic letters these may bear a mark of stress, and е two dots.
_POINTS = re.compile("[\u0640\u064b-\u0652\u0670\u05b0-\u05bd\u05bf\u05c1\u05c2\u05c7]")  # Vowels, a stretched line.


@functools.lru_cache(2**16)
def normalized(text: str) -> str:
    """The words of a text in lower case without articles, parted by a space, or by "-" where only signs part them.

    Accents are dropped as `_without_accents` says. Characters of scripts that are written without spaces are words of
    their own, with the marks on them.
    """
    words = _ARTICLES.sub("", _words(text))
    return "" if words in ("a", "an", "the") else words


@functools.lru_cache(2**16)
def _words(text: str) -> str:
    """The words of a text with its articles."""
    text = _POWERS.sub(r"\1^\2", _FRACTIONS.sub(r" \1", plain_apostrophes(text).replace("♯", "#")))
    text = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/"))
    text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    text = text.replace(" & ", " and ").replace("&", "-and-")
    kept = {match.start() + n for match in _WORD_SIGNS.finditer(text) for n in range(len(match[0]))}
    chars = []
    for place, char in enumerate(text):
        if place in kept:
            chars.append(_KEPT.get(char, char))
        elif unicodedata.category(char)[0] in "PS":
            chars.append("-")
        elif unicodedata.category(char)[0] == "M" and chars and len(chars[-1]) > 2:
            chars[-1] = f"{chars[-1][:-1]}{char} "
        elif unicodedata.category(char) != "Cf":  # Characters that only steer how others are shown.
            chars.append(f" {char} " if is_unspaced(char) else char)
    plain = re.sub(r"[-\s]*\s[-\s]*", " ", _without_accents("".join(chars).casefold())).strip("- ")
    return " ".join(re.sub("-+", "-", plain).split())


def _without_accents(text: str) -> str:
    """A text in lower case without what readers leave out: accents, marks of stress, vowels above and below."""
    letters: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFD", _POINTS.sub("", text.translate(_LETTERS))):
        if unicodedata.combining(char):
            stress = "\u0300\u0301\u0308" if base == "е" else "\u0300\u0301" if base in _STRESSED else ""
            if unicodedata.name(base or " ", "").startswith(_ACCENTED) or (base and char in stress):
                continue
        base = char
        letters.append(char)
    return unicodedata.normalize("NFC", "".join(letters))


def answer_line(generated: str) -> str:
    """The part of a generated text in which an answer is looked for: its first line with a word, or nothing."""
    return next((line.strip() for line in generated.splitlines() if normalized(line)), "")


def matches(generated: str, answers: Sequence[str]) -> bool:
    """Whether the first line of a generated text contains one of the answers as a run of whole words.

    Answers that consist of nothing but punctuation and articles match nothing.
    """
    line = answer_line(generated)
    # What is joined to a letter makes another word of it (X-ray), but not what stands beside it as another choice.
    apart = _words(line.replace("/", " "))
    return any(
        _pattern(answer).search(apart if _is_letter(answer) else _words(line))
        for answer in map(normalized, answers)
        if answer
    )


def _is_letter(words: str) -> bool:
    """Whether normalized words are a single letter, perhaps with signs (C++)."""
    return words[:1].isalpha() and not words[1:].strip("+#♭")


def gives_away(text: str, answer: str) -> bool:
    """Whether a line of a text contains an answer, as `matches` finds it in the first one."""
    return any(matches(line, [answer]) for line in text.splitlines())


def overlap(first: str, second: str) -> bool:
    """Whether one of two names or answers gives the other away."""
    return gives_away(first, second) or gives_away(second, first)


def reply(generated: str, matched: bool) -> Reply:
    """What kind of reply a generated text is: without any word it is empty; a right answer is never a refusal."""
    words = normalized(answer_line(generated))
    if not words:
        return "empty"
    return "refusal" if not matched and any(_pattern(own).match(words) for own in REFUSALS) else "answer"


@functools.lru_cache(2**14)
def _pattern(words: str) -> re.Pattern[str]:
    """Finds normalized words as a run of whole words: a sign between two parts is as good as a space, or nothing, and
    so is an article.

    A single letter that is joined to a word is a part of that word (X-ray, Objective-C), but for a possessive; digits
    with a sign between them are two numbers. Nor is a name another one that a letter (AT&T) or an ending is joined to
    (Node.js).
    """
    start, end = "(?<![^ -])", "(?![^ -])(?!-and-[^ -](?![^ -]))"
    if _is_letter(words):
        start = "(?<![^ ])"
        end = "(?![^ -])(?!-(?!s(?![^ ])))" if len(words) == 1 else end
    parts = {" ": "[ -](?:(?:an?|the) )*", "-": "[ -]?", ".": "[ .-]?"}
    found = (parts.get(piece) or _spelled(piece) for piece in _PIECES.split(words))
    return re.compile(start + "".join(found) + end)


def _spelled(word: str) -> str:
    """A pattern for the letters of a word, with or without signs between them."""
    joints = ("" if pair.isdigit() else "[-.]?" for pair in map("".join, itertools.pairwise(word)))
    return "".join(map(operator.add, ("", *joints), map(re.escape, word)))


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are the same after normalization."""
    words = normalized(first)
    return bool(words) and _pattern(words).fullmatch(normalized(second)) is not None
