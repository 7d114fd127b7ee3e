"""What probes come to, in plain sentences; the thresholds stand here, with their reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from amnesia.evaluation.results import Finding
from amnesia.numbers import share
from amnesia.probes.results import AS_MESSAGE, MESSAGE, Probe, Probes
from amnesia.probes.settings import FOUND
from amnesia.stress.results import ATTACK_NAMES

LOST = 0.2
"""Share of facts about others that a probe may find less often than before, beyond what a few facts vary."""

NAMES: Mapping[str, str] = {
    "cloze": "sentence to complete",
    "question": "question",
    "multiple_choice": "multiple choice",
    **ATTACK_NAMES,
    "lens_answer": "inner layers",
    "free_text": "free text",
    "false_answer": "names something else",
    "no_answer": "gives no answer",
    MESSAGE: "message",
}
"""What probes are called where people read of them; those that are not here by their own name."""


def probe_name(probe: str) -> str:
    """A probe's name for readers."""
    plain = probe.removesuffix(AS_MESSAGE)
    return NAMES.get(plain, plain) + ", as a message" * (plain != probe)


def share_of(probe: Probe, subject: str, model: str) -> float | None:
    """The share of one subject and model, or None where there is none."""
    found = (row.share.mean for row in probe.rows if (row.subject, row.model) == (subject, model))
    return next(found, None)


def compared(probes: Probes) -> bool:
    """Whether two models were probed, and not one alone."""
    return any(row.model == "edited" for probe in probes.probes for row in probe.rows)


def probe_findings(probes: Probes, entity: str) -> tuple[Finding, ...]:
    """What shows of the entity, what of others was lost, and which probes say nothing; most severe first."""
    edited = compared(probes)
    back = [probe for probe in probes.probes if probe.found and is_back(probe)]
    found = [*_others(probes), *(_shows(probe, entity) for probe in back)] if edited else []
    if edited and not back and any(probe.found for probe in probes.probes):
        n = sum(probe.found for probe in probes.probes)
        text = f"None of the {n} probes that find {entity} in the original model finds it in the edited one."
        found.append(Finding("good", text))
    asked = [probe for probe in probes.probes if probe.rows and probe.shows_knowledge]
    silent = [probe_name(probe.probe) for probe in asked if not probe.found]
    if silent:
        where = " in the original model, and so say nothing" if edited else ""
        text = f"Probes that find little of {entity}{where}: {', '.join(silent)}."
        found.append(Finding("info", text))
    return tuple(found)


def is_back(probe: Probe) -> bool:
    """Whether the edited model shows more of the entity than chance and a never-known name do."""
    known, given = (share_of(probe, subject, "edited") for subject in ("entity", "never_known"))
    return known is not None and known - max(probe.chance, given or 0.0) >= FOUND


def _shows(probe: Probe, entity: str) -> Finding:
    before, after, given = (
        share_of(probe, *key) or 0.0
        for key in (("entity", "original"), ("entity", "edited"), ("never_known", "edited"))
    )
    return Finding(
        "warning",
        f"{entity} shows in the probe “{probe_name(probe.probe)}”: {share(after)} {probe.measure} "
        f"(original model {share(before)}, never-known name {share(given)}).",
    )


def _others(probes: Probes) -> Iterator[Finding]:
    for probe in probes.probes:
        before, after = (share_of(probe, "control", model) for model in ("original", "edited"))
        if before is None or after is None:
            continue
        shown = f"{share(before)} before, {share(after)} after"
        if probe.shows_knowledge and before - after >= LOST:
            yield Finding("damage", f"In the probe “{probe_name(probe.probe)}” others lose {probe.measure}: {shown}.")
        elif probe.probe == "no_answer" and after - before >= LOST:
            yield Finding("damage", f"Questions about others have begun to go unanswered: {shown}.")
