"""Which result files a command may write over: those that have exactly the form of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amnesia.choice.results import Answers, FormResult, FrontPoint, NeighborResult, Screening, Verdict
from amnesia.domain import Cell
from amnesia.edits import Edit
from amnesia.errors import OutputError
from amnesia.files.strict_json import StrictJson
from amnesia.files.typed_json import TypedJson
from amnesia.localization.results import CellScore, Localization
from amnesia.weights.edit_rows import read_edit

Check = Callable[[Path, bytes], None]
"""Raises OutputError unless a file with this content may be written over."""


@dataclass(frozen=True)
class _Score:
    knowledge_score: float


@dataclass(frozen=True)
class _Extraction:
    """What `report.document.extraction_json` writes."""

    entity: str
    verdict: Verdict
    edits: tuple[Edit, ...]
    target: _Score
    control: _Score
    candidates_tried: int
    forms: tuple[FormResult, ...]
    neighbors: tuple[NeighborResult, ...]
    front: tuple[FrontPoint, ...]
    answers: Answers | None = None
    screening: Screening | None = None


@dataclass(frozen=True)
class _Extractions:
    entities: tuple[_Extraction, ...]


@dataclass(frozen=True)
class _FrontRow(FrontPoint):
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class _Front:
    """What `report.document.front_json` writes."""

    entity: str
    front: tuple[_FrontRow, ...]


def _cell_score(reader: TypedJson, value: object, key: str) -> CellScore:
    check = reader.check
    row = check.object(value, key, "layer neuron score mean_z std_z")
    layer, neuron = (check.integer(row[name], f"{key}.{name}") for name in ("layer", "neuron"))
    score, mean_z, std_z = (check.number(row[name], f"{key}.{name}") for name in ("score", "mean_z", "std_z"))
    return CellScore(Cell(layer, neuron), score, mean_z, std_z)


_FORMS: dict[Any, Callable[[TypedJson, object, str], Any]] = {
    CellScore: _cell_score,
    Edit: lambda reader, value, _: read_edit(reader.check, value),
}


def _check(command: str, kinds: Mapping[str, type], path: Path, content: bytes) -> None:
    """`kinds` are the forms of a result by a key that only it has, that of all others under the empty key."""
    source = f"{path} exists, and is no result of amnesia as `amnesia {command}` writes it: it"
    check = StrictJson(source, OutputError, "choose another file, or remove it")
    document = check.mapping(check.parse(content), "the file")
    kind = next((kind for key, kind in kinds.items() if key in document), kinds[""])
    TypedJson(check, _FORMS).dataclass(kind, document)


check_localization: Check = partial(_check, "localize -o", {"": Localization})
check_extraction: Check = partial(_check, "extract -o", {"entities": _Extractions, "": _Extraction})
check_front: Check = partial(_check, "run --front", {"": _Front})
