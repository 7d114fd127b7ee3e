"""Aggregates of the scores of prompts. Pure functions of results; nothing here measures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import median

from amnesia.domain import NEIGHBORHOODS, ROLES, SPLITS, Answer, Role, Split
from amnesia.evaluation.results import ALL, MESSAGES, Aggregate, AnswerSummary, PromptScore
from amnesia.evaluation.scores import mean_interval


def aggregates(prompts: Sequence[PromptScore]) -> tuple[Aggregate, ...]:
    """Each role and split as a whole, then its groups: neighborhoods in their order, others by name.

    Messages are a group of their own, and in no other.
    """
    found = []
    for role, split in product(ROLES, SPLITS):
        asked = [row for row in prompts if (row.role, row.split) == (role, split)]
        rows = [row for row in asked if not row.is_message]
        groups: dict[str, list[PromptScore]] = {ALL: rows, MESSAGES: [row for row in asked if row.is_message]}
        for name in NEIGHBORHOODS:
            groups[f"neighborhood:{name}"] = [row for row in rows if row.neighborhood == name]
        for name in sorted({row.popularity for row in rows if row.popularity is not None}):
            groups[f"popularity:{name}"] = [row for row in rows if row.popularity == name]
        for name in sorted({row.relation for row in rows if row.relation is not None}):
            groups[f"relation:{name}"] = [row for row in rows if row.relation == name]
        whole = (_aggregate(role, split, name, members) for name, members in groups.items())
        found += [row for row in whole if row is not None]
    return tuple(found)


def _aggregate(role: Role, split: Split, group: str, prompts: Sequence[PromptScore]) -> Aggregate | None:
    rows = [row for row in prompts if row.knowledge_score is not None]
    if not rows:
        return None
    first = [row.knowledge_score_first for row in rows if row.knowledge_score_first is not None]
    asked = all(row.before.exact_match is not None for row in rows)
    changes = [float(bool(row.after.exact_match)) - float(bool(row.before.exact_match)) for row in rows]
    return Aggregate(
        role=role,
        split=split,
        group=group,
        n=len(rows),
        n_excluded=len(prompts) - len(rows),
        knowledge_score=mean_interval([row.knowledge_score for row in rows if row.knowledge_score is not None]),
        knowledge_score_first=mean_interval(first) if first else None,
        before=_summary([row.before for row in rows], asked),
        after=_summary([row.after for row in rows], asked),
        exact_match_change=mean_interval(changes) if asked else None,
    )


def _summary(answers: Sequence[Answer], asked: bool) -> AnswerSummary:
    return AnswerSummary(
        mean_interval([float(bool(answer.exact_match)) for answer in answers]) if asked else None,
        median(answer.rank for answer in answers),
        sum(answer.reply == "empty" for answer in answers) if asked else None,
        sum(answer.reply == "refusal" for answer in answers) if asked else None,
    )
