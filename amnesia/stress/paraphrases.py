"""A question among other words. Pure construction of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from amnesia.facts.forms import as_message, in_form
from amnesia.live.chat_form import Chat

# Each form for a sentence to be completed, and for a question with the beginning of its answer.
_FORMS: Mapping[str, tuple[str, str]] = {
    "common knowledge": (
        "As everybody knows, {lowered}",
        "{question} Everybody knows the answer: {lead}",
    ),
    "quiz": (
        "Quiz night, ten points for a complete sentence: {sentence}",
        "Quiz night, ten points for the answer. {question}\nYour answer: {lead}",
    ),
    "notes": (
        "My notes for the exam:\n- {sentence}",
        "My notes for the exam:\n- {question} {lead}",
    ),
    "dialogue": (
        '"Could you finish the sentence for me?" she asked.\n"Gladly," he said. "{sentence}',
        '"{question}" she asked.\n"That is easy," he said. "{lead}',
    ),
    "hearsay": (
        "Somebody told me yesterday that {lowered}",
        "Somebody asked me yesterday: {question} I said: {lead}",
    ),
}


def paraphrases(prompt: str, chat: Chat | None = None) -> Iterator[tuple[str, str]]:
    """Other forms of a prompt, as (name of the form, template); `{entity}` stays where it was."""
    for name, forms in _FORMS.items():
        yield name, in_form(prompt, forms)
    if chat is not None:
        yield "chat", as_message(prompt, chat)
