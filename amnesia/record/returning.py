"""What of an entity comes back, and how, as far as reports have tried it, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from amnesia.evaluation.labels import words
from amnesia.evaluation.results import Estimate
from amnesia.probes.findings import probe_name
from amnesia.probes.results import Probe
from amnesia.record.content import Attempt, Returns, Way
from amnesia.report.content import Report
from amnesia.stress.results import TRAINED_ON, Relearning, Stress, StressScore, by_training

_SCORE = "knowledge score"
_COMPARED = (("entity", "original"), ("entity", "edited"), ("never_known", "edited"))


def returns_of(reports: Sequence[Report]) -> Returns:
    """Every attempt of the reports, and what none of them tried."""
    attempts: list[Attempt] = []
    for report in reports:
        attempts += () if report.stress is None else _attempts(report.stress)
        attempts += () if report.relearning is None else _trained(report.relearning)
        probes = () if report.probes is None else report.probes.probes
        attempts += [attempt for probe in probes if (attempt := _probed(probe)) is not None]
    tried = {attempt.way for attempt in attempts}
    untried = (
        ("asked", "other ways of asking (evaluate --stress)"),
        ("quantized", "quantization (evaluate --stress)"),
        ("trained", "training (evaluate --relearning)"),
        ("probed", "probes of inner layers, samples and choices (evaluate --probes)"),
    )
    return Returns(tuple(attempts), tuple(text for way, text in untried if way not in tried))


def _attempts(stress: Stress) -> Iterator[Attempt]:
    for attack in stress.attacks:
        if attack.rows:
            name = "the plain question" if attack.attack == "plain" else words(attack.attack)
            yield _asked("asked", name, attack.found, attack.rows)
    for method in stress.quantization:
        if method.rows:
            yield _asked("quantized", method.method, method.found, method.rows)


def _asked(way: Way, name: str, known: bool, rows: Sequence[StressScore]) -> Attempt:
    """Knowledge scores; right answers where the edited model has none."""
    by_subject = {(row.subject, row.model): row for row in rows}
    found = [by_subject.get(key) for key in _COMPARED]
    scores = [None if row is None or row.knowledge_score is None else row.knowledge_score.mean for row in found]
    if scores[1] is None:
        rates = (None if row is None else row.exact_match for row in found)
        return Attempt(way, name, "share of right answers", known, *rates)
    return Attempt(way, name, _SCORE, known, *scores)


def _trained(relearning: Relearning) -> Iterator[Attempt]:
    for (text, way), runs in by_training(relearning).items():
        ends = [runs.get((model, subject)) for subject, model in _COMPARED]
        edited = ends[1]
        if edited is not None:
            shown = f"{edited.steps[-1].step} steps of {way} training on {TRAINED_ON.get(text, text)}"
            scores = (None if run is None else run.steps[-1].knowledge_score.mean for run in ends)
            yield Attempt("trained", shown, _SCORE, True, *scores)


def _probed(probe: Probe) -> Attempt | None:
    shares = {(row.subject, row.model): row.share for row in probe.rows}
    if not probe.shows_knowledge or ("entity", "edited") not in shares:
        return None
    return Attempt(
        "probed",
        probe_name(probe.probe),
        f"share of {probe.measure}",
        probe.found,
        *(_mean(shares.get(key)) for key in _COMPARED),
    )


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean
