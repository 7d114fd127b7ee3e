"""What stress tests came to, as tables for the terminal. Pure: it prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from amnesia.evaluation.results import Estimate
from amnesia.numbers import share, signed
from amnesia.stress.findings import stress_findings
from amnesia.stress.results import (
    ATTACK_NAMES,
    MODELS,
    OWN_SCALE,
    AttackResult,
    QuantizationResult,
    Stress,
    StressScore,
)


def stress_text(stress: Stress, entity: str) -> str:
    """Attacks and quantization, one table each."""
    return "\n".join(
        [
            f"{entity} under stress: mean knowledge score and right answers, {stress.n_facts} "
            f"fact{'s' * (stress.n_facts != 1)}",
            "1 is what the original model makes of the plain question, 0 what it makes of an unknown name",
            "",
            *_attack_table(stress.attacks),
            "",
            *_quantization_table(stress.quantization),
            "",
            *(f"{row.level}: {row.text}" for row in stress_findings(stress, entity)),
        ]
    )


def _attack_table(attacks: Sequence[AttackResult]) -> Iterator[str]:
    yield f"{'the question':<24}{'original':>14}{'edited':>14}{'invented name, original and edited':>38}"
    for attack in attacks:
        name = ATTACK_NAMES[attack.attack] + "*" * (attack.scale == OWN_SCALE)
        yield from _attack_lines(name, attack.rows, attack.not_applicable, attack.found)
        for variant in attack.variants:
            yield from _attack_lines(f"  {variant.variant}", variant.rows, None)
    yield "* 1 is what the original model makes of this question itself; what it does not know in it is left out"


def _attack_lines(name: str, rows: Sequence[StressScore], reason: str | None, found: bool = True) -> Iterator[str]:
    if reason is not None:
        yield f"{name:<24}  not applicable: {reason}"
        return
    cells = [_row(rows, subject, model) for subject in ("entity", "never_known") for model in MODELS]
    yield f"{name:<24}{cells[0]:>14}{cells[1]:>14}{cells[2]:>22}{cells[3]:>16}{_mark(found)}"


def _quantization_table(methods: Sequence[QuantizationResult]) -> Iterator[str]:
    yield f"{'quantized':<24}{'original':>14}{'edited':>14}{'others, original and edited':>38}"
    for method in methods:
        if method.not_applicable is not None:
            yield f"{method.method:<24}  not applicable: {method.not_applicable}"
            continue
        cells = [_row(method.rows, subject, model) for subject in ("entity", "control") for model in MODELS]
        yield f"{method.method:<24}{cells[0]:>14}{cells[1]:>14}{cells[2]:>22}{cells[3]:>16}{_mark(method.found)}"


def _mark(found: bool) -> str:
    return "" if found else "  (little in the original: says nothing)"


def _row(rows: Sequence[StressScore], subject: str, model: str) -> str:
    row = next((row for row in rows if (row.subject, row.model) == (subject, model)), None)
    if row is None:
        return "–"
    return f"{mean_text(row.knowledge_score)} {_share(row.exact_match)}"


def mean_text(estimate: Estimate | None) -> str:
    """A mean, or a dash where there is none."""
    return "–" if estimate is None else signed(estimate.mean)


def _share(value: float | None) -> str:
    return "" if value is None else f"{share(value):>6}"
