"""Does a forgotten entity come back when the model is fine-tuned, and more easily than after LoRA unlearning?

One model at a time is trained on three kinds of text, in each way of `settings.RelearningSettings`, each time from the
same weights: instructions that have nothing to do with the entity; what the original model writes about the entity,
without any answer that is asked for; one of the facts, of which the others are then asked. The original model goes
through the same, as itself and after LoRA unlearning of the same facts. Two models need never be in memory together.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amnesia.domain import ROLES, Fact
from amnesia.errors import NumericalError, first_line
from amnesia.evaluation.measurement import KnownFact, Pair, measure, plainly_asked, scores_of
from amnesia.evaluation.measurement_cache import MeasurementCache, item_of, once
from amnesia.facts.answers import overlap
from amnesia.facts.names import neutral_texts
from amnesia.live.chat_form import Chat
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Continuation, join
from amnesia.progress import Progress, Tracker
from amnesia.stress.attacks import INVENTED_NAMES, AttackTarget
from amnesia.stress.conclusion import estimate
from amnesia.stress.instructions import instructions_without
from amnesia.stress.results import AS_MESSAGE, Relearning, RelearningResult, RelearningStep
from amnesia.stress.settings import RelearningSettings, Way
from amnesia.stress.texts import texts_about
from amnesia.stress.training import Lesson, Observed, add, fine_tune, rows_of, untrainable
from amnesia.stress.trial import mean, taking_turns, target_of
from amnesia.stress.unlearning import Unlearned, unlearn

INSTRUCTIONS = "instructions"
ABOUT = "about the entity"
ONE_FACT = "one fact"

# What is kept in a file of measurements.
_SAMPLED, _TRAINED, _UNLEARNED = "relearning: texts", "relearning: trained", "relearning: unlearned"

Seen = Mapping[Pair, float]
Caches = Mapping[str, MeasurementCache | None]
"""Where finished trainings are kept, by the name of the model: "original", "unlearned" and "edited"."""


@dataclass(frozen=True)
class RelearningPlan:
    """What all models go through: `lessons` by the name of the text, or why there are none.

    `forget` and `retain` are what LoRA unlearning is given: facts that the choice of an edit may see, too. `messages`
    and `message_controls` are half as many facts that a chat model is asked as messages, beside the others.
    """

    target: AttackTarget
    facts: tuple[Fact, ...]
    controls: tuple[Fact, ...]
    known: Mapping[Pair, KnownFact]
    lessons: Mapping[str, tuple[Lesson, ...] | str]
    forget: tuple[KnownFact, ...]
    retain: tuple[str, ...]
    settings: RelearningSettings
    messages: tuple[Fact, ...] = ()
    message_controls: tuple[Fact, ...] = ()

    def asked(self, text: str) -> tuple[Fact, ...]:
        """The facts that are asked while the model is trained on a text."""
        return _others(self.facts, self.facts[0]) if text == ONE_FACT else self.facts

    def asked_as_messages(self, text: str) -> tuple[Fact, ...]:
        """Those that a chat model is asked as messages meanwhile."""
        return _others(self.messages, self.facts[0]) if text == ONE_FACT else self.messages


@dataclass(frozen=True)
class Retrained:
    """What one model, called `model`, made of the plan: by text and way what was seen, or why it was not trained."""

    model: str
    runs: Mapping[tuple[str, Way], tuple[Observed[Seen], ...] | str]


@dataclass(frozen=True)
class Peer:
    """The original model after LoRA unlearning: steps of that, and what it made of the plan."""

    steps: int
    retrained: Retrained


def plan_relearning(
    live: LiveModel,
    facts: Sequence[KnownFact],
    settings: RelearningSettings,
    tracker: Tracker,
    chat: Chat | None,
    cache: MeasurementCache | None = None,
) -> RelearningPlan:
    """What to train on and to ask, from what the original model, `live`, knows and writes.

    `chat` is the form of messages to a chat model. What the model writes is kept in `cache`. Raises InputError when the
    targets are about several entities, or the model knows none of them.
    """
    messages = [fact for fact in facts if fact.question.is_message and not fact.excluded]
    facts = plainly_asked(facts)
    target = target_of(facts, {})
    known = [fact for fact in facts if not fact.excluded]
    targets, controls = ([fact for fact in known if fact.question.role == role] for role in ROLES)
    chosen, others = _chosen(known, settings)
    answers = sorted({answer for fact in targets for answer in fact.question.fact.right_answers})

    def sample() -> list[str]:
        with tracker.task(f"sampling texts about {target.name}") as progress:
            return list(texts_about(live, target, answers, settings, progress))

    about = once(cache, _SAMPLED, (target, answers, settings.n_texts, settings.text_tokens), sample)
    taught = chosen[0]
    lessons: dict[str, tuple[Lesson, ...] | str] = {
        INSTRUCTIONS: tuple(
            (chat(given) if chat else f"Instruction: {given}\nAnswer:", answer)
            for given, answer in instructions_without((*target.names, *answers))
        )
        or "there is no instruction without the name or one of the answers",
        ABOUT: tuple(("", text) for text in about)
        or f"the model writes nothing about {target.name} without one of the answers",
        ONE_FACT: (("", join(*taught.pair())),)
        if _others(chosen, taught)
        else f"all {len(chosen)} facts taken have the answer {taught.answer!r}, which would be taught: take more "
        "(--stress-facts), or add facts with other answers",
    }
    seen = [fact for fact in targets if fact.question.split == "search"]
    spared = [fact.question.fact for fact in controls if fact.question.split == "search"]
    return RelearningPlan(
        target,
        chosen,
        others,
        {fact.pair: fact for fact in (*known, *messages)},
        lessons,
        tuple(seen or targets),
        (*(join(*fact.pair()) for fact in spared), *neutral_texts("search")),
        settings,
        *_chosen(messages, settings, share=2),
    )


def _chosen(
    known: Sequence[KnownFact], settings: RelearningSettings, share: int = 1
) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Facts about the target and about others, the `share`-th part of what the settings say."""
    targets, controls = ([fact.question.fact for fact in known if fact.question.role == role] for role in ROLES)
    return (
        taking_turns(targets, lambda fact: fact.answer, max(1, settings.n_facts // share)),
        taking_turns(controls, lambda fact: fact.entity, max(1, settings.n_controls // share)),
    )


def announce(live: LiveModel, plan: RelearningPlan, tracker: Tracker, caches: Caches) -> None:
    """Say to `tracker` how long what is left to do will take, by the first steps of each way on `live`."""
    settings, peer = plan.settings, plan.settings.unlearning
    left = {way: _left(plan, way, caches) for way in settings.ways if untrainable(live, way) is None}
    if not any(left.values()):
        return
    with tracker.task("trying how long relearning takes", 0):
        began = time.monotonic()
        _totals(live, _pairs(plan, INSTRUCTIONS))
        asking = len(settings.steps) * (time.monotonic() - began)
        rows = {text: _rows(live, plan, text) for text, lessons in plan.lessons.items() if not isinstance(lessons, str)}
        n_tokens = {
            text: mean(len(row.ids) for row in own) * min(settings.batch, len(own)) for text, own in rows.items()
        }
        tried, per_token = next(iter(rows)), {}
        for way in {*left, peer.way}:
            # The first step has more to prepare than all others.
            seen = fine_tune(live, rows[tried], way, (1, 3), time.monotonic, batch=settings.batch)
            per_token[way] = (seen[1].seen - seen[0].seen) / 2 / n_tokens[tried]
    total = sum(
        asking + settings.most * n_tokens[text] * per_token[way] for way, texts in left.items() for text in texts
    )
    line = f"relearning will take about {_duration(total)} on this machine"
    if not _is_known(caches["unlearned"], _UNLEARNED, _unlearning(plan)):
        pairs = [*(fact.pair for fact in plan.forget), *(("", text) for text in plan.retain)]
        each = 2 * peer.batch * mean(len(row.ids) for row in rows_of(live, pairs, peer.max_learned))
        line += f", and LoRA unlearning before it up to {_duration(peer.most * each * per_token[peer.way])}"
    tracker.notice(line)


def retrain(
    live: LiveModel,
    plan: RelearningPlan,
    model: str,
    tracker: Tracker,
    cache: MeasurementCache | None = None,
    start: Callable[[], None] | None = None,
) -> Retrained:
    """Train one model in every way on every text; `start` changes weights before each training.

    `model` is its name in results. A training that is in `cache` is not made again. The model is afterwards as before.
    """
    runs: dict[tuple[str, Way], tuple[Observed[Seen], ...] | str] = {}
    for text, way in itertools.product(plan.lessons, plan.settings.ways):
        lessons, reason = plan.lessons[text], untrainable(live, way)
        if isinstance(lessons, str) or reason is not None:
            runs[text, way] = lessons if isinstance(lessons, str) else str(reason)
            continue

        def train(text: str = text, way: Way = way) -> list[tuple[int, float, list[float]]] | str:
            with tracker.task(f"training the {model} model ({way.name}) on {text}") as progress:
                try:
                    return _trained(live, plan, text, way, start, progress)
                except NumericalError as error:  # One that diverges says nothing against the others.
                    return first_line(error)

        found = once(cache, _TRAINED, _training(plan, model, text, way), train)
        if isinstance(found, str):
            runs[text, way] = found
            continue
        runs[text, way] = tuple(
            Observed(step, loss, dict(zip(_pairs(plan, text), values, strict=True))) for step, loss, values in found
        )
    return Retrained(model, runs)


def _trained(
    live: LiveModel, plan: RelearningPlan, text: str, way: Way, start: Callable[[], None] | None, progress: Progress
) -> list[tuple[int, float, list[float]]]:
    """Steps, losses, and log-probabilities (nats) of the answers of `_pairs` after them."""
    settings, pairs = plan.settings, _pairs(plan, text)
    found = fine_tune(
        live,
        _rows(live, plan, text),
        way,
        settings.steps,
        lambda: _seen(live, plan, text),
        batch=settings.batch,
        start=start,
        progress=progress,
    )
    return [(one.step, one.loss, [one.seen[pair] for pair in pairs]) for one in found]


def retrain_peer(
    live: LiveModel, plan: RelearningPlan, tracker: Tracker, cache: MeasurementCache | None = None
) -> Peer | str:
    """Let the original model forget by LoRA unlearning, and train it as `retrain` does; or why that cannot be."""
    settings = plan.settings.unlearning
    reason, *others = (untrainable(live, way) for way in (settings.way, *plan.settings.ways))
    if reason is not None:
        return reason
    if all(others):  # It would be compared with nothing.
        return others[0] or "there is no way to train"
    pairs = [fact.pair for fact in plan.forget]

    def score() -> float:
        left = _totals(live, pairs)
        return mean(scores_of(plan.forget, [left[pair] for pair in pairs]))

    def forget() -> dict[str, Any]:
        with tracker.task(f"LoRA unlearning of {plan.target.name}, for comparison") as progress:
            return unlearn(live, pairs, plan.retain, settings, score, progress=progress).as_json()

    found = Unlearned.of_json(once(cache, _UNLEARNED, _unlearning(plan), forget))
    return Peer(found.steps, retrain(live, plan, "unlearned", tracker, cache, lambda: add(live, found.adapter)))


def conclude_relearning(plan: RelearningPlan, original: Retrained, peer: Peer | str, edited: Retrained) -> Relearning:
    """Knowledge scores of the models in every training."""
    models = [original, *([] if isinstance(peer, str) else [peer.retrained]), edited]
    runs = [
        result
        for text in plan.lessons
        for way in plan.settings.ways
        for each in models
        for result in _results(plan, text, way, each)
    ]
    return Relearning(
        len(plan.facts),
        len(plan.controls),
        INVENTED_NAMES[0],
        None if isinstance(peer, str) else peer.steps,
        peer if isinstance(peer, str) else None,
        tuple(runs),
    )


def _results(plan: RelearningPlan, text: str, way: Way, model: Retrained) -> Iterator[RelearningResult]:
    lessons, seen = plan.lessons[text], model.runs[text, way]
    facts, example = plan.asked(text), "" if isinstance(lessons, str) else "".join(lessons[0])
    if isinstance(seen, str):
        yield RelearningResult(text, example, way.name, model.model, "entity", len(facts), (), seen)
        return
    forms = [(facts, plan.controls, "")]
    if messages := plan.asked_as_messages(text):
        forms.append((messages, plan.message_controls, AS_MESSAGE))
    for own, controls, form in forms:
        for subject, name in (("entity", plan.target.name), ("never_known", INVENTED_NAMES[0])):
            steps = tuple(_step(plan, each, own, controls, name) for each in seen)
            yield RelearningResult(text, example, way.name, model.model, subject + form, len(own), steps, None)


def _step(
    plan: RelearningPlan, observed: Observed[Seen], facts: Sequence[Fact], others: Sequence[Fact], name: str
) -> RelearningStep:
    scores = [[plan.known[fact.pair()].score(observed.seen[fact.pair(name)])] for fact in facts]
    controls = [[plan.known[fact.pair()].score(observed.seen[fact.pair()])] for fact in others]
    return RelearningStep(observed.step, observed.loss, estimate(scores), estimate(controls) if controls else None)


def _pairs(plan: RelearningPlan, text: str) -> list[Pair]:
    """What is asked while a model is trained on a text, each pair once."""
    return list(dict.fromkeys(pair for form in _by_form(plan, text) for pair in form))


def _by_form(plan: RelearningPlan, text: str) -> Iterator[list[Pair]]:
    """What is asked as it is, and what as messages; there may be none of these."""
    names = (plan.target.name, INVENTED_NAMES[0])
    for facts, controls in (
        (plan.asked(text), plan.controls),
        (plan.asked_as_messages(text), plan.message_controls),
    ):
        about = (fact.pair(name) for name in names for fact in facts)
        yield list(dict.fromkeys((*about, *(fact.pair() for fact in controls))))


def _seen(live: LiveModel, plan: RelearningPlan, text: str) -> Seen:
    """What a model says, each form by itself: what is computed together is rounded together."""
    return {pair: value for form in _by_form(plan, text) for pair, value in _totals(live, form).items()}


def _rows(live: LiveModel, plan: RelearningPlan, text: str) -> list[Continuation]:
    lessons = plan.lessons[text]
    assert not isinstance(lessons, str), "there is something to train on"
    return rows_of(live, lessons, plan.settings.max_learned)


def _totals(live: LiveModel, pairs: Sequence[Pair]) -> Seen:
    return {pair: answer.logprob for pair, answer in measure(live, pairs).items()}


def _others(facts: Sequence[Fact], taught: Fact) -> tuple[Fact, ...]:
    """The facts whose answer is not, and does not contain, that of the taught one, nor is contained in it."""
    return tuple(fact for fact in facts if not overlap(fact.answer, taught.answer))


def _left(plan: RelearningPlan, way: Way, caches: Caches) -> list[str]:
    """The texts of the trainings in one way that are not in the caches, one for each training."""
    return [
        text
        for model, cache in caches.items()
        for text, lessons in plan.lessons.items()
        if not isinstance(lessons, str) and not _is_known(cache, _TRAINED, _training(plan, model, text, way))
    ]


def _is_known(cache: MeasurementCache | None, kind: str, key: tuple[Any, ...]) -> bool:
    return cache is not None and bool(cache.known(kind, [item_of(key)]))


def _unlearning(plan: RelearningPlan) -> tuple[Any, ...]:
    """All that LoRA unlearning depends on beside the weights."""
    return plan.settings.unlearning, [fact.pair for fact in plan.forget], plan.retain


def _training(plan: RelearningPlan, model: str, text: str, way: Way) -> tuple[Any, ...]:
    """All that the result of a training depends on beside the weights."""
    of_peer = _unlearning(plan) if model == "unlearned" else ()
    return replace(plan.settings, ways=(way,)), plan.lessons[text], _pairs(plan, text), model, of_peer


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(2, math.ceil(seconds))} seconds"
