"""Text of others (names, answers, file names) where it would mean more than itself, and what its script is."""

from __future__ import annotations

import functools
import unicodedata

# Joiners inside of words and emoji; without them a name is another name. All other invisible characters are shown.
_KEPT = "\u200c\u200d"
# What means something within a line of Markdown, of HTML in it, or of a table. Entities stand for what a backslash
# would leave active in HTML.
_MARKDOWN = {ord(sign): f"\\{sign}" for sign in "\\`*_[]~|$#!"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
}

# Scripts without spaces between words, as the names begin that Unicode gives to their letters.
_UNSPACED = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI LUE ", "AHOM ")


@functools.lru_cache(2**14)
def is_unspaced(char: str) -> bool:
    """Whether a character is of a script that is written without spaces between words, so that each stands alone."""
    if unicodedata.east_asian_width(char) in "WF":
        return True
    return unicodedata.category(char)[0] in "LM" and unicodedata.name(char, "").startswith(_UNSPACED)


def for_terminal(text: str, *, lines: bool = False) -> str:
    """The text with control characters as escapes (`\\x1b`, `\\u202e`): it can move no cursor and turn no writing.

    With `lines`, line feeds and tabs stay. Characters that no encoding takes (lone surrogates) are escaped, too.
    """
    kept = _KEPT + "\n\t" if lines else _KEPT
    if text.isprintable():
        return text
    return "".join(
        sign if sign in kept or not _is_control(sign) else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def _is_control(sign: str) -> bool:
    # Controls, invisible formats (directions, marks), surrogates, and the two separators that break lines.
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def for_markdown(text: str) -> str:
    """The text as a part of a line of Markdown that shows it and means nothing else: no HTML, image, link, or cell.

    It must not begin the line: what begins a list or a quotation stays as it is.
    """
    return for_terminal(" ".join(text.split())).translate(_MARKDOWN)
