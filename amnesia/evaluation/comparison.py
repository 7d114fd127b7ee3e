"""Compare what two models answer to the same questions: scores of each prompt, and their aggregates.

Pure functions of measurements; nothing here touches a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amnesia.domain import ROLES, SPLITS, Answer, Role, Split
from amnesia.errors import InputError
from amnesia.evaluation.aggregation import aggregates
from amnesia.evaluation.bounds import checks
from amnesia.evaluation.measurement import KnownFact, check_known
from amnesia.evaluation.results import ALL, Aggregate, Damage, PromptScore
from amnesia.recipe import Accept


@dataclass(frozen=True)
class Evaluation:
    """Scores per prompt, their aggregates by role, split and group, and the damage to neutral text.

    An aggregate is missing where no fact of its group was scored. `alone` says that there was one model only, whose
    values stand for both.
    """

    prompts: tuple[PromptScore, ...]
    aggregates: tuple[Aggregate, ...]
    damage: Damage
    alone: bool = False

    def whole(self, role: Role, split: Split) -> Aggregate | None:
        """The aggregate of all facts of a role and split, or None where none of them was scored.

        Raises InputError for a role or split that there is not.
        """
        for what, name, known in (("role", role, ROLES), ("split", split, SPLITS)):
            if name not in known:
                raise InputError(f"there is no {what} {name!r}: choose one of {', '.join(known)}")
        wanted = (role, split, ALL)
        return next((row for row in self.aggregates if (row.role, row.split, row.group) == wanted), None)

    def mean(self, role: Role, split: Split = "search") -> float | None:
        """Mean knowledge score of a role and split, or None where nothing of them was scored; see `whole`."""
        row = self.whole(role, split)
        return None if row is None else row.knowledge_score.mean

    def accepted(self, accept: Accept) -> bool:
        """Whether every bound holds. What has no scored facts passes, but of the targets some must be scored.

        The bound on perplexity is one for each language in which the original model is fluent.
        """
        passed = (row.passed for row in checks(self.aggregates, self.damage, accept))
        scored = any(self.whole("target", split) for split in SPLITS)
        return scored and all(held is not False for held in passed)


def compare(
    facts: Sequence[KnownFact],
    after: Sequence[Answer] | None,
    damage: Damage,
    kl: Mapping[str, float] | None = None,
) -> Evaluation:
    """Knowledge scores of an edited model, which answers `after` to the facts; without it, of the original alone.

    `kl` is the divergence at control prompts, where it was measured. Facts that the original model does not know are
    listed with the reason and never scored. Raises InputError when no target fact is left.
    """
    check_known(facts)
    ends = [fact.before for fact in facts] if after is None else after
    prompts = tuple(_prompt_score(fact, answer, kl or {}) for fact, answer in zip(facts, ends, strict=True))
    return Evaluation(prompts, aggregates(prompts), damage, after is None)


def _prompt_score(known: KnownFact, after: Answer, kl: Mapping[str, float]) -> PromptScore:
    question, fact, excluded = known.question, known.question.fact, known.excluded
    return PromptScore(
        role=question.role,
        split=question.split,
        entity=fact.entity,
        prompt=fact.text(),
        answer=fact.answer,
        before=known.before,
        after=after,
        logprob_unknown=None if known.unknown is None else known.unknown.total,
        knowledge_score=None if excluded else known.score(after.logprob),
        knowledge_score_first=None if excluded else known.score_first(after.logprob_first),
        excluded=excluded,
        answer_aliases=fact.answer_aliases,
        neighborhood=question.neighborhood,
        relation=question.relation,
        popularity=question.popularity,
        kl=kl.get(fact.text()) if question.role == "control" else None,
        is_message=question.is_message,
    )
