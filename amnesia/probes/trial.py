"""One model is asked what a plan of probes has; two models need never be in memory together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from amnesia.domain import Answer, Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import Pair, measure, write
from amnesia.evaluation.measurement_cache import MeasurementCache, once
from amnesia.facts.names import unseen_names
from amnesia.live.forward import generate, sampled
from amnesia.live.model import LiveModel
from amnesia.probes.lens import Ranks, lens_ranks
from amnesia.probes.plan import Choice, ProbePlan
from amnesia.probes.settings import ProbeSettings
from amnesia.progress import Progress

Task = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Probed:
    """What one model made of a plan.

    Greedy replies by prompt; answers to multiple choices by prompt and option, about names of the plan and unseen
    ones; drawn replies by prompt; ranks through the logit lens by fact, or why there are none; free texts by prompt.
    What is asked as messages is among the rest.
    """

    replies: Mapping[str, str]
    choices: Mapping[Pair, Answer]
    samples: Mapping[str, tuple[str, ...]]
    ranks: Mapping[Fact, Ranks] | str
    texts: Mapping[str, str]


def probe(live: LiveModel, plan: ProbePlan, name: str, task: Task, cache: MeasurementCache | None = None) -> Probed:
    """Ask one model what is not in `cache`; `name` is for progress. The model is afterwards as before."""
    with task(f"probing the {name} model") as progress:
        replies = write(live, [row.text for row in plan.asked], progress, cache)
        found = _asked(live, plan.facts, plan.choices, plan.settings, progress, cache)
        free = list(dict.fromkeys(row.text for row in plan.free))
        length = plan.settings.n_biography
        texts = once(cache, "free texts", (free, length), lambda: generate(live, free, length, progress))
        found = replace(found, replies=replies, texts=dict(zip(free, texts, strict=True)))
        if plan.messages is not None:
            # By themselves: what is computed together is rounded together, and the rest is as without a template.
            messages = plan.messages.facts
            replies = write(live, [fact.text() for some in messages.values() for fact in some], progress, cache)
            more = _asked(live, messages, plan.messages.choices, plan.settings, progress, cache)
            found = _together(found, replace(more, replies=replies))
    return found


def _asked(
    live: LiveModel,
    by_subject: Mapping[str, Sequence[Fact]],
    choices: Sequence[Choice],
    settings: ProbeSettings,
    progress: Progress,
    cache: MeasurementCache | None,
) -> Probed:
    """Choices, drawn replies and ranks, without what is written greedily."""
    facts = [fact for some in by_subject.values() for fact in some]
    if not facts:
        return Probed({}, {}, {}, {}, {})
    pairs = [
        (choice.fact.text(other), option)
        for choice in choices
        for other in (choice.fact.entity, *unseen_names(choice.fact.entity))
        for option in choice.options
    ]
    chosen = measure(live, pairs, progress, cache)
    prompts = list(dict.fromkeys(fact.text() for fact in facts))
    how = (settings.n_samples, settings.n_tokens, settings.seed)
    drawn = once(cache, "drawn", (prompts, how), lambda: sampled(live, prompts, *how, progress))
    ranks: Mapping[Fact, Ranks] | str
    try:
        ranks = dict(zip(facts, lens_ranks(live, facts, progress), strict=True))
    except InputError as error:
        ranks = str(error)
    samples = {prompt: tuple(answers) for prompt, answers in zip(prompts, drawn, strict=True)}
    return Probed({}, chosen, samples, ranks, {})


def _together(first: Probed, second: Probed) -> Probed:
    ranks = first.ranks
    if not isinstance(ranks, str) and not isinstance(second.ranks, str):
        ranks = {**ranks, **second.ranks}
    return Probed(
        {**first.replies, **second.replies},
        {**first.choices, **second.choices},
        {**first.samples, **second.samples},
        ranks,
        {**first.texts, **second.texts},
    )
