"""What of an entity comes back, and how, as far as reports have tried it, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from amnesia.evaluation.labels import words
from amnesia.evaluation.results import Estimate
from amnesia.probes.findings import probe_name
from amnesia.probes.results import Probe
from amnesia.record.content import Attempt, Returns, Way
from amnesia.report.content import Report
from amnesia.stress.results import (
    ATTACK_NAMES,
    OWN_SCALE,
    TRAINED_ON,
    AttackResult,
    Relearning,
    Stress,
    StressScore,
    by_training,
)

_SCORE = "knowledge score"
_SCALES = {OWN_SCALE: f"{_SCORE}, of which 1 is what the original model makes of this question itself"}
_UNTRIED: Mapping[Way, tuple[str, str]] = {
    "asked": ("other ways of asking", "evaluate --stress"),
    "quantized": ("quantization", "evaluate --stress"),
    "trained": ("training", "evaluate --relearning"),
    "probed": ("probes of inner layers, samples and choices", "evaluate --probes"),
}
_COMPARED = (("entity", "original"), ("entity", "edited"), ("never_known", "edited"))


def returns_of(reports: Sequence[Report]) -> Returns:
    """Every attempt of the reports, and what none of them tried, or could not try, with the reason."""
    attempts: list[Attempt] = []
    left_out: dict[tuple[Way, str], str] = {}
    for report in reports:
        attempts += () if report.stress is None else _attempts(report.stress)
        attempts += () if report.relearning is None else _trained(report.relearning)
        probes = () if report.probes is None else report.probes.probes
        attempts += [attempt for probe in probes if (attempt := _probed(probe)) is not None]
        for way, name, reason in _left_out(report):
            left_out.setdefault((way, name), reason)
    # Another report may have tried it; the name of a training begins with its steps.
    left_out = {
        (way, name): reason
        for (way, name), reason in left_out.items()
        if not any(row.way == way and row.name.endswith(name) for row in attempts)
    }
    looked_at = {row.way for row in attempts} | {way for way, _ in left_out}
    found = [f"{what} ({how})" for way, (what, how) in _UNTRIED.items() if way not in looked_at]
    found += [f"{_UNTRIED[way][0]}: {name}, not applicable ({reason})" for (way, name), reason in left_out.items()]
    return Returns(tuple(attempts), tuple(found))


def _left_out(report: Report) -> Iterator[tuple[Way, str, str]]:
    """What a report could not try: the way, its name, and why."""
    if report.stress is not None:
        yield from (("asked", _name(row), row.not_applicable) for row in report.stress.attacks if row.not_applicable)
        for method in report.stress.quantization:
            if method.not_applicable:
                yield "quantized", method.method, method.not_applicable
    for run in () if report.relearning is None else report.relearning.runs:
        if run.not_applicable and run.model == "edited":
            yield "trained", f"{run.way} training on {TRAINED_ON.get(run.text, run.text)}", run.not_applicable
    for probe in () if report.probes is None else report.probes.probes:
        if probe.not_applicable and probe.shows_knowledge:
            yield "probed", probe_name(probe.probe), probe.not_applicable


def _attempts(stress: Stress) -> Iterator[Attempt]:
    for attack in stress.attacks:
        if attack.rows:
            yield _asked("asked", _name(attack), attack.found, attack.rows, _SCALES.get(attack.scale, _SCORE))
    for method in stress.quantization:
        if method.rows:
            yield _asked("quantized", method.method, method.found, method.rows)


def _name(attack: AttackResult) -> str:
    return ATTACK_NAMES.get(attack.attack) or words(attack.attack)


def _asked(way: Way, name: str, known: bool, rows: Sequence[StressScore], measure: str = _SCORE) -> Attempt:
    """Knowledge scores; right answers where the edited model has none."""
    by_subject = {(row.subject, row.model): row for row in rows}
    found = [by_subject.get(key) for key in _COMPARED]
    scores = [None if row is None or row.knowledge_score is None else row.knowledge_score.mean for row in found]
    if scores[1] is None:
        rates = (None if row is None else row.exact_match for row in found)
        return Attempt(way, name, "share of right answers", known, *rates)
    return Attempt(way, name, measure, known, *scores)


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
