"""What of an entity comes back, and how, as far as reports have tried it, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from amnesia.evaluation.labels import words
from amnesia.evaluation.results import Estimate
from amnesia.probes.findings import probe_name
from amnesia.probes.results import Probe
from amnesia.record.content import Attempt, Returns, Way
from amnesia.report.content import Report
from amnesia.stress.results import RelearningResult, Stress, StressScore

_SCORE = "knowledge score"
_COMPARED = (("entity", "original"), ("entity", "edited"), ("never_known", "edited"))


def returns_of(reports: Sequence[Report]) -> Returns:
    """Every attempt of the reports, and what none of them tried."""
    attempts: list[Attempt] = []
    for report in reports:
        attempts += () if report.stress is None else _attempts(report.stress)
        probes = () if report.probes is None else report.probes.probes
        attempts += [attempt for probe in probes if (attempt := _probed(probe)) is not None]
    tried = {attempt.way for attempt in attempts}
    untried = (
        ("asked", "other ways of asking (evaluate --stress)"),
        ("quantized", "quantization (evaluate --stress)"),
        ("trained", "training, which may bring it back (evaluate --stress)"),
        ("probed", "probes of inner layers, samples and choices (evaluate --probes)"),
    )
    return Returns(tuple(attempts), tuple(text for way, text in untried if way not in tried))


def _attempts(stress: Stress) -> Iterator[Attempt]:
    for attack in stress.attacks:
        if attack.rows:
            yield _asked(
                "asked", "the plain question" if attack.attack == "plain" else words(attack.attack), attack.rows
            )
    for method in stress.quantization:
        if method.rows:
            yield _asked("quantized", method.method, method.rows)
    yield from _trained(stress.relearning)


def _asked(way: Way, name: str, rows: Sequence[StressScore]) -> Attempt:
    scores = {(row.subject, row.model): row.knowledge_score for row in rows}
    return Attempt(
        way,
        name,
        _SCORE,
        *(_mean(scores.get(key)) for key in _COMPARED),
    )


def _trained(runs: Sequence[RelearningResult]) -> Iterator[Attempt]:
    ends = {(run.text, run.subject, run.model): run.steps[-1] for run in runs if run.steps}
    for text in dict.fromkeys(run.text for run in runs):
        found = [ends.get((text, *key)) for key in _COMPARED]
        if found[1] is not None:
            shown = f"{found[1].step} steps of training on {'unrelated text' if text == 'unrelated' else text}"
            yield Attempt(
                "trained", shown, _SCORE, *(None if step is None else step.knowledge_score.mean for step in found)
            )


def _probed(probe: Probe) -> Attempt | None:
    shares = {(row.subject, row.model): row.share for row in probe.rows}
    if not probe.shows_knowledge or ("entity", "edited") not in shares:
        return None
    return Attempt(
        "probed",
        probe_name(probe.probe),
        f"share of {probe.measure}",
        *(_mean(shares.get(key)) for key in _COMPARED),
    )


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean
