"""The content of an erasure record as values, which its JSON and its page are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from amnesia.choice.results import FormResult, NeighborResult
from amnesia.domain import Format
from amnesia.evaluation.bounds import Check
from amnesia.evaluation.results import Estimate, Finding
from amnesia.files.typed_json import plain
from amnesia.record.request import Field
from amnesia.weights.manifest import BaseFile, TensorScope

FORMAT_VERSION = 1
Way = Literal["asked", "quantized", "trained", "probed"]


@dataclass(frozen=True)
class Scope:
    """Whom the model is to forget: names of this edit and of `earlier` ones beneath it, other names that the recipe
    gives, names in other languages by their codes (those of several entities with commas between them), and forms of
    the name with what was measured of them.

    `neighbors` are names of others that share a word with the entity's, with what is left of them. `restored` are those
    of the entities, of this edit and of earlier ones, for which nothing in the model differs from what it was before
    all edits.
    """

    entities: tuple[str, ...]
    earlier: tuple[str, ...]
    aliases: tuple[str, ...]
    translations: Mapping[str, str]
    forms: tuple[FormResult, ...]
    neighbors: tuple[NeighborResult, ...]
    restored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """The model that was edited: its name, its revision (a commit of the Hub), and the files with edited tensors."""

    name: str
    revision: str | None
    files: tuple[BaseFile, ...]


@dataclass(frozen=True)
class ChangedTensor:
    """A tensor with the columns that changed (rows, where `axis` is 0), and sha256 before and after as `scope` says."""

    name: str
    file: str
    axis: int
    indices: tuple[int, ...]
    before: str
    after: str
    scope: TensorScope


@dataclass(frozen=True)
class Restored:
    """Edited columns of a tensor (rows, in the tensor of a GGUF) that are in the end as before all edits.

    A later edit took them back, or rounding left them as they were.
    """

    name: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Saved:
    """The edited files of one format, and what was proven of them from their bytes when the record was made.

    `undo` is the file with the original columns, if one is needed to restore them, and `undo_sha256` its hash.
    """

    format: Format
    tensors: tuple[ChangedTensor, ...]
    n_files_proven: int
    base_compared: bool
    unproven: tuple[str, ...]
    undo: str | None
    undo_sha256: str | None
    restored: tuple[Restored, ...] = ()


@dataclass(frozen=True)
class RightAnswers:
    """The share of `n` facts that are answered rightly, before and after the edit."""

    name: str
    n: int
    before: Estimate
    after: Estimate


@dataclass(frozen=True)
class Tested:
    """What one report says: its findings, checks against the recipe's bounds, and right answers.

    `accepted` is the report's own word.
    """

    report: str
    edited: str | None
    accepted: bool | None
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    answers: tuple[RightAnswers, ...]


@dataclass(frozen=True)
class Attempt:
    """One way in which the entity was asked for again: knowledge scores, or of probes shares, of both models.

    `never_known` is that of a name that nobody knows, in the edited model: what the attempt itself gives away. `found`
    says whether the original model shows in it that it knows the entity; where it does not, the attempt says nothing.
    """

    way: Way
    name: str
    measure: str
    found: bool
    original: float | None
    edited: float | None
    never_known: float | None


@dataclass(frozen=True)
class Returns:
    """What comes back, and how: every attempt in numbers. `untried` names what nobody tried."""

    attempts: tuple[Attempt, ...]
    untried: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A file that the record rests on, and its sha256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Record:
    """All of an erasure record; `versions` are those of the programs that edited and measured."""

    request: tuple[Field, ...]
    scope: Scope
    original: Original
    saved: tuple[Saved, ...]
    tested: tuple[Tested, ...]
    returns: Returns
    documents: tuple[Document, ...]
    versions: Mapping[str, str]

    @property
    def accepted(self) -> bool | None:
        """Whether all reports that judge accept the edit; None where none judges."""
        judged = [row.accepted for row in self.tested if row.accepted is not None]
        return all(judged) if judged else None

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {"format_version": FORMAT_VERSION, "accepted": self.accepted, **plain(self)}
