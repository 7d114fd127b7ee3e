"""The one table that a reader takes away: what an edit left of the name, of what is near it, and of everything else.

What could not be forgotten or kept comes first, by the bounds that recipes have by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import ROLES, SPLITS
from amnesia.numbers import change, flat, positive, share, signed
from amnesia.recipe import Accept
from amnesia.report import view
from amnesia.report.content import Report

NOT_FORGOTTEN, NOT_KEPT = "not forgotten", "not kept"


@dataclass(frozen=True)
class Row:
    """`what` was looked at, on what that rests (`note`), and how much there is of it, `before` and `after` the edit.

    Of facts that is a mean knowledge score, with shares of `right` answers where there are any; of text its perplexity.
    `failed` says what could not be reached, and is empty elsewhere; not everything has a bound.
    """

    what: str
    note: str
    before: str
    after: str
    right: str = ""
    failed: str = ""
    has_bound: bool = True


def takeaway(report: Report) -> tuple[Row, ...]:
    """The rows of the table, those that failed first; else the name, its forms, its neighbors, others, texts."""
    rows = [*_facts(report, 0), *_around(report), *_facts(report, 1), *_texts(report)]
    return tuple(sorted(rows, key=lambda row: not row.failed))


def missed(report: Report) -> str:
    """What could not be forgotten or kept, in a sentence; empty where all was."""
    parts = []
    for failed in (NOT_FORGOTTEN, NOT_KEPT):
        found = [
            f"{row.what} ({f'{row.before} → {row.after}' if row.before else row.right})"
            for row in takeaway(report)
            if row.failed == failed
        ]
        if found:
            parts.append(f"{failed}: {flat(', '.join(found), 300)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _facts(report: Report, role: int) -> Iterator[Row]:
    found = [row for row in view.whole(report) if row.role == ROLES[role]]
    for row in sorted(found, key=lambda row: SPLITS.index(row.split)):
        limit, score = Accept().limit(row.role, row.split), row.knowledge_score.mean
        is_missed = score > limit if row.role == "target" else score < limit
        failed = (NOT_FORGOTTEN if row.role == "target" else NOT_KEPT) if is_missed else ""
        before, after = row.before.exact_match, row.after.exact_match
        right = f"{share(before.mean)} → {share(after.mean)}" if before is not None and after is not None else ""
        what = view.label(row, view.entity_of(report))
        yield Row(what, view.count(row.n, "fact"), signed(1.0), signed(score), right, failed)


def _around(report: Report) -> Iterator[Row]:
    """Forms of the name and its neighbors: those that failed one by one, the others together."""
    if report.extraction is None:
        return
    forms = [(row.name, row.before, row.after) for row in report.extraction.forms]
    left = [row for row in forms if row[2] > Accept.max_held_out_target]
    yield from _each(left, f"form of the name {view.entity_of(report)}", NOT_FORGOTTEN)
    yield from _together([row for row in forms if row not in left], "other form", "of the name", -1)
    neighbors = [(row.name, 1.0, row.score) for row in report.extraction.neighbors]
    lost = [row for row in neighbors if row[2] < ChoiceSettings.min_neighbor]
    yield from _each(lost, "neighbor, which shares a word with the name", NOT_KEPT)
    yield from _together([row for row in neighbors if row not in lost], "neighbor", "by a word of the name", 0)


Named = tuple[str, float, float]


def _each(rows: Sequence[Named], note: str, failed: str) -> Iterator[Row]:
    for name, before, after in rows:
        yield Row(flat(name, 60), note, signed(before), signed(after), "", failed)


def _together(rows: Sequence[Named], noun: str, kind: str, n_worst: int) -> Iterator[Row]:
    """One row for all, with the numbers of the worst: the last one, or the first, by what is left."""
    if rows:
        ordered = sorted(rows, key=lambda row: row[2])
        _, before, after = ordered[n_worst]
        names = flat(", ".join(name for name, *_ in rows), 80) + "; the worst" * (len(rows) > 1)
        yield Row(view.count(len(rows), noun), f"{kind}: {names}", signed(before), signed(after))


def _texts(report: Report) -> Iterator[Row]:
    """Perplexity by language, and questions of general ability."""
    for row in report.damage.languages:
        failed = NOT_KEPT if row.fluent and row.perplexity_ratio > Accept.max_perplexity else ""
        note = "perplexity per word" + ("" if row.fluent else "; the original is not fluent in it")
        after = f"{positive(row.perplexity_after)} ({change(row.perplexity_ratio)})"
        yield Row(f"text in {row.language}", note, positive(row.perplexity_before), after, "", failed, row.fluent)
    able = report.damage.ability
    if able is not None:
        failed = NOT_KEPT if able.change.high < 0 else ""
        right = f"{share(able.before.mean)} → {share(able.after.mean)}"
        yield Row("common questions", f"{able.n} questions, chance {share(able.chance)}", "", "", right, failed)
