"""What a model itself writes about an entity, to train on: text without the answers that are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from amnesia.facts.answers import matches
from amnesia.live.forward import sampled
from amnesia.live.model import LiveModel
from amnesia.live.tokens import join
from amnesia.progress import Progress
from amnesia.stress.attacks import AttackTarget
from amnesia.stress.settings import RelearningSettings

_BEGINNINGS = (
    "{entity} is",
    "{entity} was",
    "Fact: {entity}",
    "An article about {entity}.\n\n{entity}",
    "Here is what people say about {entity}:",
    "In the news today: {entity}",
    "A letter that mentions {entity}:\n\nDear friend,",
    "Last week I read a book about {entity}. It",
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_MIN_WORDS = 4


def texts_about(
    live: LiveModel,
    target: AttackTarget,
    answers: Sequence[str],
    settings: RelearningSettings,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """What a model writes about the entity at temperature 1, without the sentences in which one of `answers` stands."""
    prompts = [text.replace("{entity}", target.name) for text in _BEGINNINGS]
    each = max(1, settings.n_texts // len(prompts))
    kept: dict[str, None] = {}
    for prompt, texts in zip(prompts, sampled(live, prompts, each, settings.text_tokens, 0, progress), strict=True):
        for text in texts:
            # The last sentence was cut off by the number of tokens, which does no harm.
            sentences = [part for part in _SENTENCE.split(join(prompt, text.lstrip())) if not matches(part, answers)]
            rest = " ".join(sentences)
            if len(rest.split()) >= _MIN_WORDS and any(name in rest for name in target.names):
                kept.setdefault(rest)
    return tuple(kept)
