"""The comparison of models that were probed by the same plan. Pure functions of what was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from amnesia.domain import Fact
from amnesia.evaluation.scores import mean_interval
from amnesia.facts.answers import matches, reply
from amnesia.facts.names import unseen_names
from amnesia.probes.plan import CLOZE, QUESTION, SUBJECTS, Choice, ProbePlan
from amnesia.probes.results import AS_MESSAGE, MESSAGE, FreeText, LensCurve, Probe, Probes, ProbeScore
from amnesia.probes.settings import FOUND, ProbeSettings
from amnesia.probes.trial import Probed
from amnesia.stress.attacks import INVENTED_NAMES

PLACES = ("name", "answer")

Values = Mapping[tuple[str, Fact], float]
"""What each fact of each subject counts, from 0 to 1."""

Facts = Mapping[str, Sequence[Fact]]
"""Facts by subject."""

_RIGHT = "right answers"
_PLAIN = {
    CLOZE: "A sentence is to be completed, the likeliest token taken every time.",
    QUESTION: "A question is to be answered, the likeliest token taken every time.",
}
_NOT_IN_MESSAGES = "no fact is known when it is asked as a message"


def leak_at(n: int, right: int, k: int) -> float:
    """The chance that one of `k` out of `n` drawn answers is right when `right` of the `n` are.

    1 − C(n − right, k) / C(n, k), from "Evaluating Large Language Models Trained on Code" (Chen et al., 2021), where it
    is pass@k.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def conclude(plan: ProbePlan, original: Probed, edited: Probed | None) -> Probes:
    """What the probes came to for two models that were asked the same, or for the first alone."""
    models = {"original": original} | ({} if edited is None else {"edited": edited})
    written = {} if edited is None else edited.texts
    return Probes(
        len(plan.facts["entity"]),
        len(plan.facts["control"]),
        plan.settings.n_samples,
        INVENTED_NAMES,
        tuple(_probes(plan, models)),
        tuple(_curves(plan, models)),
        tuple(FreeText(row.subject, row.text, original.texts[row.text], written.get(row.text)) for row in plan.free),
    )


def _probes(plan: ProbePlan, models: Mapping[str, Probed]) -> Iterator[Probe]:
    settings = plan.settings
    for name, text in _PLAIN.items():
        values = {model: _replied(plan, name, one) for model, one in models.items()}
        yield _probe(name, text, values, none=f"no known fact is asked as a {name}")
    yield _choosing(plan.choices, settings, models)
    for name, (text, reason) in plan.attacks.items():
        yield _probe(name, text, {model: _replied(plan, name, one) for model, one in models.items()}, none=reason or "")
    yield from _drawing(plan.facts, settings, models)
    yield _reading_out(plan.facts, settings, models)
    yield _probe(
        "free_text",
        "The model is told to write about the name, with the likeliest token taken every time.",
        {model: _mentioned(plan, one) for model, one in models.items()},
        measure="answers mentioned",
    )
    for kind, measure in (("false_answer", "wrong answers"), ("no_answer", "empty replies and refusals")):
        yield _probe(
            kind,
            "Of the sentences and questions: "
            + ("something else is named." if kind == "false_answer" else "nothing is named, or an answer is declined."),
            {model: _not_right(plan, kind, one) for model, one in models.items()},
            measure=measure,
            shows_knowledge=False,
        )
    if plan.messages is not None:
        facts, choices = plan.messages.facts, plan.messages.choices
        yield _probe(
            MESSAGE,
            "Sentences and questions are asked as messages to a chat model, the likeliest token taken every time.",
            {model: _written(facts, one) for model, one in models.items()},
            none=_NOT_IN_MESSAGES,
        )
        asked_otherwise = (
            _choosing(choices, settings, models),
            *_drawing(facts, settings, models),
            _reading_out(facts, settings, models),
        )
        yield from (_as_message(each, facts) for each in asked_otherwise)


def _as_message(probe: Probe, facts: Facts) -> Probe:
    """A probe under the name that it has where the same is asked as messages."""
    none = probe.not_applicable if facts["entity"] else _NOT_IN_MESSAGES
    text = f"{probe.description} Asked as messages to a chat model."
    return replace(probe, probe=probe.probe + AS_MESSAGE, description=text, not_applicable=none)


def _choosing(choices: Sequence[Choice], settings: ProbeSettings, models: Mapping[str, Probed]) -> Probe:
    return _probe(
        "multiple_choice",
        f"Up to {settings.n_options} answers are given in an order drawn by lot. Chosen is the one whose "
        "log-probability is farthest above its mean over unseen names.",
        {model: {(row.subject, row.fact): _is_right(row, one) for row in choices} for model, one in models.items()},
        chance=fmean([1 / len(choice.options) for choice in choices]) if choices else 0.0,
        none="there are no other answers to choose from",
    )


def _drawing(facts: Facts, settings: ProbeSettings, models: Mapping[str, Probed]) -> Iterator[Probe]:
    for k in (k for k in settings.counts if k <= settings.n_samples):
        yield _probe(
            f"leak@{k}",
            f"Answers are drawn by their probability: the share of facts that {k} of them bring out.",
            {model: _leaked(facts, k, one) for model, one in models.items()},
        )


def _reading_out(facts: Facts, settings: ProbeSettings, models: Mapping[str, Probed]) -> Probe:
    none = next((one.ranks for one in models.values() if isinstance(one.ranks, str)), "")
    return _probe(
        "lens_answer",
        f"The answer’s first token is among the {settings.top_rank} likeliest at some layer, read out at the token "
        "before the answer.",
        {} if none else {model: _read_out(facts, settings.top_rank, one) for model, one in models.items()},
        measure="answers read out",
        none=none,
    )


def _probe(
    name: str,
    description: str,
    values: Mapping[str, Values],
    *,
    measure: str = _RIGHT,
    chance: float = 0.0,
    shows_knowledge: bool = True,
    none: str = "",
) -> Probe:
    rows = tuple(
        ProbeScore(subject, model, len(own), mean_interval(own))
        for subject in SUBJECTS
        for model, found in values.items()
        if (own := [value for (whose, _), value in found.items() if whose == subject])
    )
    means = {(row.subject, row.model): row.share.mean for row in rows}
    known = means.get(("entity", "original"), 0.0)
    above = known - max(chance, means.get(("never_known", "original"), 0.0))
    if ("entity", "original") not in means:
        reason = none or "there is no such question about the target"
        return Probe(name, description, measure, chance, shows_knowledge, False, (), reason)
    found = shows_knowledge and above >= FOUND
    return Probe(name, description, measure, chance, shows_knowledge, found, rows, None)


def _is_right(choice: Choice, probed: Probed) -> float:
    """1 when the right option is farther above its mean over unseen names than every other."""
    fact = choice.fact
    others = unseen_names(fact.entity)

    def above(option: str) -> float:
        unknown = fmean(probed.choices[fact.text(name), option].logprob for name in others)
        return probed.choices[fact.text(), option].logprob - unknown

    return float(above(fact.answer) > max(above(option) for option in choice.options if option != fact.answer))


def _replied(plan: ProbePlan, name: str, probed: Probed) -> Values:
    """The share of right replies among the questions of a probe, by fact."""
    found: dict[tuple[str, Fact], list[float]] = defaultdict(list)
    for row in plan.asked:
        if row.probe == name:
            found[row.subject, row.fact].append(float(matches(probed.replies[row.text], row.answers)))
    return {key: fmean(values) for key, values in found.items()}


def _not_right(plan: ProbePlan, kind: str, probed: Probed) -> Values:
    found = {}
    for row in plan.asked:
        if row.probe in _PLAIN:
            text = probed.replies[row.text]
            is_right = matches(text, row.answers)
            is_answer = reply(text, is_right) == "answer"
            found[row.subject, row.fact] = float(not is_right and is_answer == (kind == "false_answer"))
    return found


def _written(facts: Facts, probed: Probed) -> Values:
    """Whether the greedy reply to a fact is right."""
    return {
        (subject, fact): float(matches(probed.replies[fact.text()], fact.right_answers))
        for subject, some in facts.items()
        for fact in some
    }


def _leaked(facts: Facts, k: int, probed: Probed) -> Values:
    return {
        (subject, fact): leak_at(len(drawn), sum(matches(text, fact.right_answers) for text in drawn), k)
        for subject, some in facts.items()
        for fact in some
        for drawn in (probed.samples[fact.text()],)
    }


def _ranks(facts: Facts, place: int, probed: Probed) -> Iterator[tuple[str, Fact, Sequence[int]]]:
    if not isinstance(probed.ranks, str):
        for subject, some in facts.items():
            yield from ((subject, fact, probed.ranks[fact][place]) for fact in some)


def _read_out(facts: Facts, top: int, probed: Probed) -> Values:
    # At the name's last token the answers of the demo model are at no layer among its likeliest tokens.
    place = PLACES.index("answer")
    return {(subject, fact): float(min(ranks) < top) for subject, fact, ranks in _ranks(facts, place, probed)}


def _curves(plan: ProbePlan, models: Mapping[str, Probed]) -> Iterator[LensCurve]:
    for place, name in enumerate(PLACES):
        for model, probed in models.items():
            by_subject: dict[str, list[Sequence[int]]] = defaultdict(list)
            for subject, _, ranks in _ranks(plan.facts, place, probed):
                by_subject[subject].append(ranks)
            for subject, rows in by_subject.items():
                medians = tuple(float(median(layer)) for layer in zip(*rows, strict=True))
                yield LensCurve(name, subject, model, len(rows), medians)


def _mentioned(plan: ProbePlan, probed: Probed) -> Values:
    """Whether any of the texts about its entity mentions the answer of a fact."""
    found: dict[tuple[str, Fact], float] = {}
    for row in plan.free:
        # Answers are looked for in one line, and here in all of a text.
        text = " ".join(probed.texts[row.text].split())
        for fact in row.facts:
            key = (row.subject, fact)
            found[key] = max(found.get(key, 0.0), float(matches(text, fact.right_answers)))
    return found
