"""Prompts taken apart and put together anew: as a sentence, as a question, as a message to a chat model.

Pure functions of text; what a chat model is fed around a message is given as a function.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from amnesia.facts.questions import Question

ASKED = re.compile(r"(?:Question|Q): (?P<question>.*\?)\n(?:Answer|A):[ ]?(?P<lead>.*)", re.DOTALL)
"""A prompt that asks a question, and what it says of the answer."""


def sentence(prompt: str) -> str:
    """A prompt as the beginning of a sentence."""
    bare = prompt.removeprefix("Fact: ")
    return bare[0].upper() + bare[1:]


# Words that begin a sentence without being a name.
_LOWERED = frozenset("the a an in on at under with by for before after last most many people his her their".split())


def in_form(prompt: str, forms: tuple[str, str]) -> str:
    """A prompt in the first of two forms when it is a sentence to be completed, and in the second when it is a question
    with the beginning of its answer. They say where the parts go: sentence, lowered; question, lead.

    What is filled in may have braces, as `{entity}`, which stay.
    """
    asked = ASKED.fullmatch(prompt)
    whole = sentence(prompt)
    first, _, rest = whole.partition(" ")
    parts = {
        "sentence": whole,
        "lowered": f"{first.lower()} {rest}" if first.lower() in _LOWERED else whole,
        "question": asked["question"] if asked else "",
        "lead": asked["lead"] if asked else "",
    }
    # In one pass, so that what is filled in is not looked at again.
    return re.sub(r"\{(\w+)\}", lambda match: parts.get(match[1], match[0]), forms[asked is not None]).rstrip(" ")


def as_message(prompt: str, chat: Callable[[str], str], before: str = "") -> str:
    """A prompt as a message after `before`, with the beginning of the reply; `{entity}` stays where it was."""
    if asked := ASKED.fullmatch(prompt):
        return chat(before + asked["question"]) + asked["lead"]
    return chat(f"{before}Complete this sentence: {sentence(prompt)} ...") + sentence(prompt)


def with_messages(questions: Sequence[Question], chat: Callable[[str], str] | None) -> tuple[Question, ...]:
    """The questions, and every other one of each role and split once more as a message; as they are without `chat`."""
    if chat is None:
        return tuple(questions)
    seen: Counter[tuple[str, str]] = Counter()
    added = []
    for question in questions:
        kind = (question.role, question.split)
        if seen[kind] % 2 == 0:
            fact = replace(question.fact, prompt=as_message(question.fact.prompt, chat))
            added.append(replace(question, fact=fact, is_message=True))
        seen[kind] += 1
    return (*questions, *added)
