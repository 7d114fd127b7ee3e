"""Facts and recipes of what a tiny random model says by itself, which so counts as what it knows."""

from __future__ import annotations

import dataclasses

from amnesia.domain import Fact
from amnesia.evaluation.measurement import KnownFact, Unknown, measure
from amnesia.facts.questions import Question
from amnesia.live.forward import generate
from amnesia.recipe import Accept, LocalizeOptions, Scoring
from amnesia.recipe_file import parse_recipe

WORDINGS = ("the capital of {entity} is", "people in {entity} like", "the oldest building in {entity} was")


def known(live, *names, gap=5.0):
    """What the random model says next of each name, as facts worth `gap` nats more than for an unknown entity."""
    facts = []
    for name in names:
        texts = generate(live, [wording.replace("{entity}", name) for wording in WORDINGS], max_new_tokens=3)
        facts += [Fact(name, wording, text.strip() or "x") for wording, text in zip(WORDINGS, texts, strict=True)]
    answers = measure(live, [fact.pair() for fact in facts])
    return tuple(
        KnownFact(
            Question("target", fact),
            answers[fact.pair()],
            Unknown(answers[fact.pair()].logprob - gap, answers[fact.pair()].logprob_first - gap),
            Scoring(),
        )
        for fact in facts
    )


def facts_known_to(live, entities, split="search"):
    """Whatever the random model would say next is what it knows."""
    prompts = [(entity, wording) for entity in entities for wording in WORDINGS]
    words = generate(live, [wording.replace("{entity}", entity) for entity, wording in prompts], max_new_tokens=3)
    return tuple(
        Fact(entity, wording, word.strip(), split)
        for (entity, wording), word in zip(prompts, words, strict=True)
        if word.strip()
    )


def recipe_of(live):
    """A recipe for Japan of facts that the tiny model knows."""
    empty = parse_recipe(
        """
        model.id = "tiny"
        entity.name = "Japan"
        facts = [{ prompt = "{entity} is", answer = "x" }]
        controls.facts = [{ entity = "Peru", prompt = "{entity} is", answer = "x" }]
        """
    )
    return dataclasses.replace(
        empty,
        facts=facts_known_to(live, ["Japan"]),
        controls=facts_known_to(live, ["Peru", "Kenya", "Cuba"]),
        scoring=Scoring(min_nats=0.05, max_rank=600),
        accept=Accept(max_target=0.5, min_control=0.5),
        localization=LocalizeOptions(n_prompts=6, layers=(0, 2)),
    )
