"""Results as JSON: what `report.json` and the option --json say. Pure: it reads no files and prints nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from amnesia.choice.results import Extraction
from amnesia.domain import ModelRef
from amnesia.edits import ColumnEdit, Edit
from amnesia.evaluation.comparison import ALL, Evaluation
from amnesia.evaluation.findings import by_severity, findings
from amnesia.evaluation.labels import kind_of
from amnesia.evaluation.results import Aggregate, Damage, Finding, PromptScore, StrengthSweep
from amnesia.files.typed_json import plain
from amnesia.localization.results import Localization
from amnesia.probes.results import Probes
from amnesia.report.content import FORMAT_VERSION, Tasks, TaskValue
from amnesia.stress.results import Relearning, Stress
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.manifest import Manifest, version_of


def localization_json(result: Localization) -> dict[str, Any]:
    """The ranked cells, as `localize -o` writes them."""
    return {
        "model": result.model,
        "baseline": result.baseline,
        "n_prompts": result.n_prompts,
        "n_skipped": result.n_skipped,
        "layers": list(result.layers),
        "entities": [
            {
                "entity": row.entity,
                "cells": [
                    {
                        "layer": cell.cell.layer,
                        "neuron": cell.cell.neuron,
                        "score": cell.score,
                        "mean_z": cell.mean_z,
                        "std_z": cell.std_z,
                    }
                    for cell in row.cells
                ],
            }
            for row in result.entities
        ],
    }


def extraction_json(result: Extraction) -> dict[str, Any]:
    """The chosen edit, as `extract -o` writes it and `edit --edit` reads it."""
    return {
        "entity": result.edits.entity,
        "verdict": result.verdict,
        "edits": [edit_json(edit) for edit in result.edits.edits],
        "target": {"knowledge_score": result.target},
        "control": {"knowledge_score": result.control},
        "candidates_tried": result.candidates_tried,
        **{
            name: plain(section)
            for name, section in (("answers", result.answers), ("screening", result.screening))
            if section is not None
        },
        "forms": [plain(row) for row in result.forms],
        "neighbors": [plain(row) for row in result.neighbors],
        "front": [plain(row.point) for row in result.front],
    }


def front_json(result: Extraction) -> dict[str, Any]:
    """All edits of a choice's front, as `run --front` writes them and `edit --edit FILE --pick N` reads them."""
    rows = [{**plain(row.point), "edits": [edit_json(edit) for edit in row.edits]} for row in result.front]
    return {"entity": result.edits.entity, "front": rows}


def edit_summary(edit: Edit) -> dict[str, Any]:
    """An edit as a report shows it: as the manifest has it, but of a direction only what it reads and what it changes.

    `read` is u on the columns; `write_norm` and `change_norm` are norms of v and of the change of the weights.
    """
    row = edit_json(edit)
    if isinstance(edit, ColumnEdit):
        return row
    read, write = (math.hypot(*vector.array.tolist()) for vector in (edit.read, edit.write))
    return {
        **{name: row[name] for name in ("layer", "token", "multiplier", "columns")},
        "read": [float(f"{number:.6g}") for number in edit.read.array.tolist()],
        "write_norm": write,
        "change_norm": abs(1.0 - edit.multiplier) * read * write,
        "of": edit.of,
    }


def report_json(
    evaluation: Evaluation,
    entity: str,
    model: ModelRef,
    edited: str | None,
    *,
    accepted: bool | None = None,
    extraction: Extraction | None = None,
    changed: Manifest | None = None,
    weights: Mapping[str, str] | None = None,
    sections: Mapping[str, Tasks | Stress | Relearning | Probes | StrengthSweep | None] | None = None,
    further: Sequence[Finding] = (),
) -> dict[str, Any]:
    """The content of `report.json`, which `report.schema.json` describes.

    `model` is the original, `edited` the name of what it is compared with. `changed` is the manifest of the edited
    model where there is one, and tells what the edit is; `weights` are the sha256 of its files of weights, by which is
    known that they were measured. `sections` are further ones, by their names, and `further`
    what they found; a section that is None is left out.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tool": {name: version_of(name) for name in ("amnesia", "torch", "transformers")},
        "model": model.portable.to_json(),
        "edited": edited,
        "entity": entity,
        "accepted": accepted,
        "findings": [plain(row) for row in by_severity((*findings(evaluation, entity), *further))],
        **(
            {}
            if extraction is None
            else {"extraction": {name: row for name, row in extraction_json(extraction).items() if name != "edits"}}
        ),
        **({} if changed is None else {"changed": changed_json(changed, weights)}),
        "aggregates": [_aggregate_json(row) for row in evaluation.aggregates],
        "damage": _damage_json(evaluation.damage),
        **{name: plain(row) for name, row in (sections or {}).items() if row is not None},
        "n_excluded": sum(row.excluded is not None and not row.is_message for row in evaluation.prompts),
        "prompts": [_with_kind(row) for row in evaluation.prompts],
    }


def tasks_of(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]] | None = None
) -> Tasks:
    """The metrics of lm-eval tasks, before and after; `after` is missing where one model was measured alone."""
    return Tasks(
        {
            task: {
                metric: TaskValue(value, None if after is None else after[task].get(metric))
                for metric, value in metrics.items()
            }
            for task, metrics in before.items()
        }
    )


def changed_json(manifest: Manifest, weights: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What an edit changed: cells with their multipliers, and columns of tensors with hashes before and after.

    `weights` has the sha256 of each file of weights by its name.
    """
    return {
        "edits": [edit_summary(edit) for group in manifest.edits for edit in group.edits],
        "tensors": [
            {
                "name": row.name,
                "file": row.file,
                "axis": row.axis,
                "indices": list(row.indices),
                "before": row.before,
                "after": row.after,
            }
            for row in manifest.tensors
        ],
        **({} if weights is None else {"weights": dict(weights)}),
    }


def _with_kind(row: PromptScore | Aggregate) -> dict[str, Any]:
    """All fields; role and split in one word."""
    rest = plain(row)
    del rest["role"], rest["split"]
    return {"kind": kind_of(row.role, row.split)} | rest


def _aggregate_json(row: Aggregate) -> dict[str, Any]:
    found = _with_kind(row)
    for when in ("before", "after"):
        found[when]["rank"] = {"median": found[when]["rank"]}
    return found


def _damage_json(damage: Damage) -> dict[str, Any]:
    perplexity = {"before": damage.perplexity_before, "after": damage.perplexity_after}
    return {
        "neutral_perplexity": perplexity | {"ratio": damage.perplexity_ratio},
        "texts": [plain(row) for row in damage.texts],
        "languages": [plain(row) for row in damage.languages],
        "ability": plain(damage.ability),
        "kl_controls": None if damage.kl_controls is None else plain(damage.kl_controls),
    }


def scores_summary(evaluation: Evaluation) -> dict[str, float | None]:
    """Mean knowledge scores by role and split, for the manifest."""
    return {
        kind_of(row.role, row.split): row.knowledge_score.mean for row in evaluation.aggregates if row.group == ALL
    } | {"neutral_perplexity_ratio": evaluation.damage.perplexity_ratio}
