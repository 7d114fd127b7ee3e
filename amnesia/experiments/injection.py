"""Let the model read an entity where none is written: what stands for it is injected at a placeholder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.evaluation.measurement import KnownFact
from amnesia.evaluation.results import Estimate
from amnesia.evaluation.scores import mean_interval
from amnesia.experiments.forms import Form, Put, answers_with
from amnesia.facts.answers import matches
from amnesia.live.forward import generate
from amnesia.live.interventions import Injection, injected
from amnesia.live.tokens import place
from amnesia.progress import Progress

OWN, NOTHING = "entity", "nothing"


@dataclass(frozen=True)
class InjectedAnswer:
    """What the model said of the placeholder under one condition.

    `logprob` is the right answer's (nats), `score` its knowledge score: 1 as for the entity itself, 0 as for an unknown
    name. `rank` is that of its first token (0 is best); `success` says whether `generated` is right.
    """

    condition: str
    prompt: str
    answer: str
    generated: str
    rank: int
    logprob: float
    score: float
    success: bool


@dataclass(frozen=True)
class Condition:
    """Over `n` facts: mean knowledge score, share of right answers at first rank, share of generated ones."""

    condition: str
    n: int
    score: Estimate
    first: Estimate
    success: Estimate


@dataclass(frozen=True)
class InjectionResult:
    """What was put at the placeholder, and what the entity's brought back against the controls.

    Facts that the model does not know are left out.
    """

    model: str
    entity: str
    put: Put
    conditions: tuple[Condition, ...]
    answers: tuple[InjectedAnswer, ...]


def inject(
    form: Form, facts: Sequence[KnownFact], *, seed: int = 0, progress: Progress | None = None
) -> InjectionResult:
    """Ask known facts about a placeholder with the entity injected there, with the form's controls, and with nothing.

    `seed` draws the controls. Raises InputError when the recipe's controls are about nobody else.
    """
    puts = {OWN: form.own(), **form.controls(seed), NOTHING: []}
    answers = [row for name, put in puts.items() for row in _ask(form, facts, name, put, progress)]
    conditions = []
    for name in puts:
        rows = [row for row in answers if row.condition == name]
        columns = ([row.score for row in rows], [row.rank == 0 for row in rows], [row.success for row in rows])
        conditions.append(Condition(name, len(rows), *(mean_interval(list(map(float, values))) for values in columns)))
    return InjectionResult(form.live.label, form.recipe.target.entity, form.put, tuple(conditions), tuple(answers))


def _ask(
    form: Form, facts: Sequence[KnownFact], condition: str, put: Sequence[Injection], progress: Progress | None
) -> list[InjectedAnswer]:
    live, word = form.live, form.put.placeholder
    own = [fact.question.fact for fact in facts]
    tokens = [row.token for row in place(live.tokenizer, [(fact.prompt, word) for fact in own])]
    found = answers_with(live, facts, word, put, progress)
    texts = generate(
        live,
        [fact.text(word) for fact in own],
        progress=progress,
        around=lambda batch: injected(live, batch, tokens, [put] * len(own)),
    )
    return [
        InjectedAnswer(
            condition,
            fact.text(word),
            fact.answer,
            text,
            row.rank,
            row.logprob,
            known.score(row.logprob),
            matches(text, fact.right_answers),
        )
        for known, fact, row, text in zip(facts, own, found, texts, strict=True)
    ]
