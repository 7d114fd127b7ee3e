"""Suites of facts from a table: PopQA, and one that ships with this package.

Facts about the entities are to be forgotten; facts about others, spread over neighborhoods, must stay, and so must
neutral text. Only what the original model knows is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from amnesia.bench.results import RATIO, SCORE, Contract, Entry, Measure, prompts_hash
from amnesia.errors import InputError
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.examination import conclude, examine, examine_after
from amnesia.evaluation.results import ALL, MESSAGES, Estimate
from amnesia.facts.popqa import is_about, read_popqa
from amnesia.facts.questions import FactSet, facts_of_popqa
from amnesia.files.disk import hash_file
from amnesia.live.model import LiveModel
from amnesia.progress import Progress

_OWN = Path(__file__).with_name("own.tsv")

N_CONTROLS = 100
"""Facts about others; frozen, as enough for an interval of a few hundredths."""

SETS = {"target": "forget", "control": "neighbor"}


class Suite(Protocol):
    """Asked of the original model first, and then of each edited one."""

    @property
    def contract(self) -> Contract: ...

    @property
    def source(self) -> str | None:
        """The Hub id and commit of the data, where they were given so."""
        ...

    def original(self, live: LiveModel, name: str, progress: Progress) -> tuple[Entry, Callable[..., Entry]]:
        """The original's measures, and what measures an edited model: called with the same kind of arguments."""
        ...


@dataclass(frozen=True)
class FactSuite:
    """Facts with their contract."""

    facts: FactSet
    contract: Contract
    source: str | None = None

    def original(self, live: LiveModel, name: str, progress: Progress) -> tuple[Entry, Callable[..., Entry]]:
        """See `Suite`; raises InputError when the original knows none of the facts to be forgotten."""
        before = examine(live, self.facts.questions, self.facts.scoring, progress)

        def edited(live: LiveModel, name: str, progress: Progress) -> Entry:
            return _entry(name, conclude(before, examine_after(live, before, progress)))

        return _entry(name, conclude(before, None)), edited


def fact_suite(name: str, table: Path | None, entities: Sequence[str]) -> FactSuite:
    """The suite `name` on a table, by default the one of this package; raises what `facts_of_popqa` raises."""
    path = _OWN if table is None else table
    if table is None:
        _check_own(entities)
    facts = facts_of_popqa(path, entities, N_CONTROLS)
    asked = [[row.role, row.split, *row.pair, *row.fact.answer_aliases] for row in facts.questions]
    contract = Contract(
        suite=name,
        version=2,
        entities=tuple(dict.fromkeys(row.fact.entity for row in facts.questions if row.role == "target")),
        n_prompts=len(asked),
        data={path.name: hash_file(path)},
        prompts=prompts_hash(asked),
        settings={"n_controls": N_CONTROLS, **asdict(facts.scoring)},
    )
    return FactSuite(facts, contract)


def _check_own(entities: Sequence[str]) -> None:
    rows = read_popqa(_OWN)
    for entity in entities:
        if not any(is_about(row, entity) for row in rows):
            names = sorted({row.subject for row in rows})
            raise InputError(
                f"the own suite has no facts about {entity!r}: choose one of its {len(names)} entities "
                f"({', '.join(names[:: len(names) // 6])}, …), or give a table with --suite popqa --popqa FILE"
            )


def _entry(name: str, evaluation: Evaluation) -> Entry:
    means = {}
    for role, name_of_set in SETS.items():
        rows = [row for row in evaluation.aggregates if row.role == role and row.group == ALL]
        total = sum(row.n for row in rows)
        if not total:
            raise InputError(f"the original model knows none of the {name_of_set} facts: choose other entities")
        means[name_of_set] = sum(row.knowledge_score.mean * row.n for row in rows) / total
    return Entry(name, tuple(_measures(evaluation)), means["forget"], means["neighbor"])


def _measures(evaluation: Evaluation) -> Iterator[Measure]:
    for row in evaluation.aggregates:
        if row.group not in (ALL, MESSAGES):
            continue
        kind = "held-out wordings" if row.split == "held_out" else "wordings that a search may see"
        kind += ", as messages" * (row.group == MESSAGES)
        yield Measure(SETS[row.role], kind, SCORE, row.n, row.knowledge_score)
        if row.after.exact_match is not None:
            yield Measure(SETS[row.role], kind, "right answers", row.n, row.after.exact_match)
    ratio = evaluation.damage.perplexity_ratio
    yield Measure(
        "utility",
        "neutral text",
        RATIO,
        len(evaluation.damage.texts),
        Estimate(ratio, ratio, ratio),
    )
