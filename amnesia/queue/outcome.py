"""What came of one entity: a folder with its recipe, its edit, and what that does alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from amnesia.choice.results import Extraction
from amnesia.domain import ModelRef, name_key
from amnesia.edits import EntityEdits
from amnesia.errors import InputError, os_errors_as
from amnesia.evaluation.comparison import Evaluation
from amnesia.facts.names import share_words
from amnesia.files.companions import PAGE_NAME, REPORT_NAME
from amnesia.files.disk import read_small
from amnesia.files.staging import staged_output
from amnesia.files.strict_json import StrictJson, json_bytes
from amnesia.files.typed_json import TypedJson, plain
from amnesia.outputs.write import edits_from_file
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe
from amnesia.report import document
from amnesia.report.page import report_html

RESULT_NAME, RECIPE_NAME, EDIT_NAME = "result.json", "recipe.toml", "edit.json"
_MAX_RESULT = 2**20


@dataclass(frozen=True)
class Scores:
    """Mean knowledge scores (1 as before, 0 as for an unknown name) and the ratio of perplexities of neutral text."""

    target: float | None
    held_out_target: float | None
    control: float | None
    held_out_control: float | None
    perplexity_ratio: float

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scores:
        """Those of an evaluation."""
        return cls(
            *(evaluation.mean(role, split) for role in ("target", "control") for split in ("search", "held_out")),
            evaluation.damage.perplexity_ratio,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of an entity: how good its edit is, "unknown" with a reason where none could be looked for.

    `scores` are those of its edit alone, and `accepted` says whether they meet the bounds of its recipe; there are none
    of an edit that is not to be written.
    """

    entity: str
    verdict: Literal["strong", "weak", "none", "unknown"]
    reason: str | None = None
    accepted: bool = False
    scores: Scores | None = None


def write_unknown(folder: Path, entity: str, reason: str) -> None:
    """Say in the entity's folder why there is no edit for it."""
    with staged_output(folder) as staging:
        (staging / RESULT_NAME).write_bytes(json_bytes(plain(Outcome(entity, "unknown", reason))))


def write_outcome(
    folder: Path, entity: str, recipe: Recipe, extraction: Extraction, evaluation: Evaluation | None, model: ModelRef
) -> Outcome:
    """Write the entity's folder, whole or not at all; `evaluation` is that of its edit alone, where it was measured."""
    accepted = evaluation is not None and evaluation.accepted(recipe.accept)
    scores = None if evaluation is None else Scores.of(evaluation)
    outcome = Outcome(entity, extraction.verdict, None, accepted, scores)
    with staged_output(folder) as staging:
        (staging / RECIPE_NAME).write_text(recipe.text, encoding="utf-8")
        (staging / EDIT_NAME).write_bytes(json_bytes(document.extraction_json(extraction)))
        if evaluation is not None:
            report = document.report_json(
                evaluation, recipe.target.entity, model, "in memory", accepted=accepted, extraction=extraction
            )
            (staging / REPORT_NAME).write_bytes(json_bytes(report))
            (staging / PAGE_NAME).write_bytes(report_html(report).encode())
        (staging / RESULT_NAME).write_bytes(json_bytes(plain(outcome)))
    return outcome


def read_outcome(folder: Path) -> Outcome:
    """The outcome in a folder; raises InputError for what is none."""
    path = folder / RESULT_NAME
    check = StrictJson(str(path), InputError, "choose another output, and begin again")
    with os_errors_as(InputError, f"{path} cannot be read", "choose another output, and begin again"):
        content = read_small(path, _MAX_RESULT)
    return TypedJson(check, {}).dataclass(Outcome, check.parse(content))


def read_edits(folder: Path, entity: str) -> EntityEdits:
    """The edit in an entity's folder."""
    (found,) = edits_from_file(folder / EDIT_NAME)
    return replace(found, entity=entity)


def read_recipe(folder: Path, entity: str) -> Recipe:
    """The recipe in an entity's folder, for which the entity's name may be spelled otherwise."""
    return load_recipe(folder / RECIPE_NAME, entity)


def without_listed(recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    """The recipe without controls that are about another of `names`, or have one for an answer: these are to go.

    Raises InputError when no search controls are left.
    """
    others = [name for name in names if name_key(name) != name_key(recipe.target.entity)]
    controls = tuple(
        fact
        for fact in recipe.controls
        if not share_words(fact.entity, others) and not share_words(fact.answer, others)
    )
    if not any(fact.split == "search" for fact in controls):
        raise InputError(
            f"no search controls of {recipe.target.entity!r} are about anybody who is not listed: write a recipe with "
            "facts about others"
        )
    return replace(recipe, controls=controls)
