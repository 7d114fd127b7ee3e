"""What a chat model is fed before its answer to a message, by the chat template of its tokenizer.

A template is a program that came with the model. It is run by transformers in a sandbox, which bounds no loop: how many
of its lines may run is bounded here.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, Protocol

from amnesia.errors import InputError, clipped, first_line
from amnesia.live.tokens import Tokenizer, encode

MAX_LINES = 1_000_000
"""Of a template's program for one conversation; set by hand: known templates run some hundreds a message."""


class RefusedTurnsError(InputError):
    """A chat template takes no conversation of several turns."""


class Chat(Protocol):
    """What a chat model is fed before its answer to a message, after `earlier` messages with their answers.

    Raises InputError for what its template refuses, `RefusedTurnsError` where that is several turns.
    """

    def __call__(self, message: str, earlier: Sequence[tuple[str, str]] = ()) -> str: ...


_THOUGHT = re.compile(
    r"(?P<left>[<\[])(?P<end>/?)(?P<name>[\w:]*(?:think|thought|reason)\w*)(?P<right>[>\]])", re.IGNORECASE
)


_DAY = datetime(2024, 7, 26)
"""The day that templates are told, which some print: what is measured must not change from one day to the next."""

# A template is given plain data only, so that the function that it would call is defined in front of it.
_SAID = "".join(f"|replace('%{code}','{_DAY.strftime(f'%{code}')}')" for code in "aAbBdHIjmMpSyY")
_FIXED_DAY = f"{{%- macro strftime_now(format) -%}}{{{{ format{_SAID} }}}}{{%- endmacro -%}}"


def chat_format(
    tokenizer: Tokenizer, notice: Callable[[str], None] = lambda line: None, *, today: bool = False
) -> Chat | None:
    """What a chat model is fed before its answer to a message, as a function of the message.

    None without a template, and, after a `notice`, where the template takes no message of a user alone; one that takes
    no conversation of several turns is told, too. Thinking is
    switched off where the template can, and a block of thoughts is closed, so that what follows is the answer. The text
    is meant for `encode`, which adds the special tokens that the tokenizer itself puts before every text. Templates
    that print the date are given a fixed one unless it is to be `today`.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    adds_bos = bool(tokenizer.bos_token) and encode(tokenizer, ["a"])[0].ids[0] == tokenizer.bos_token_id

    def fed(message: str, earlier: Sequence[tuple[str, str]]) -> str:
        said = [("user", message)]
        for asked, answered in reversed(earlier):
            said = [("user", asked), ("assistant", answered), *said]
        chat = [{"role": role, "content": content} for role, content in said]
        # Templates read what they know of these, and nothing else.
        off = {"enable_thinking": False, "thinking": False}
        used = template if today else _FIXED_DAY + template
        with _bounded():
            found = tokenizer.apply_chat_template(
                chat, chat_template=used, tokenize=False, add_generation_prompt=True, **off
            )
        return _without_thoughts(found.removeprefix(tokenizer.bos_token) if adds_bos else found, message, template)

    def text(message: str, earlier: Sequence[tuple[str, str]] = ()) -> str:
        try:
            return fed(message, earlier)
        except Exception as error:  # A template is a program: it raises what it likes.
            why, what = first_line(error), f"the message {clipped(message)!r}"
            if earlier:
                raise RefusedTurnsError(f"the chat template takes no conversation of several turns ({why})") from None
            raise InputError(f"the chat template refuses {what} ({why}): write it otherwise") from None

    try:
        template = tokenizer.get_chat_template()
        if "a question" not in fed("a question", ()):
            raise ValueError("it leaves the message out")
    except Exception as error:
        notice(f"the chat template cannot be used ({first_line(error)}): questions in chat form are left out")
        return None
    try:
        text("a question", [("another", "an answer")])
    except RefusedTurnsError as error:
        notice(f"{error}: none is tried")
    return text


def _without_thoughts(fed: str, message: str, template: str) -> str:
    """The text with its block of thoughts closed, an empty one where the template knows thoughts and opened none."""
    said = [*_THOUGHT.finditer(fed, max(0, fed.rfind(message.strip())))]
    known = [mark for mark in _THOUGHT.finditer(template) if mark["end"]]
    if (said and said[-1]["end"]) or not (said or known):
        return fed
    mark = (said or known)[-1]
    left, name, right = mark["left"], mark["name"], mark["right"]
    begin = fed.rstrip() if said else f"{fed}{left}{name}{right}"
    return f"{begin}\n\n{left}/{name}{right}\n\n"


@contextlib.contextmanager
def _bounded() -> Generator[None]:
    """Raise RuntimeError in a template that runs `MAX_LINES` of its lines within the block, in this thread."""
    n_lines = 0

    def count(_frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_lines
        n_lines += event == "line"
        if n_lines > MAX_LINES:
            raise RuntimeError(f"it runs more than {MAX_LINES} lines")
        return count

    def enter(frame: FrameType, _event: str, _: Any) -> Any:
        # What Jinja compiles has this in place of a file.
        return count if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
