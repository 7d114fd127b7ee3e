"""The content of `report.json` as types, which the page is made of. Pure: it reads no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amnesia.choice.results import Answers, FormResult, FrontPoint, NeighborResult, Screening, Verdict
from amnesia.domain import ModelRef
from amnesia.edits import ColumnEdit, WriteOf
from amnesia.errors import InputError
from amnesia.evaluation.labels import KINDS, parts_of
from amnesia.evaluation.results import Aggregate, AnswerSummary, Damage, Finding, PromptScore, StrengthSweep
from amnesia.files.strict_json import StrictJson
from amnesia.files.typed_json import TypedJson
from amnesia.probes.results import Probes
from amnesia.stress.results import Relearning, Stress
from amnesia.weights.edit_rows import read_edit

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Direction:
    """What a report says of a direction: the read-out u on its columns, and norms.

    `write_norm` is |v|, what the layer writes about the entity or, by `of`, what the stream behind it carries of it;
    `change_norm` the Frobenius norm of the change of the weights. `token` counts from the name's last one backwards.
    """

    expert: ClassVar[None] = None
    layer: int
    token: int
    multiplier: float
    columns: tuple[int, ...]
    read: tuple[float, ...]
    write_norm: float
    change_norm: float
    of: WriteOf


ShownEdit = ColumnEdit | Direction


@dataclass(frozen=True)
class TensorChange:
    """The columns of a tensor (along `axis`) that changed, and its SHA-256 before and after."""

    name: str
    file: str
    axis: int
    indices: tuple[int, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Changed:
    """What an edit of this package changed, and the SHA-256 of the files of weights that were measured, by name."""

    edits: tuple[ShownEdit, ...]
    tensors: tuple[TensorChange, ...]
    weights: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Reached:
    """The mean knowledge score that a choice reached on the facts that it saw."""

    knowledge_score: float


@dataclass(frozen=True)
class Choice:
    """How an edit was chosen: `amnesia.choice.results.Extraction` without the edit, which `Changed` has."""

    entity: str
    verdict: Verdict
    target: Reached
    control: Reached
    candidates_tried: int
    answers: Answers | None = None
    screening: Screening | None = None
    forms: tuple[FormResult, ...] = ()
    neighbors: tuple[NeighborResult, ...] = ()
    front: tuple[FrontPoint, ...] = ()


@dataclass(frozen=True)
class TaskValue:
    """A metric of an lm-eval task, of the original and of the edited model; None where there is none."""

    before: float
    after: float | None


@dataclass(frozen=True)
class Tasks:
    """The metrics of lm-eval tasks: task, metric, values."""

    tasks: Mapping[str, Mapping[str, TaskValue]]


@dataclass(frozen=True)
class Report:
    """The content of a `report.json`, which `report.schema.json` describes; what was not asked for is None."""

    tool: Mapping[str, str]
    model: ModelRef
    edited: str | None
    entity: str | None
    accepted: bool | None
    findings: tuple[Finding, ...]
    aggregates: tuple[Aggregate, ...]
    damage: Damage
    n_excluded: int
    prompts: tuple[PromptScore, ...]
    extraction: Choice | None = None
    changed: Changed | None = None
    lm_eval: Tasks | None = None
    stress: Stress | None = None
    relearning: Relearning | None = None
    probes: Probes | None = None
    sweep: StrengthSweep | None = None


def read_report(document: object, name: str = "report.json") -> Report:
    """The content of a `report.json`; raises InputError, with the place, for what is no report of this version.

    `name` is that of the file in messages.
    """
    check = StrictJson(name, InputError, "make the report again")
    fields = dict(check.mapping(document, "the file"))
    check.choice(fields.pop("format_version", None), "format_version", [FORMAT_VERSION])
    return TypedJson(check, _FORMS).dataclass(Report, fields)


def _model(json: TypedJson, value: object, key: str) -> ModelRef:
    row = json.check.object(value, key, "id revision")
    return ModelRef(json.read(str, row["id"], f"{key}.id"), json.read(str | None, row["revision"], f"{key}.revision"))


def _edit(json: TypedJson, value: object, key: str) -> ShownEdit:
    row = json.check.mapping(value, key)
    if "columns" in row:
        return json.dataclass(Direction, row, key)
    edit = read_edit(json.check, row)
    assert isinstance(edit, ColumnEdit), "an edit without columns is one of a cell"
    return edit


def _damage(json: TypedJson, value: object, key: str) -> Damage:
    row = dict(json.check.object(value, key, "neutral_perplexity texts kl_controls languages ability"))
    name = "neutral_perplexity"
    # The ratio stands in the file for its readers.
    perplexity = json.check.object(row.pop(name), f"{key}.{name}", "before after ratio")
    return json.dataclass(Damage, row | {f"perplexity_{when}": perplexity[when] for when in ("before", "after")}, key)


def _summary(json: TypedJson, value: object, key: str) -> AnswerSummary:
    row = json.check.mapping(value, key)
    rank = json.check.object(row.get("rank"), f"{key}.rank", "median")
    return json.dataclass(AnswerSummary, {**row, "rank": rank["median"]}, key)


def _with_parts(kind: type[PromptScore | Aggregate]) -> Any:
    """Reads a row that has role and split in one word."""

    def read(json: TypedJson, value: object, key: str) -> Any:
        row = dict(json.check.mapping(value, key))
        role, split = parts_of(json.check.choice(row.pop("kind", None), f"{key}.kind", KINDS))
        return json.dataclass(kind, row | {"role": role, "split": split}, key)

    return read


_FORMS = {
    ModelRef: _model,
    ShownEdit: _edit,
    Damage: _damage,
    AnswerSummary: _summary,
    PromptScore: _with_parts(PromptScore),
    Aggregate: _with_parts(Aggregate),
}
