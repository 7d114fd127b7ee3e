"""What probes came to, as a table for the terminal. Pure: it prints nothing."""

from __future__ import annotations

from collections.abc import Iterator

from amnesia.numbers import share
from amnesia.probes.findings import compared, probe_findings, probe_name, share_of
from amnesia.probes.plan import SUBJECTS
from amnesia.probes.results import Probe, Probes

_SUBJECTS = {"entity": "the entity", "control": "others", "never_known": "never known"}


def probes_text(probes: Probes, entity: str) -> str:
    """One table of all probes, from the original to the edited model, and what they come to."""
    return "\n".join(
        [
            f"{entity} in probes: shares of {probes.n_facts} facts"
            + (", original → edited" if compared(probes) else ""),
            f"{'':<30}{'chance':>8}" + "".join(f"{_SUBJECTS[subject]:>18}" for subject in SUBJECTS),
            *(line for probe in probes.probes for line in _lines(probe, compared(probes))),
            "",
            *(f"{row.level}: {row.text}" for row in probe_findings(probes, entity)),
        ]
    )


def _lines(probe: Probe, is_compared: bool) -> Iterator[str]:
    name = probe_name(probe.probe)
    if probe.not_applicable is not None:
        yield f"{name:<30}  not applicable: {probe.not_applicable}"
        return
    chance = share(probe.chance) if probe.chance else ""
    mark = "" if probe.found or not probe.shows_knowledge else f"  (little{' in the original' if is_compared else ''})"
    yield f"{name:<30}{chance:>8}" + "".join(f"{_pair(probe, subject):>18}" for subject in SUBJECTS) + mark


def _pair(probe: Probe, subject: str) -> str:
    shares = [share_of(probe, subject, model) for model in ("original", "edited")]
    return " → ".join(share(each) for each in shares if each is not None) or "–"
