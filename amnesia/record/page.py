"""The erasure record as one page, to be read, printed or kept as PDF. Pure: from a record to text.

The page needs no network, no script and no other file; all that it quotes is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from amnesia.domain import ADAPTERS, name_key
from amnesia.evaluation.bounds import Check
from amnesia.evaluation.results import Estimate, Finding
from amnesia.facts.phrases import LANGUAGES
from amnesia.files.disk import MANIFEST_NAME
from amnesia.numbers import share, signed
from amnesia.record.content import Record, Tested, Way
from amnesia.record.request import Field
from amnesia.report.page import render
from amnesia.report.view import LEVELS, count
from amnesia.stress.results import ATTACK_NAMES

_LABELS = {
    "id": "Request",
    "reference": "Requester’s reference",
    "received": "Received",
    "decision": "Decision",
    "next_test": "Next test due",
    "undo_keeper": "Keeper of the undo file",
}
_WAYS: dict[Way, str] = {
    "asked": "Asked in another way",
    "quantized": "Quantized",
    "trained": "Trained a little",
    "probed": "Probed",
}


def record_html(record: Record) -> str:
    """The page of a record; the same record always gives the same page."""
    return render("record.html", "record.css", record=record, view=View(record), levels=LEVELS)


class View:
    """Parts of a record, put into words for the template."""

    ADAPTERS = ADAPTERS

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def entity(self) -> str:
        """The names of what was to be forgotten."""
        return ", ".join(self.record.scope.entities)

    @property
    def suppressed(self) -> str:
        """Those of these names for which something in the model differs; empty where nothing does."""
        scope = self.record.scope
        return ", ".join(name for name in scope.entities if name not in scope.restored)

    @property
    def unsuppressed(self) -> str:
        """The others of these names."""
        scope = self.record.scope
        return ", ".join(name for name in scope.entities if name in scope.restored)

    @property
    def verdict(self) -> tuple[str, str]:
        """Level and sentence about the bounds."""
        accepted = self.record.accepted
        if accepted is None:
            return "info", "Not judged: no report of this record was held against bounds"
        n_missed = sum(row.passed is False for tested in self.record.tested for row in tested.checks)
        if accepted and not n_missed:
            return "good", "Accepted: every bound of the recipe is met"
        return "damage", "Not accepted: bounds of the recipe are missed"

    @property
    def outcome(self) -> str:
        """What is known of how far the edit does what it is for, as the end of a sentence."""
        if not self.record.tested:
            return "whether that made it forget was not tested"
        return {
            "good": "by the tests below it meets every bound that the recipe sets",
            "damage": "by the tests below it misses bounds that the recipe sets",
        }.get(self.verdict[0], "how far that made it forget is listed under “Tests”")

    @property
    def unasked(self) -> list[str]:
        """Other names and names in other languages that no report of this record has numbers of."""
        scope = self.record.scope
        asked = {row.name for row in self.record.returns.attempts}
        known = {name_key(form) for row in scope.forms for form in (row.name, row.name.rpartition(" (")[0])}
        found = [] if ATTACK_NAMES["alias"] in asked else [*scope.aliases]
        for language, names in scope.translations.items():
            if not (ATTACK_NAMES["other_language"] in asked and language in LANGUAGES):
                found += [names] if name_key(names) in known else names.split(", ")
        return [name for name in dict.fromkeys(found) if name_key(name) not in known]

    @property
    def keeper(self) -> str | None:
        """Who keeps the undo file, if the request says so."""
        return next((field.value for field in self.record.request if field.key == "undo_keeper"), None)

    @property
    def has_undo(self) -> bool:
        """Whether a file with original values is needed to take the edit of some format back."""
        return any(one.undo is not None for one in self.record.saved)

    @property
    def inverts(self) -> bool:
        """Whether the whole weights of some format are taken back by their manifest alone."""
        return any(one.undo is None and one.format not in ADAPTERS for one in self.record.saved)

    @property
    def means(self) -> str:
        """What somebody needs to take the edit back, of whom the rest of the sentence speaks."""
        if self.has_undo and self.inverts:
            return f"the original weights, the undo file, or edited weights that go back by their {MANIFEST_NAME} alone"
        if self.has_undo:
            return "the original weights or the undo file"
        if self.inverts:
            return f"the original weights, or the edited weights and their {MANIFEST_NAME}"
        return "the original weights, to which the adapter is only added"

    def label(self, field: Field) -> str:
        """The name of a field of the request."""
        return _LABELS.get(field.key) or field.key

    def measured(self, row: Check) -> str:
        """A measured number with its interval, if it has one."""
        digits = 3 if row.low is None else 2
        span = "" if row.low is None or row.high is None else f" ({signed(row.low)} to {signed(row.high)})"
        return signed(row.value, digits) + span

    def bound(self, row: Check) -> str:
        """The bound of a check."""
        return "–" if row.limit is None else f"{'at most' if row.is_upper else 'at least'} {row.limit:g}"

    def passed(self, row: Check) -> str:
        """Whether a check was passed, with a sign, so that no color is needed."""
        return {None: "not judged", True: "✔ passed", False: "✖ failed"}[row.passed]

    def rate(self, value: Estimate) -> str:
        """A share with its interval."""
        return f"{share(value.mean)} ({share(value.low)} to {share(value.high)})"

    def score(self, value: float | None) -> str:
        """A number of an attempt, or a dash."""
        return "–" if value is None else signed(value)

    def attempts(self) -> Iterator[tuple[str, Sequence[object]]]:
        """The attempts by the way that they went."""
        for way, heading in _WAYS.items():
            rows = [row for row in self.record.returns.attempts if row.way == way]
            if rows:
                yield heading, rows

    def tested(self) -> list[tuple[str, Tested]]:
        """The tests of reports with their headings; a report that says the same as one before it joins that one."""
        by_numbers: dict[tuple[object, object], list[Tested]] = {}
        for row in self.record.tested:
            by_numbers.setdefault((row.checks, row.answers), []).append(row)
        return [(" and ".join(row.report for row in rows), rows[0]) for rows in by_numbers.values()]

    def findings(self) -> list[Finding]:
        """What the reports found, each sentence once, the most severe first."""
        found = dict.fromkeys(row for tested in self.record.tested for row in tested.findings)
        return sorted(found, key=lambda row: list(LEVELS).index(row.level))

    def columns(self, indices: Sequence[int], axis: int) -> str:
        """How many columns of a tensor changed."""
        return count(len(indices), "column" if axis else "row")
