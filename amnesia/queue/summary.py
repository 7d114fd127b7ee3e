"""What came of a queue: a row for each entity, and what all edits together do to others and to text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.choice.joint import Joint
from amnesia.choice.results import NeighborResult
from amnesia.domain import ModelRef
from amnesia.errors import InputError, os_errors_as
from amnesia.evaluation.aggregation import aggregates
from amnesia.evaluation.comparison import Evaluation
from amnesia.evaluation.results import TextScore
from amnesia.files.companions import REPORT_NAME
from amnesia.files.disk import read_small
from amnesia.files.strict_json import StrictJson
from amnesia.files.typed_json import TypedJson, plain
from amnesia.numbers import change, signed
from amnesia.outputs.proofs import outputs_in
from amnesia.queue.folder import QueueFolder, is_finished
from amnesia.queue.outcome import Outcome, Scores, read_outcome, read_recipe
from amnesia.report.content import read_report
from amnesia.weights.edit_rows import edit_json

SUMMARY_NAME, PAGE_NAME, JOINT_NAME = "summary.json", "summary.html", "joint.json"
_MAX_REPORT = 2**28


@dataclass(frozen=True)
class SummaryRow:
    """An entity: what came of it alone, and its scores in the model with all edits, where its own is one of them.

    `folder` is where the former is, from the folder of the queue.
    """

    alone: Outcome
    together: Scores | None
    accepted: bool
    folder: str


@dataclass(frozen=True)
class Summary:
    """Rows in the order of the list; `perplexity` is the ratio by language in the model with all edits, and `neighbors`
    what these leave of others who share a word with an entity.

    `accepted` says whether all entities are forgotten there within the bounds of their recipes.
    """

    model: str
    rows: tuple[SummaryRow, ...]
    perplexity: Mapping[str, float]
    neighbors: tuple[NeighborResult, ...]
    output: str | None

    @property
    def accepted(self) -> bool:
        return all(row.accepted for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """As `summary.json` has it."""
        return {
            "model": self.model,
            "accepted": self.accepted,
            "entities": [
                {
                    **plain(row.alone),
                    "together": plain(row.together),
                    "accepted_together": row.accepted,
                    "folder": row.folder,
                }
                for row in self.rows
            ],
            "perplexity_by_language": dict(self.perplexity),
            "neighbors": [plain(row) for row in self.neighbors],
        }


def joint_json(joint: Joint) -> dict[str, Any]:
    """A joint edit as a file that `edit --edit` reads, with what it was chosen from."""
    return {
        "form": joint.form,
        "tried": [plain(row) for row in joint.tried],
        "neighbors": [plain(row) for row in joint.neighbors],
        "entities": [
            {"entity": group.entity, "edits": [edit_json(edit) for edit in group.edits]} for group in joint.groups
        ],
    }


def of_entity(evaluation: Evaluation, entity: str) -> Evaluation:
    """The part of an evaluation of several entities that says what became of one of them, and of others."""
    prompts = tuple(row for row in evaluation.prompts if row.role == "control" or row.entity == entity)
    return Evaluation(prompts, aggregates(prompts), evaluation.damage)


def summarize(queue: QueueFolder, model: ModelRef) -> Summary:
    """What the finished folders of a queue come to. Raises InputError for a file in them that is damaged."""
    evaluation = _joint_evaluation(queue.joint)
    rows = []
    for place, name in enumerate(queue.names):
        alone, together, accepted = read_outcome(queue.entity(place)), None, False
        if alone.scores is not None and evaluation is not None:
            recipe = read_recipe(queue.entity(place), name)
            own = of_entity(evaluation, recipe.target.entity)
            together, accepted = Scores.of(own), own.accepted(recipe.accept)
        folder = queue.entity(place).relative_to(queue.path).as_posix()
        rows.append(SummaryRow(alone, together, accepted, folder))
    texts = () if evaluation is None else evaluation.damage.texts
    neighbors = () if evaluation is None else _joint_neighbors(queue.path / JOINT_NAME)
    output = None if evaluation is None else str(queue.joint)
    return Summary(str(model), tuple(rows), by_language(texts), neighbors, output)


def _joint_evaluation(folder: Path) -> Evaluation | None:
    """What the report of the joint edit says, that of its first format; None where nothing was written."""
    if not is_finished(folder):
        return None
    path = outputs_in(folder)[0] / REPORT_NAME
    check = StrictJson(str(path), InputError, "choose another output, and begin again")
    with os_errors_as(InputError, f"{path} cannot be read", "choose another output, and begin again"):
        report = read_report(check.parse(read_small(path, _MAX_REPORT)), str(path))
    return Evaluation(report.prompts, report.aggregates, report.damage)


def _joint_neighbors(path: Path) -> tuple[NeighborResult, ...]:
    """What the file of the joint edit says of neighbors; nothing where it is gone, or says nothing of them."""
    if not path.exists():
        return ()
    check = StrictJson(str(path), InputError, "move it away")
    with os_errors_as(InputError, f"{path} cannot be read", "move it away"):
        content = check.mapping(check.parse(read_small(path, _MAX_REPORT)), "the file")
    rows = TypedJson(check, {}).read(tuple[NeighborResult, ...], content.get("neighbors", []), "neighbors")
    return tuple(rows)


def by_language(texts: Sequence[TextScore]) -> dict[str, float]:
    """Ratio of perplexities per word by language, those of code included."""
    lost: dict[str, float] = defaultdict(float)
    words: dict[str, int] = defaultdict(int)
    for row in texts:
        lost[row.language] += row.n_words * math.log(row.perplexity_after / row.perplexity_before)
        words[row.language] += row.n_words
    return {language: math.exp(lost[language] / words[language]) for language in lost}


def _cells(row: SummaryRow) -> tuple[str, ...]:
    def pair(scores: Scores | None) -> list[str]:
        values = (None, None) if scores is None else (scores.target, scores.held_out_target)
        return ["" if value is None else signed(value) for value in values]

    verdict = "accepted" if row.accepted else row.alone.reason or "not accepted"
    return row.alone.entity, row.alone.verdict, *pair(row.alone.scores), *pair(row.together), verdict


def _about_others(summary: Summary) -> list[str]:
    together = next((row.together for row in summary.rows if row.together is not None), None)
    if together is None:
        return ["no edit was written"]
    controls = together.control, together.held_out_control
    shown = ["" if value is None else signed(value, 3) for value in controls]
    texts = ", ".join(f"{language} {change(ratio)}" for language, ratio in summary.perplexity.items())
    return [
        f"others, with all edits: {shown[0]}, held out {shown[1]} (1 is untouched)",
        f"perplexity of neutral text, with all edits: {change(together.perplexity_ratio)} ({texts})",
        *_about_neighbors(summary),
    ]


def _about_neighbors(summary: Summary) -> list[str]:
    rows = sorted(summary.neighbors, key=lambda row: row.score)
    shown = ", ".join(f"{row.name} {signed(row.score)}" for row in rows)
    return [f"neighbors by a word of a name, with all edits (1 is untouched): {shown}"] if rows else []


def summary_text(summary: Summary) -> str:
    """The table on the terminal."""
    lines = [f"{'':<28} {'':<8} {'alone':>17} {'together':>17}"]
    lines.append(f"{'entity':<28} {'handle':<8} {'target':>8} {'held out':>8} {'target':>8} {'held out':>8}")
    for row in summary.rows:
        entity, verdict, *scores, said = _cells(row)
        lines.append(f"{entity[:28]:<28} {verdict:<8} {' '.join(f'{score:>8}' for score in scores)}  {said}")
    n = sum(row.accepted for row in summary.rows)
    return "\n".join([*lines, *_about_others(summary), f"{n} of {len(summary.rows)} accepted"])
