"""Compare what two models answer to the same questions: scores of each prompt, and their aggregates.

Pure functions of measurements; nothing here touches a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from amnesia.domain import NEIGHBORHOODS, Aggregate, Damage, FactKind, PromptScore
from amnesia.matching import matches, reply
from amnesia.measurement import Measurement, Unknown, check_known, why_excluded
from amnesia.questions import Question
from amnesia.recipe import Accept, Scoring
from amnesia.scores import knowledge_score, mean_interval

KINDS: tuple[FactKind, ...] = ("target", "held_out_target", "control", "held_out_control")
ALL = "all"


@dataclass(frozen=True)
class Evaluation:
    """Scores per prompt, their aggregates by kind and group, and the damage to neutral text.

    An aggregate is missing where no fact of its group was scored. `alone` says that there was one model only, whose
    values stand for both.
    """

    prompts: tuple[PromptScore, ...]
    aggregates: tuple[Aggregate, ...]
    damage: Damage
    alone: bool = False

    def mean(self, kind: FactKind) -> float | None:
        """Mean knowledge score of one kind, or None where nothing of that kind was scored."""
        return next((row.knowledge_score.mean for row in self.aggregates if (row.kind, row.group) == (kind, ALL)), None)

    def accepted(self, accept: Accept) -> bool:
        """Whether every bound holds. Kinds without scored facts pass; there is always a scored target."""
        target, held_out = self.mean("target"), self.mean("held_out_target")
        controls = [mean for kind in ("control", "held_out_control") if (mean := self.mean(kind)) is not None]
        return (
            target is not None
            and target <= accept.max_target
            and (held_out is None or held_out <= accept.max_held_out_target)
            and all(mean >= accept.min_control for mean in controls)
        )


def compare(
    questions: Sequence[Question],
    unknown: Sequence[Unknown | None],
    before: Measurement,
    after: Measurement | None,
    scoring: Scoring,
    damage: Damage,
    kl: Mapping[str, float] | None = None,
) -> Evaluation:
    """Knowledge scores from two measurements of the same questions; without `after`, of the original model alone.

    `kl` is the divergence at control prompts, where it was measured. Facts that the original model does not know are
    listed with the reason and never scored. Raises InputError when no target fact is left.
    """
    ends = before if after is None else after
    prompts = []
    for index, question in enumerate(questions):
        old, new, base = before.answers[index], ends.answers[index], unknown[index]
        reason = why_excluded(old, base, scoring)
        fact = question.fact
        texts = [None if one.generated is None else one.generated[index] for one in (before, ends)]
        right = [None if text is None else matches(text, (fact.answer, *fact.answer_aliases)) for text in texts]
        replies = [None if text is None else reply(text, bool(hit)) for text, hit in zip(texts, right, strict=True)]
        prompts.append(
            PromptScore(
                kind=question.kind,
                entity=fact.entity,
                prompt=fact.text(),
                answer=fact.answer,
                rank_before=old.rank,
                rank_after=new.rank,
                logprob_before=old.total,
                logprob_after=new.total,
                logprob_unknown=None if base is None else base.total,
                knowledge_score=None if reason or base is None else knowledge_score(new.total, old.total, base.total),
                knowledge_score_first=None
                if reason or base is None or old.first <= base.first
                else knowledge_score(new.first, old.first, base.first),
                generated_before=texts[0],
                generated_after=texts[1],
                excluded=reason,
                answer_aliases=fact.answer_aliases,
                exact_match_before=right[0],
                exact_match_after=right[1],
                reply_before=replies[0],
                reply_after=replies[1],
                neighborhood=question.neighborhood,
                relation=question.relation,
                popularity=question.popularity,
                kl=kl.get(fact.text()) if kl is not None and "control" in question.kind else None,
            )
        )
    check_known(questions, [row.excluded for row in prompts])
    return Evaluation(tuple(prompts), aggregates(prompts), damage, after is None)


def aggregates(prompts: Sequence[PromptScore]) -> tuple[Aggregate, ...]:
    """Each kind as a whole, then its groups: neighborhoods in their order, popularity and relations by name."""
    found = []
    for kind in KINDS:
        rows = [row for row in prompts if row.kind == kind]
        groups: dict[str, list[PromptScore]] = {ALL: rows}
        for name in NEIGHBORHOODS:
            groups[f"neighborhood:{name}"] = [row for row in rows if row.neighborhood == name]
        for name in sorted({row.popularity for row in rows if row.popularity is not None}):
            groups[f"popularity:{name}"] = [row for row in rows if row.popularity == name]
        for name in sorted({row.relation for row in rows if row.relation is not None}):
            groups[f"relation:{name}"] = [row for row in rows if row.relation == name]
        found += [row for name, members in groups.items() if (row := _aggregate(kind, name, members)) is not None]
    return tuple(found)


def _aggregate(kind: FactKind, group: str, prompts: Sequence[PromptScore]) -> Aggregate | None:
    rows = [row for row in prompts if row.knowledge_score is not None]
    if not rows:
        return None
    first = [row.knowledge_score_first for row in rows if row.knowledge_score_first is not None]
    asked = all(row.exact_match_before is not None for row in rows)
    right = [
        [float(bool(hit)) for hit in hits]
        for hits in ([row.exact_match_before for row in rows], [row.exact_match_after for row in rows])
    ]
    replies = [[row.reply_before for row in rows], [row.reply_after for row in rows]]
    return Aggregate(
        kind=kind,
        group=group,
        n=len(rows),
        n_excluded=len(prompts) - len(rows),
        knowledge_score=mean_interval([row.knowledge_score for row in rows if row.knowledge_score is not None]),
        knowledge_score_first=mean_interval(first) if first else None,
        exact_match_before=mean_interval(right[0]) if asked else None,
        exact_match_after=mean_interval(right[1]) if asked else None,
        exact_match_change=mean_interval([new - old for old, new in zip(*right, strict=True)]) if asked else None,
        rank_before=median(row.rank_before for row in rows),
        rank_after=median(row.rank_after for row in rows),
        n_empty_before=replies[0].count("empty") if asked else None,
        n_empty_after=replies[1].count("empty") if asked else None,
        n_refused_before=replies[0].count("refusal") if asked else None,
        n_refused_after=replies[1].count("refusal") if asked else None,
    )
