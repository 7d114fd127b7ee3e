"""What `report.html` says: parts of `report.json`, sorted, counted and put into words. The template lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amnesia.evaluation.labels import Row, facts_label, is_held_out, is_target, role_of, split_of, words
from amnesia.report.numbers import change, flat, positive, share, signed, token_name

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

    rows: Sequence[Row]
    n: int

    @property
    def n_left_out(self) -> int:
        """Rows that only `report.json` has."""
        return self.n - len(self.rows)


def is_alone(document: Row) -> bool:
    """Whether one model was measured, so that there is no before and after."""
    return document["edited"] is None and document["accepted"] is None and "changed" not in document


def entity_of(document: Row) -> str:
    """The target's name, or what stands for it."""
    return flat(document["entity"] or "the target", 80)


def model_name(document: Row) -> str:
    """The model without its owner or folder."""
    return flat(document["model"]["id"].rstrip("/").rsplit("/", 1)[-1], 80)


def label(row: Row, entity: str) -> str:
    """Whose facts an aggregate is about."""
    return facts_label(role_of(row), split_of(row), target=entity)


def labels(rows: Sequence[Row], entity: str) -> list[str]:
    """Whose facts some aggregates are about."""
    return [label(row, entity) for row in rows]


def group_labels(rows: Sequence[Row], entity: str) -> list[str]:
    """Groups with their kind: the target's are told from those of others."""
    return [f"{entity if is_target(row) else 'others'}: {group_name(row)}" for row in rows]


def group_name(row: Row) -> str:
    """The name of an aggregate's group, and of its split when it was held out."""
    name = words(row["group"].partition(":")[2])
    return f"{name}, held out" if is_held_out(row) else name


def whole(document: Row) -> list[Row]:
    """The aggregates of all facts of a kind."""
    return [row for row in document["aggregates"] if row["group"] == "all"]


def families(document: Row, family: str) -> list[Row]:
    """The aggregates of one way of grouping."""
    return [row for row in document["aggregates"] if row["group"].partition(":")[0] == family]


def scored(document: Row) -> list[Row]:
    """The prompts that have a knowledge score."""
    return [row for row in document["prompts"] if row["knowledge_score"] is not None]


def target_facts(document: Row) -> Part:
    """The scored facts about the target, in the order of the report."""
    rows = [row for row in scored(document) if is_target(row)]
    return Part(rows[:MAX_TARGETS], len(rows))


def other_facts(document: Row) -> Part:
    """The scored facts about others, those first that lost most."""
    rows = sorted((row for row in scored(document) if not is_target(row)), key=lambda row: row["knowledge_score"])
    return Part(rows[:MAX_OTHERS], len(rows))


def excluded_facts(document: Row) -> Part:
    """The facts that the original model does not know."""
    rows = [row for row in document["prompts"] if row["excluded"] is not None]
    return Part(rows[:MAX_TARGETS], len(rows))


def headline(document: Row) -> str:
    """The result in a sentence or two: right answers where there are any, else knowledge scores."""
    entity = entity_of(document)
    asked = [row for row in scored(document) if row["before"]["exact_match"] is not None]
    targets, others = ([row for row in asked if is_target(row) is wanted] for wanted in (True, False))
    if is_alone(document) and targets:
        return f"The model answers {_right(targets, 'before')} of {len(targets)} questions about {entity} correctly."
    if targets:
        first = (
            f"Of {len(targets)} questions about {entity}, the original model answers {_right(targets, 'before')} "
            f"correctly and the edited one {_right(targets, 'after')}."
        )
        before, after = _right(others, "before"), _right(others, "after")
        return f"{first} Of {len(others)} about others, {before} and {after}." if others else first
    means = "; ".join(f"{label(row, entity)}: {signed(row['knowledge_score']['mean'])}" for row in whole(document))
    return f"Knowledge scores, where 1 is as before the edit and 0 like an unknown name: {means}."


def tiles(document: Row) -> Iterator[Tile]:
    """The numbers at the top of the page."""
    alone = is_alone(document)
    for wanted, subject in ((True, entity_of(document)), (False, "others")):
        # Of both splits the one that judges.
        rows = sorted((row for row in whole(document) if is_target(row) is wanted), key=is_held_out)
        if not rows:
            continue
        row = rows[-1]
        facts = f"{row['n']} held-out facts" if is_held_out(row) else f"{row['n']} facts"
        interval = row["knowledge_score"]
        right = [row[when]["exact_match"] for when in ("before", "after")]
        if not alone:
            span = f"{signed(interval['low'])} to {signed(interval['high'])}"
            yield Tile(f"Knowledge of {subject}", signed(interval["mean"]), f"{facts}, 95 % interval {span}")
        if right[0] is not None:
            shown = share(right[0]["mean"]) + ("" if alone else f" → {share(right[1]['mean'])}")
            yield Tile(f"Right answers, {subject}", shown, facts)
    neutral = document["damage"]["neutral_perplexity"]
    before, after = positive(neutral["before"]), positive(neutral["after"])
    if alone:
        yield Tile("Perplexity, neutral text", before, "per word")
    else:
        yield Tile("Perplexity, neutral text", change(neutral["ratio"]), f"per word, {before} → {after}")


def _right(rows: Sequence[Row], when: str) -> int:
    return sum(bool(row[when]["exact_match"]) for row in rows)


def tenths(value: float) -> int:
    """A knowledge score in tenths, from 0 to 10, for a bar beside it."""
    return min(10, max(0, round(10 * value)))


def maybe(value: float | None) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else signed(value)


def middle(value: Any) -> float | None:
    """A mean that comes with or without its interval."""
    return value["mean"] if isinstance(value, Mapping) else value


def attack_name(name: str) -> str:
    """The name of an attack or of a method, for readers."""
    return {"plain": "no attack: the plain question"}.get(name, words(name))


def pair(before: int | None, after: int | None, alone: bool) -> str:
    """Counts before and after."""
    if before is None:
        return "–"
    return f"{before}" if alone else f"{before} → {after}"


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n} {noun}{'s' * (n != 1)}"


def changes(edits: Sequence[Row]) -> str:
    """What an edit changes, in sentences."""
    cells = [row for row in edits if "neuron" in row]
    directions = [row for row in edits if "columns" in row]
    sentences = []
    if cells:
        sentences.append(f"{count(len(cells), 'cell')} in {count(len({row['layer'] for row in cells}), 'layer')}.")
    for row in directions:
        sentences.append(
            f"Layer {row['layer']}: what it writes at the name’s {token_name(row['token'])} is multiplied by "
            f"{row['multiplier']:g}, along one direction of {count(len(row['columns']), 'cell')}, whose columns change "
            f"by {row['change_norm']:.3g} (Frobenius norm)."
        )
    return " ".join(sentences)


def groups_of(row: Row) -> str:
    """To which groups a prompt belongs."""
    split = "held out" if is_held_out(row) else None
    named = (split, row["neighborhood"], row["relation"], row["popularity"])
    return ", ".join(words(name) for name in named if name)


def subject_name(subject: str, entity: str) -> str:
    """Whom an attack asks about."""
    return {"entity": entity, "never_known": "never-known name", "control": "others"}[subject]


def attack_rows(rows: Sequence[Row], subjects: Sequence[tuple[str, str]]) -> list[Row | None]:
    """The rows of an attack by subject and model, in the order of `subjects`; None where one was not measured."""
    found = {(row["subject"], row["model"]): row for row in rows}
    return [found.get(subject) for subject in subjects]


def training_text(text: str) -> str:
    """What a model was trained on, as part of a sentence."""
    return "unrelated text" if text == "unrelated" else text


def relearning_by_text(runs: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of relearning by the text that was trained on, in the order of the report."""
    texts: dict[str, list[Row]] = {}
    for run in runs:
        texts.setdefault(training_text(run["text"]), []).append(run)
    return texts


def relearned(document: Row) -> Iterator[str]:
    """What training brought back, in sentences."""
    entity = entity_of(document)
    for text, runs in relearning_by_text(document.get("stress", {}).get("relearning", ())).items():
        ends = []
        for run in runs:
            if run["model"] != "edited" or not run["steps"]:
                continue
            first, last = (middle(run["steps"][place]["knowledge_score"]) for place in (0, -1))
            if first is not None and last is not None:
                ends.append(f"{signed(first)} to {signed(last)} for {_whom(run['subject'], entity)}")
        if ends:
            steps = count(max(run["steps"][-1]["step"] for run in runs if run["steps"]), "step")
            yield f"{steps} of training on {text} took the edited model's knowledge score from {', from '.join(ends)}."


def _whom(subject: str, entity: str) -> str:
    return "a never-known name" if subject == "never_known" else subject_name(subject, entity)


def sections(document: Row) -> dict[str, str]:
    """The sections of the page with their headings, in order; what the report lacks has none."""
    alone, has_targets, has_facts = is_alone(document), bool(target_facts(document).n), bool(scored(document))
    present = {
        "findings": ("Findings", bool(document["findings"])),
        "answers": ("Answers" if alone else "Answers, side by side", has_targets),
        "means": ("What is known" if alone else "How much is left", bool(whole(document))),
        "neighborhoods": ("Others by their distance", bool(families(document, "neighborhood"))),
        "scatter": ("Target against others", has_facts and not alone),
        "damage": ("Other texts" if alone else "Damage to other texts", True),
        "attacks": ("Can it be brought back?", "stress" in document),
        "sweep": ("Weaker and stronger edits", bool(document.get("sweep", {}).get("curves"))),
        "changes": ("What was changed", "changed" in document),
        "facts": ("Every fact in numbers", has_facts),
        "excluded": ("Facts left out", bool(excluded_facts(document).n)),
        "limits": ("Limits", True),
        "terms": ("What the terms mean", True),
        "provenance": ("Provenance", True),
    }
    return {name: heading for name, (heading, shown) in present.items() if shown}
