"""What a model says about a name by itself: facts without a table.

Every relation is worded, and the model writes on. What it writes is a fact of its own where it says so to this name
and not to unseen ones: in nats above these, and by the rank of its first token, as facts of a table are judged. Whether
it is true in the world is not asked: what the model would say is what is to be forgotten, or to stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from amnesia.domain import Fact
from amnesia.evaluation.measurement import KnownFact, known_facts, write
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.answers import normalized, overlap
from amnesia.facts.questions import Question
from amnesia.live.model import LiveModel
from amnesia.progress import Progress
from amnesia.recipe import Scoring

MAX_WORDS = 4
"""Words of an answer, at most. What follows in a greedy text belongs to the sentence rather than to the answer."""

# Signs that end a part of a sentence, those of other scripts and of full width, too.
_SIGNS = '.,;:!?()"“”…' + "。．，、；：！？（）「」『』" + "،؛؟۔" + "।॥"
_ANSWER = re.compile(rf"\s*([^\W_][^\n{_SIGNS}]*)")
_BREAK = re.compile(r"\s+(?:and|or|but|who|which|that|where|when|in|on|at|by|with|for|from|of|is|was|are|were)\s+")


def answer_in(text: str) -> str | None:
    """The answer with which a text that a model wrote begins; None where it begins with nothing of the kind."""
    found = _ANSWER.match(text)
    if found is None:
        return None
    answer = " ".join(_BREAK.split(found[1], maxsplit=1)[0].split()[:MAX_WORDS])
    return answer if normalized(answer) else None


def own_facts(
    live: LiveModel,
    asked: Iterable[tuple[str, str]],
    names: Sequence[str],
    scoring: Scoring,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> tuple[KnownFact, ...]:
    """The facts that a model states when it is `asked` prompts with `{entity}` about entities, pairs of both.

    In their order, without what it does not know by `scoring`. No answer contains one of `names` or its own entity.
    """
    pairs = list(dict.fromkeys(asked))
    texts = write(live, [prompt.replace("{entity}", entity) for entity, prompt in pairs], progress, cache)
    questions = []
    for entity, prompt in pairs:
        answer = answer_in(texts[prompt.replace("{entity}", entity)])
        if answer is not None and not any(overlap(answer, name) for name in (entity, *names)):
            questions.append(Question("target", Fact(entity, prompt, answer)))
    found = known_facts(live, questions, scoring, progress, cache)
    return tuple(fact for fact in found if not fact.excluded)
