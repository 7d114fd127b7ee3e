"""What `report.html` says: parts of a report, sorted, counted and put into words. The template lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia.domain import ROLES, n_columns
from amnesia.edits import ColumnEdit, token_name
from amnesia.evaluation.labels import facts_label, words
from amnesia.evaluation.results import MESSAGES, Aggregate, Estimate, PromptScore
from amnesia.numbers import flat, positive, share, short, signed
from amnesia.probes.findings import probe_name as probe_name
from amnesia.probes.results import Probe, ProbeScore
from amnesia.report.content import Direction, Report, ShownEdit
from amnesia.stress.results import (
    AS_MESSAGE,
    ATTACK_NAMES,
    TRAINED_MODELS,
    TRAINED_ON,
    RelearningResult,
    StressScore,
    by_training,
)

MAX_TARGETS = 300
"""Rows about the target in one table; `report.json` has all."""

MAX_OTHERS = 150
"""Rows about others in one table, those first that lost most; `report.json` has all."""

LEVELS = {"damage": ("✖", "Damage"), "warning": ("▲", "Warning"), "info": ("●", "Note"), "good": ("✔", "Good")}
"""Sign and word of each level of a finding, so that its color is not needed."""

SUBJECTS = (("entity", "original"), ("entity", "edited"), ("never_known", "original"), ("never_known", "edited"))


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page, with what it is and what it rests on."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Part:
    """Some rows of a table, of `n` in all."""

    rows: Sequence[PromptScore]
    n: int

    @property
    def n_left_out(self) -> int:
        """Rows that only `report.json` has."""
        return self.n - len(self.rows)


def is_alone(report: Report) -> bool:
    """Whether one model was measured, so that there is no before and after."""
    return report.edited is None and report.accepted is None and report.changed is None


def entity_of(report: Report) -> str:
    """The target's name, or what stands for it."""
    return flat(report.entity or "the target", 80)


def model_name(report: Report) -> str:
    """The model without its owner or folder."""
    return flat(report.model.name.rstrip("/").rsplit("/", 1)[-1], 80)


def label(row: Aggregate, entity: str) -> str:
    """Whose facts an aggregate is about."""
    return facts_label(row.role, row.split, target=entity)


def labels(rows: Sequence[Aggregate], entity: str) -> list[str]:
    """Whose facts some aggregates are about."""
    return [label(row, entity) for row in rows]


def group_labels(rows: Sequence[Aggregate], entity: str) -> list[str]:
    """Groups with their kind: the target's are told from those of others."""
    return [f"{entity if row.role == 'target' else 'others'}: {group_name(row)}" for row in rows]


def group_name(row: Aggregate) -> str:
    """The name of an aggregate's group, and of its split when it was held out."""
    name = "messages" if row.group == MESSAGES else words(row.group.partition(":")[2])
    return f"{name}, held out" if row.split == "held_out" else name


def whole(report: Report) -> list[Aggregate]:
    """The aggregates of all facts of a kind."""
    return [row for row in report.aggregates if row.group == "all"]


def families(report: Report, family: str) -> list[Aggregate]:
    """The aggregates of one way of grouping."""
    return [row for row in report.aggregates if row.group.partition(":")[0] == family]


def scored(report: Report) -> list[PromptScore]:
    """The prompts that have a knowledge score, without messages."""
    return [row for row in with_messages(report) if not row.is_message]


def with_messages(report: Report) -> list[PromptScore]:
    """The prompts that have a knowledge score, as text or as messages."""
    return [row for row in report.prompts if row.knowledge_score is not None]


def score_of(row: PromptScore) -> float:
    """The knowledge score of a prompt that has one."""
    assert row.knowledge_score is not None, "only scored prompts are asked for their score"
    return row.knowledge_score


def unknown_of(row: PromptScore) -> float:
    """The log-probability (nats) of the answer for an unknown name, which every scored prompt has."""
    assert row.logprob_unknown is not None, "a score rests on an unknown name"
    return row.logprob_unknown


def scores_behind(aggregate: Aggregate, report: Report) -> list[float]:
    """The scores whose mean an aggregate of all facts of a kind is."""
    kind = (aggregate.role, aggregate.split)
    return [score_of(row) for row in scored(report) if (row.role, row.split) == kind]


def target_facts(report: Report) -> Part:
    """The scored facts about the target, in the order of the report."""
    rows = [row for row in with_messages(report) if row.role == "target"]
    return Part(rows[:MAX_TARGETS], len(rows))


def other_facts(report: Report) -> Part:
    """The scored facts about others, those first that lost most."""
    rows = sorted((row for row in with_messages(report) if row.role == "control"), key=score_of)
    return Part(rows[:MAX_OTHERS], len(rows))


def excluded_facts(report: Report) -> Part:
    """The facts that the original model does not know."""
    rows = [row for row in report.prompts if row.excluded is not None]
    return Part(rows[:MAX_TARGETS], len(rows))


def tiles(report: Report) -> Iterator[Tile]:
    """The numbers at the top of the page about one model alone."""
    for role, subject in zip(ROLES, (entity_of(report), "others"), strict=True):
        # Of both splits the one that judges.
        rows = sorted((row for row in whole(report) if row.role == role), key=lambda row: row.split == "held_out")
        if rows and rows[-1].before.exact_match is not None:
            row, right = rows[-1], rows[-1].before.exact_match
            facts = f"{row.n} held-out facts" if row.split == "held_out" else f"{row.n} facts"
            yield Tile(f"Right answers, {subject}", share(right.mean), facts)
    yield Tile("Perplexity, neutral text", positive(report.damage.perplexity_before), "per word")


def tenths(value: float) -> int:
    """A knowledge score in tenths, from 0 to 10, for a bar beside it."""
    return min(10, max(0, round(10 * value)))


def maybe(value: float | None) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else signed(value)


def middle(value: Estimate | None) -> float | None:
    """The mean of an estimate, if there is one."""
    return None if value is None else value.mean


def attack_name(name: str) -> str:
    """The name of an attack or of a method, for readers."""
    return ATTACK_NAMES.get(name) or words(name)


def pair(before: int | None, after: int | None, alone: bool) -> str:
    """Counts before and after."""
    if before is None:
        return "–"
    return f"{before}" if alone else f"{before} → {after}"


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n} {noun}{'s' * (n != 1)}"


def changes(edits: Sequence[ShownEdit]) -> str:
    """What an edit changes, in sentences."""
    cells = [row.cell for row in edits if isinstance(row, ColumnEdit)]
    sentences = []
    if cells:
        sentences.append(f"{count(len(cells), 'cell')} in {count(len({cell.layer for cell in cells}), 'layer')}.")
    for row in (row for row in edits if isinstance(row, Direction)):
        what = "what it writes" if row.of == "layer" else "what the residual stream behind it carries of the entity"
        sentences.append(
            f"Layer {row.layer}: {what} at the name’s {token_name(row.token)} is multiplied by "
            f"{short(row.multiplier)}, along one direction of {count(len(row.columns), 'cell')}, whose columns change "
            f"by {row.change_norm:.3g} (Frobenius norm)."
        )
    if len(edits) > 1 and len(edits) > len(cells):
        sentences.append(f"{count(n_columns(edits), 'column')} in all.")
    return " ".join(sentences)


def groups_of(row: PromptScore) -> str:
    """To which groups a prompt belongs."""
    split = "held out" if row.split == "held_out" else None
    named = (split, "message" if row.is_message else None, row.neighborhood, row.relation, row.popularity)
    return ", ".join(words(name) for name in named if name)


def subject_name(subject: str, entity: str) -> str:
    """Whom an attack or a training asks about, and whether in messages."""
    plain = subject.removesuffix(AS_MESSAGE)
    name = {"entity": entity, "never_known": "never-known name", "control": "others"}[plain]
    return f"{name}, as messages" if plain != subject else name


def probe_rows(probe: Probe, subject: str) -> list[ProbeScore]:
    """The scores of one subject, of the original model first."""
    return [row for row in probe.rows if row.subject == subject]


def attack_rows(rows: Sequence[StressScore], subjects: Sequence[tuple[str, str]]) -> list[StressScore | None]:
    """The rows of an attack by subject and model, in the order of `subjects`; None where one was not measured."""
    found = {(row.subject, row.model): row for row in rows}
    return [found.get(subject) for subject in subjects]


def training_name(run: RelearningResult) -> str:
    """On what a model was trained, and in which way."""
    return f"{run.text}, {run.way}"


def trained_model(model: str) -> str:
    """Which model was trained."""
    return TRAINED_MODELS[model] if model == "unlearned" else f"{model} model"


def relearned(report: Report) -> Iterator[str]:
    """What training brought back, in sentences."""
    if report.relearning is None:
        return
    for (text, way), runs in by_training(report.relearning).items():
        run = runs.get(("edited", "entity"))
        if run is None:
            continue
        first, last = (signed(run.steps[place].knowledge_score.mean) for place in (0, -1))
        steps = count(run.steps[-1].step, "step")
        yield (
            f"{steps} of fine-tuning ({way}) on {TRAINED_ON.get(text, text)} took the edited model's knowledge score "
            f"of {entity_of(report)} from {first} to {last}."
        )


def sections(report: Report) -> dict[str, str]:
    """The sections of the page with their headings, in order; what the report lacks has none."""
    alone, has_targets, has_facts = is_alone(report), bool(target_facts(report).n), bool(scored(report))
    present = {
        "findings": ("Findings", bool(report.findings)),
        "answers": ("Answers" if alone else "Answers, side by side", has_targets),
        "means": ("What is known" if alone else "How much is left", bool(whole(report))),
        "neighborhoods": ("Others by their distance", bool(families(report, "neighborhood"))),
        "scatter": ("Target against others", has_facts and not alone),
        "damage": ("Other texts" if alone else "Damage to other texts", True),
        "attacks": ("Can it be brought back?", report.stress is not None),
        "relearning": ("Does training bring it back?", report.relearning is not None),
        "probes": ("Does anything still show?", report.probes is not None),
        "sweep": ("Weaker and stronger edits", report.sweep is not None and bool(report.sweep.curves)),
        "changes": ("What was changed", report.changed is not None),
        "facts": ("Every fact in numbers", has_facts),
        "excluded": ("Facts left out", bool(excluded_facts(report).n)),
        "limits": ("Limits", True),
        "terms": ("What the terms mean", True),
        "provenance": ("Provenance", True),
    }
    return {name: heading for name, (heading, shown) in present.items() if shown}
