"""The first screen of `report.html`: what was missed, what is gone, what comes back, what was harmed."""

from __future__ import annotations

from collections.abc import Iterator

from amnesia.domain import ROLES, Role
from amnesia.evaluation.results import PromptScore
from amnesia.numbers import change, flat, share, signed
from amnesia.probes.findings import is_back, share_of
from amnesia.recipe import Accept
from amnesia.report import view
from amnesia.report.content import Report
from amnesia.report.takeaway import missed

_MOST_PROBES = 5
"""Probes that are named on the first screen; the findings name all."""


def summary(report: Report) -> tuple[str, ...]:
    """The three sentences, before them what was missed, if anything was; of one model alone, the one that says what it
    knows."""
    if view.is_alone(report):
        return (_known(report),)
    first = missed(report)
    return (*([first] if first else []), _gone(report), _back(report), _harmed(report))


def _asked(report: Report, role: Role) -> list[PromptScore]:
    return [row for row in view.scored(report) if row.role == role and row.before.exact_match is not None]


def _right(rows: list[PromptScore]) -> tuple[int, int]:
    """How many of the questions the original and the edited model answer correctly."""
    return sum(bool(row.before.exact_match) for row in rows), sum(bool(row.after.exact_match) for row in rows)


def _means(report: Report) -> str:
    entity = view.entity_of(report)
    return "; ".join(f"{view.label(row, entity)}: {signed(row.knowledge_score.mean)}" for row in view.whole(report))


def _known(report: Report) -> str:
    rows = _asked(report, ROLES[0])
    if rows:
        before, _ = _right(rows)
        return f"The model answers {before} of {len(rows)} questions about {view.entity_of(report)} correctly."
    known = view.count(sum(row.n for row in view.whole(report) if row.role == ROLES[0]), "fact")
    return f"The model knows {known} about {view.entity_of(report)}; what it writes is not in this report."


def _gone(report: Report) -> str:
    rows = _asked(report, "target")
    before, after = _right(rows)
    if not before:  # Right answers that were never given cannot go.
        return f"Knowledge scores, where 1 is as before the edit and 0 like an unknown name: {_means(report)}."
    return (
        f"Of {len(rows)} questions about {view.entity_of(report)}, the original model answers {before} correctly and "
        f"the edited one {after}."
    )


def _back(report: Report) -> str:
    stress, training, probes = report.stress, report.relearning, report.probes
    # What could not be done, or finds nothing in the original, says nothing.
    tried = {
        "attacks": stress is not None and any(row.found for row in stress.attacks),
        "quantization": stress is not None and any(row.found for row in stress.quantization),
        "training": training is not None and any(row.steps and row.model == "edited" for row in training.runs),
        "probes": probes is not None and any(row.found for row in probes.probes),
    }
    looked_at = [name for name, said in tried.items() if said]
    if not looked_at:
        return "What may bring it back was not looked at for this report."
    left = [
        row.knowledge_score.mean
        for row in view.whole(report)
        if row.role == "target" and row.knowledge_score.mean > Accept.max_held_out_target
    ]
    if left:
        return f"It is not gone ({signed(max(left))} of 1 is left), so that nothing needs to bring it back."
    ways = [*_ways(report), *_shown(report)]
    if ways:
        return f"It comes back {flat('; '.join(ways), 400)}."
    return f"Nothing that was tried brings it back ({', '.join(looked_at)})."


def _ways(report: Report) -> Iterator[str]:
    """How stress brings the entity back, in the words of the findings."""
    begin = f"{report.entity} comes back "
    for row in report.findings:
        if row.text.startswith(begin):
            yield row.text.removeprefix(begin).partition(": knowledge score")[0]


def _shown(report: Report) -> Iterator[str]:
    """The probes that the entity shows in, with the share of what they ask for."""
    if report.probes is not None:
        names = [
            f"“{view.probe_name(row.probe)}” ({share(share_of(row, 'entity', 'edited') or 0.0)})"
            for row in report.probes.probes
            if row.found and is_back(row)
        ]
        if names:
            more = f" and {len(names) - _MOST_PROBES} more" if len(names) > _MOST_PROBES else ""
            yield f"in the probe{'s' * (len(names) > 1)} {', '.join(names[:_MOST_PROBES])}{more}"


def _harmed(report: Report) -> str:
    parts = []
    rows = _asked(report, "control")
    before, after = _right(rows)
    if rows and before:
        parts.append(f"of {len(rows)} questions about others it answers {after} correctly, before {before}")
    elif kept := [row.knowledge_score.mean for row in view.whole(report) if row.role == "control"]:
        parts.append(f"of what is known about others {signed(min(kept))} of 1 is left")
    parts.append(f"perplexity of neutral text changed by {change(report.damage.perplexity_ratio)}")
    if (able := report.damage.ability) is not None:
        before, after = share(able.before.mean), share(able.after.mean)
        parts.append(f"of {able.n} common questions it answers {after}, before {before}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
