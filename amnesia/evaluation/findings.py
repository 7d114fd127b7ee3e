"""What an evaluation comes to, in plain sentences, the most serious first.

Every threshold stands here, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING

from amnesia.domain import ROLES, SPLITS, Role
from amnesia.evaluation.labels import words
from amnesia.evaluation.results import MESSAGES, AnswerSummary, Finding, Level, PromptScore
from amnesia.numbers import change, positive, share, signed

if TYPE_CHECKING:
    from amnesia.evaluation.comparison import Evaluation  # With which torch would come.

FORGOTTEN = 0.2
"""Mean knowledge score of the targets up to which they count as forgotten: the default bound of recipes."""

FORGOTTEN_HELD_OUT = 0.4
"""The same for held-out wordings, which are harder: the default bound of recipes."""

NO_EFFECT = 0.9
"""Mean knowledge score from which nothing was forgotten: what edits of random cells reach."""

CONTROLS_SPARED = 0.95
"""Mean knowledge score of the controls from which they count as spared: the default bound of recipes."""

CONTROLS_DAMAGED = 0.8
"""Mean knowledge score of the controls below which a fifth of what is known about others is gone."""

PERPLEXITY_RISEN = 1.1
"""Ratio of perplexities from which a reader should know; shipped recipes stay below 1.05."""

PERPLEXITY_DAMAGED = 1.5
"""Ratio of perplexities from which texts become visibly worse."""

KL_RISEN = 0.1
"""Nats per token from which the words that are written begin to differ often."""

KL_DAMAGED = 0.5
"""Nats per token from which the edited model is another model."""

ABILITY_LOST = 0.05
"""Share of the questions of general ability that may be lost, where the interval excludes that nothing is."""

FEW = 5
"""Facts below which an interval says little."""

LEVELS: tuple[Level, ...] = ("damage", "warning", "info", "good")

_WHOM: Mapping[Role, str] = {"target": "the target", "control": "others"}


def findings(evaluation: Evaluation, entity: str) -> tuple[Finding, ...]:
    """Everything that a reader must know, most severe first."""
    parts = (
        ((Finding("info", "One model was measured: this says what it knows, and nothing about an edit."),),)
        if evaluation.alone
        else (
            _target(evaluation, entity),
            _messages(evaluation, entity),
            _damage(evaluation),
            _replies(evaluation),
        )
    )
    found = [item for part in (*parts, _excluded(evaluation)) for item in part]
    return by_severity(found)


def by_severity(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in the order in which they should be read."""
    return tuple(sorted(found, key=lambda item: LEVELS.index(item.level)))


def _target(evaluation: Evaluation, entity: str) -> Iterator[Finding]:
    target, held_out = (evaluation.whole("target", split) for split in SPLITS)
    scores = [row.knowledge_score.mean for row in (target, held_out) if row is not None]
    shown = " and ".join(
        f"{signed(row.knowledge_score.mean)} ({label})"
        for row, label in ((target, "search wordings"), (held_out, "held-out wordings"))
        if row is not None
    )
    if min(scores) >= NO_EFFECT:
        yield Finding("warning", f"No effect: the facts about {entity} are known as before; knowledge score {shown}.")
    elif (target is None or target.knowledge_score.mean <= FORGOTTEN) and (
        held_out is None or held_out.knowledge_score.mean <= FORGOTTEN_HELD_OUT
    ):
        yield Finding("good", f"Forgotten: {entity} is like an unknown name; knowledge score {shown}.")
    elif target is not None and target.knowledge_score.mean <= FORGOTTEN:
        yield Finding("warning", f"Forgotten only where the search looked: {entity} has a knowledge score of {shown}.")
    elif max(scores) >= NO_EFFECT:
        kind = "search" if target is not None and target.knowledge_score.mean >= NO_EFFECT else "held-out"
        yield Finding(
            "warning", f"Hardly forgotten: {entity} is known as before in {kind} wordings; knowledge score {shown}."
        )
    else:
        yield Finding("warning", f"Partly forgotten: {entity} has a knowledge score of {shown}.")
    for row in (target, held_out):
        if (
            row is not None
            and row.knowledge_score.mean <= FORGOTTEN_HELD_OUT
            and (right := row.after.exact_match) is not None
        ):
            n_right = round(right.mean * row.n)
            if n_right:
                kind = "search wordings" if row is target else "held-out wordings"
                yield Finding(
                    "warning",
                    f"The model still writes the right answer to {n_right} of {row.n} prompts about {entity} ({kind}).",
                )


def _harm_to_others(evaluation: Evaluation) -> Iterator[Finding]:
    for split, label in (("search", "controls"), ("held_out", "held-out controls")):
        row = evaluation.whole("control", split)
        if row is None:
            continue
        mean = row.knowledge_score.mean
        if mean < CONTROLS_SPARED:
            yield Finding(
                "damage" if mean < CONTROLS_DAMAGED else "warning",
                f"Facts about others are damaged: {label} have a knowledge score of {signed(mean)}.",
            )
        answered = row.exact_match_change
        if answered is not None and answered.high < 0:
            yield Finding(
                "warning",
                f"Fewer questions about others are answered correctly: of {row.n} {label} "
                f"{_n_right(row.after, row.n)}, before {_n_right(row.before, row.n)}.",
            )
        near = [
            f"{words(part.group.partition(':')[2])} ({signed(part.knowledge_score.mean)}, {part.n} facts)"
            for part in evaluation.aggregates
            if (part.role, part.split) == ("control", split)
            and part.group.startswith("neighborhood:")
            and part.n >= FEW
            and part.knowledge_score.mean < min(CONTROLS_DAMAGED, mean)
        ]
        if near:
            yield Finding("warning", f"Among the {label} these neighbors of the target suffer: {', '.join(near)}.")


def _damage(evaluation: Evaluation) -> Iterator[Finding]:
    others = any(evaluation.whole("control", split) is not None for split in SPLITS)
    found = tuple(_harm_to_others(evaluation))
    yield from found
    bad = bool(found)
    harm = evaluation.damage
    ratio = harm.perplexity_ratio
    if ratio >= PERPLEXITY_RISEN:
        bad = True
        yield Finding(
            "damage" if ratio >= PERPLEXITY_DAMAGED else "warning",
            f"Neutral text suffers: its perplexity is {positive(ratio, 2)} times that of the original model.",
        )
    worse = [
        f"{row.register} ({row.language}) {positive(row.perplexity_after / row.perplexity_before, 2)} times"
        for row in harm.texts
        if row.perplexity_after / row.perplexity_before >= max(PERPLEXITY_DAMAGED, ratio * 1.1)
    ]
    if worse:
        bad = True
        yield Finding("damage", f"Registers in which perplexity rises most: {', '.join(worse)}.")
    if harm.kl_controls is not None and harm.kl_controls.mean >= KL_RISEN:
        bad = True
        yield Finding(
            "damage" if harm.kl_controls.mean >= KL_DAMAGED else "warning",
            f"What is written about others changes: {harm.kl_controls.mean:.2f} nats per token away from the original.",
        )
    if harm.texts and all(row.kl is None for row in harm.texts):
        yield Finding("info", "No divergence between the models: their tokens are not the same, or a server has them.")
    able = harm.ability
    if able is not None and able.change.high < 0:
        bad = True
        yield Finding(
            "damage" if able.change.mean < -ABILITY_LOST else "warning",
            f"General ability suffers: {share(able.after.mean)} of {able.n} common questions are answered correctly, "
            f"before {share(able.before.mean)}, by chance {share(able.chance)}.",
        )
    if not bad:
        kept = "scores of facts about others are kept, " if others else ""
        yield Finding("good", f"No damage seen: {kept}perplexity of neutral text {change(ratio)}.")


def _n_right(answers: AnswerSummary, n: int) -> int:
    """How many of `n` questions are answered correctly."""
    return 0 if answers.exact_match is None else round(answers.exact_match.mean * n)


def _replies(evaluation: Evaluation) -> Iterator[Finding]:
    for role in ROLES:
        rows = [row for row in _asked(evaluation) if row.role == role and row.excluded is None]
        for reply, verb in (("refusal", "refuses to answer"), ("empty", "writes nothing in reply to")):
            before = sum(row.before.reply == reply for row in rows)
            after = sum(row.after.reply == reply for row in rows)
            if after > before:
                level: Level = "warning" if role == "control" else "info"
                asked = f"{after} of {len(rows)} prompts about {_WHOM[role]}"
                yield Finding(level, f"The edited model {verb} {asked}, the original {before}.")


def _messages(evaluation: Evaluation, entity: str) -> Iterator[Finding]:
    """What is otherwise when a chat model is asked in messages."""
    for row in (row for row in evaluation.aggregates if row.group == MESSAGES):
        mean = row.knowledge_score.mean
        plain = evaluation.whole(row.role, row.split)
        if plain is None:
            continue
        bound = FORGOTTEN if row.split == "search" else FORGOTTEN_HELD_OUT
        where = f"{signed(mean)} as messages, {signed(plain.knowledge_score.mean)} as text"
        if row.role == "target" and plain.knowledge_score.mean <= bound < mean:
            yield Finding("warning", f"{entity} is less forgotten when the model is asked in messages: {where}.")
        elif row.role == "control" and mean < CONTROLS_SPARED <= plain.knowledge_score.mean:
            level: Level = "damage" if mean < CONTROLS_DAMAGED else "warning"
            yield Finding(level, f"Facts about others are damaged when the model is asked in messages: {where}.")


def _asked(evaluation: Evaluation) -> list[PromptScore]:
    return [row for row in evaluation.prompts if not row.is_message]


def _excluded(evaluation: Evaluation) -> Iterator[Finding]:
    for role, split in product(ROLES, SPLITS):
        label = f"{'held-out ' * (split == 'held_out')}facts about {_WHOM[role]}"
        rows = [row for row in _asked(evaluation) if (row.role, row.split) == (role, split)]
        n = sum(row.excluded is None for row in rows)
        if not rows:
            yield Finding("warning", f"There are no {label}: nothing is said about them.")
        elif not n:
            yield Finding("warning", f"The original model knows none of the {len(rows)} {label}: they have no score.")
        elif n < len(rows):
            yield Finding(
                "info", f"{len(rows) - n} of {len(rows)} {label} are not scored: the original does not know them."
            )
        if 0 < n < FEW:
            yield Finding("info", f"Only {n} {label} are scored: the interval says little.")
