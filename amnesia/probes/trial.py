"""One model is asked what a plan of probes has; two models need never be in memory together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from amnesia.domain import Answer, Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import Pair, measure, write
from amnesia.evaluation.measurement_cache import MeasurementCache, once
from amnesia.facts.names import unseen_names
from amnesia.live.forward import generate, sampled
from amnesia.live.model import LiveModel
from amnesia.probes.lens import Ranks, lens_ranks
from amnesia.probes.plan import ProbePlan
from amnesia.progress import Progress

Task = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Probed:
    """What one model made of a plan.

    Greedy replies by prompt; answers to multiple choices by prompt and option, about names of the plan and unseen
    ones; drawn replies by prompt; ranks through the logit lens by fact, or why there are none; free texts by prompt.
    """

    replies: Mapping[str, str]
    choices: Mapping[Pair, Answer]
    samples: Mapping[str, tuple[str, ...]]
    ranks: Mapping[Fact, Ranks] | str
    texts: Mapping[str, str]


def probe(live: LiveModel, plan: ProbePlan, name: str, task: Task, cache: MeasurementCache | None = None) -> Probed:
    """Ask one model what is not in `cache`; `name` is for progress. The model is afterwards as before."""
    settings = plan.settings
    facts = [fact for some in plan.facts.values() for fact in some]
    with task(f"probing the {name} model") as progress:
        replies = write(live, [row.text for row in plan.asked], progress, cache)
        pairs = [
            (choice.fact.text(other), option)
            for choice in plan.choices
            for other in (choice.fact.entity, *unseen_names(choice.fact.entity))
            for option in choice.options
        ]
        choices = measure(live, pairs, progress, cache)
        prompts = list(dict.fromkeys(fact.text() for fact in facts))
        how = (settings.n_samples, settings.n_tokens, settings.seed)
        drawn = once(cache, "drawn", (prompts, how), lambda: sampled(live, prompts, *how, progress))
        free = list(dict.fromkeys(row.text for row in plan.free))
        length = settings.n_biography
        texts = once(cache, "free texts", (free, length), lambda: generate(live, free, length, progress))
        ranks: Mapping[Fact, Ranks] | str
        try:
            ranks = dict(zip(facts, lens_ranks(live, facts, progress), strict=True))
        except InputError as error:
            ranks = str(error)
    samples = {prompt: tuple(answers) for prompt, answers in zip(prompts, drawn, strict=True)}
    return Probed(replies, choices, samples, ranks, dict(zip(free, texts, strict=True)))
