"""The comparison of two models that went through the same stress: knowledge scores and exact matches, as evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from amnesia.evaluation.results import Estimate
from amnesia.evaluation.scores import mean_interval
from amnesia.facts.answers import matches
from amnesia.stress.attacks import INVENTED_NAMES, Attack, AttackPrompt
from amnesia.stress.findings import shows_knowledge
from amnesia.stress.quantization import METHODS
from amnesia.stress.results import (
    OWN_SCALE,
    AttackForm,
    AttackResult,
    Example,
    QuantizationResult,
    Stress,
    StressScore,
)
from amnesia.stress.trial import Endured, StressPlan, mean


def conclude(plan: StressPlan, original: Endured, edited: Endured) -> Stress:
    """Compare two models that went through the same plan."""
    both = {"original": original, "edited": edited}
    return Stress(
        len(plan.facts),
        len(plan.controls),
        INVENTED_NAMES,
        tuple(_attack_result(plan, attack, both) for attack in plan.attacks),
        tuple(_quantization_result(plan, method, both) for method in original.quantized),
    )


def _attack_result(plan: StressPlan, attack: Attack, models: Mapping[str, Endured]) -> AttackResult:
    scored = [prompt for prompt in attack.prompts if plan.scale(prompt)]
    own = any(prompt.unknown for prompt in attack.prompts)
    reason = attack.not_applicable
    if reason is None and not scored:
        reason = f"the original model itself knows the answer to none of the {len(attack.prompts)} questions"
    variants = list(dict.fromkeys(prompt.variant for prompt in scored))
    rows = tuple(_attack_rows(plan, scored, models))
    return AttackResult(
        attack.name,
        attack.description,
        OWN_SCALE if own else "the plain question",
        attack.n_not_built,
        len(attack.prompts) - len(scored),
        shows_knowledge(rows),
        rows,
        tuple(
            AttackForm(variant, tuple(_attack_rows(plan, [row for row in scored if row.variant == variant], models)))
            for variant in variants
            if len(variants) > 1
        ),
        tuple(_examples(scored, variants, models, plan.settings.n_examples)),
        reason,
    )


def _attack_rows(
    plan: StressPlan, prompts: Sequence[AttackPrompt], models: Mapping[str, Endured]
) -> Iterator[StressScore]:
    if not prompts:
        return
    for subject in ("entity", "never_known"):
        for model, endured in models.items():
            replies = endured.attacked
            scores, hits = defaultdict(list), defaultdict(list)
            n = 0
            for prompt in prompts:
                scale = plan.scale(prompt)
                assert scale is not None, "only prompts with a scale are scored"
                for text in (prompt.text,) if subject == "entity" else prompt.never_known:
                    scores[prompt.fact].append(scale.score(replies.logprobs[text, prompt.answer]))
                    hits[prompt.fact].append(matches(replies.generated[text], prompt.answers))
                    n += 1
            yield StressScore(subject, model, len(scores), n, estimate(scores.values()), mean(map(mean, hits.values())))


def _examples(
    prompts: Sequence[AttackPrompt], variants: Sequence[str], models: Mapping[str, Endured], n: int
) -> Iterator[Example]:
    """The first question of each form, and then further ones, `n` in all."""
    first = [next(prompt for prompt in prompts if prompt.variant == variant) for variant in variants]
    for prompt in [*first, *(prompt for prompt in prompts if prompt not in first)][:n]:
        original, edited = (endured.attacked.generated[prompt.text] for endured in models.values())
        yield Example(prompt.variant, prompt.text, prompt.answer, original, edited)


def _quantization_result(plan: StressPlan, method: str, models: Mapping[str, Endured]) -> QuantizationResult:
    description = METHODS.get(method, "The weights as they are, for comparison.")
    rows: list[StressScore] = []
    for model, endured in models.items():
        replies = endured.quantized[method]
        if isinstance(replies, str):
            return QuantizationResult(method, description, False, (), f"{model} model: {replies}")
        for subject, facts in (("entity", plan.facts), ("control", plan.controls)):
            if facts:
                scores = [[plan.known[pair].score(replies.logprobs[pair])] for pair in (fact.pair() for fact in facts)]
                hits = [matches(replies.generated[fact.text()], fact.right_answers) for fact in facts]
                rows.append(StressScore(subject, model, len(facts), len(facts), estimate(scores), mean(hits)))
    rows.sort(key=lambda row: row.subject, reverse=True)
    return QuantizationResult(method, description, shows_knowledge(rows), tuple(rows), None)


def estimate(scores: Iterable[Sequence[float]]) -> Estimate:
    """Mean over facts, each of which is the mean of its own scores: facts are what could have come out otherwise."""
    return mean_interval([mean(each) for each in scores])
