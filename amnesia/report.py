"""Results as JSON and as a table for the terminal. Pure: it reads no files and prints nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from amnesia.choice.results import Answers, Extraction
from amnesia.domain import (
    Aggregate,
    ColumnEdit,
    Damage,
    Edit,
    Finding,
    Localization,
    ModelRef,
    PromptScore,
    columns_of,
    directions_of,
)
from amnesia.edit_rows import edit_json
from amnesia.evaluation import ALL, Evaluation
from amnesia.findings import by_severity, findings
from amnesia.labels import facts_label, kind_of
from amnesia.manifest import Manifest, version_of
from amnesia.numerals import token_name

FORMAT_VERSION = 3

MAX_SHOWN = 12
"""Target prompts in the table on the terminal, which should fit a screen; `report.json` has all."""

MARKS = {"damage": "DAMAGE:", "warning": "warning:", "info": "note:", "good": "good:"}


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
            name: dataclasses.asdict(section)
            for name, section in (("answers", result.answers), ("screening", result.screening))
            if section is not None
        },
    }


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
    sections: Mapping[str, Any] | None = None,
    further: Sequence[Finding] = (),
) -> dict[str, Any]:
    """The content of `report.json`, which `report.schema.json` describes.

    `model` is the original, `edited` the name of what it is compared with. `changed` is the manifest of the edited
    model where there is one, and tells what the edit is. `sections` are further ones, by their names, and `further`
    what they found.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tool": {name: version_of(name) for name in ("amnesia", "torch", "transformers")},
        "model": model.to_json(),
        "edited": edited,
        "entity": entity,
        "accepted": accepted,
        "findings": [dataclasses.asdict(row) for row in by_severity((*findings(evaluation, entity), *further))],
        **(
            {}
            if extraction is None
            else {"extraction": {name: row for name, row in extraction_json(extraction).items() if name != "edits"}}
        ),
        **({} if changed is None else {"changed": changed_json(changed)}),
        "aggregates": [_aggregate_json(row) for row in evaluation.aggregates],
        "damage": _damage_json(evaluation.damage),
        **(sections or {}),
        "n_excluded": sum(row.excluded is not None for row in evaluation.prompts),
        "prompts": [_with_kind(row) for row in evaluation.prompts],
    }


def tasks_json(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """The metrics of lm-eval tasks, before and after; `after` is missing where one model was measured alone."""
    return {
        "tasks": {
            task: {
                metric: {"before": value, "after": None if after is None else after[task].get(metric)}
                for metric, value in metrics.items()
            }
            for task, metrics in before.items()
        }
    }


def tasks_table(section: Mapping[str, Any]) -> str:
    """The metrics of lm-eval tasks on the terminal, without their standard errors."""
    lines = [f"{'lm-eval task':<32} {'metric':<24} {'before':>8} {'after':>8}"]
    for task, metrics in section["tasks"].items():
        for metric, values in metrics.items():
            if "stderr" not in metric:
                after = "" if values["after"] is None else f"{values['after']:.4f}"
                lines.append(
                    f"{_clip(task, 32):<32} {metric.partition(',')[0]:<24} {values['before']:>8.4f} {after:>8}"
                )
    return "\n".join(lines)


def changed_json(manifest: Manifest) -> dict[str, Any]:
    """What an edit changed: cells with their multipliers, and columns of tensors with hashes before and after."""
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
    }


def _with_kind(row: PromptScore | Aggregate) -> dict[str, Any]:
    """All fields; role and split in one word."""
    rest = dataclasses.asdict(row)
    del rest["role"], rest["split"]
    return {"kind": kind_of(row.role, row.split)} | rest


def _aggregate_json(row: Aggregate) -> dict[str, Any]:
    found = _with_kind(row)
    for when in ("before", "after"):
        found[when]["rank"] = {"median": found[when]["rank"]}
    return found


def _damage_json(damage: Damage) -> dict[str, Any]:
    before, after = damage.perplexity_before, damage.perplexity_after
    return {
        "neutral_perplexity": {"before": before, "after": after, "ratio": after / before},
        "texts": [dataclasses.asdict(row) for row in damage.texts],
        "kl_controls": None if damage.kl_controls is None else dataclasses.asdict(damage.kl_controls),
    }


def scores_summary(evaluation: Evaluation) -> dict[str, float | None]:
    """Mean knowledge scores by role and split, for the manifest."""
    return {
        kind_of(row.role, row.split): row.knowledge_score.mean for row in evaluation.aggregates if row.group == ALL
    } | {"neutral_perplexity_ratio": evaluation.damage.perplexity_after / evaluation.damage.perplexity_before}


def run_text(extraction: Extraction, evaluations: Mapping[str, Evaluation], accepted: bool) -> str:
    """What a run has to say on the terminal: the chosen edit, the before/after table, and the verdict."""
    entity, lines = extraction.edits.entity, [extraction_text(extraction)]
    for name, evaluation in evaluations.items():
        lines += ["", f"{entity}, before and after ({name}, as saved)", "", evaluation_table(evaluation, entity)]
    if not evaluations:
        found = "no handle on the entity was found" if extraction.verdict == "none" else "only a weak handle was found"
        remedy = "" if extraction.verdict == "none" else "; --force writes it all the same"
        lines.append(f"{found}, so nothing was written{remedy}")
    else:
        lines += ["", "accepted" if accepted else "not accepted: the bounds of the recipe's [accept] are missed"]
    return "\n".join(lines)


def extraction_text(extraction: Extraction) -> str:
    """The chosen edit in a line, and what its directions answer to in one each."""
    handle = "no handle, at best" if extraction.verdict == "none" else f"{extraction.verdict} handle:"
    chosen = (
        f"{extraction.edits.entity}: {handle} {edits_text(extraction.edits.edits)}, the best of "
        f"{extraction.candidates_tried} tried (target {extraction.target:.2f}, controls {extraction.control:.2f})"
    )
    return "\n".join([chosen, *(() if extraction.answers is None else answers_lines(extraction.answers))])


def answers_lines(answers: Answers) -> list[str]:
    """What each direction answers to, in a line: the median of |uᵀa| for each group, and its 99th percentile."""
    names = {"entity": "the name", "names": "other names", "text": "text"}
    parts: dict[tuple[int, int], list[str]] = {}
    for row in answers.rows:
        shown = f"{row.median:.2f} (99 %: {row.percentile_99:.2f}) at {names[row.group]}"
        parts.setdefault((row.layer, row.token), []).append(shown)
    return [
        f"  layer {layer} at the {token_name(token)} answers {', '.join(own)}" for (layer, token), own in parts.items()
    ]


def edits_text(edits: Sequence[Edit]) -> str:
    """What an edit changes, in one line: scaled cells, and directions with layer, multiplier and number of columns."""
    parts = [str(edit) for edit in columns_of(edits)]
    for edit in directions_of(edits):
        place = f"layer {edit.layer} at the {token_name(edit.token)}"
        parts.append(f"{place} × {edit.multiplier:g} on {len(edit.columns)} columns")
    return ", ".join(parts) or "nothing"


def localization_table(result: Localization) -> str:
    """Ranked cells of each entity."""
    lines = [f"{result.model}, baseline {result.baseline}, {result.n_prompts} prompts, {result.n_skipped} skipped"]
    for row in result.entities:
        lines += ["", row.entity, f"{'cell':>10} {'score':>10} {'mean z':>8} {'std z':>8}"]
        lines += [f"{cell.cell!s:>10} {cell.score:>10.1f} {cell.mean_z:>8.2f} {cell.std_z:>8.2f}" for cell in row.cells]
    return "\n".join(lines)


def evaluation_table(evaluation: Evaluation, entity: str) -> str:
    """Some target facts with the answers generated before and after, all means, damage, findings."""
    targets = [row for row in evaluation.prompts if row.role == "target" and row.knowledge_score is not None]
    lines = [f"{'prompt':<44} {'before':<24} {'after':<24} {'score':>6}", "─" * 101]
    # Evenly spaced, so that held-out wordings are among them.
    for row in targets[:: max(1, math.ceil(len(targets) / MAX_SHOWN))]:
        lines.append(
            f"{_clip(row.prompt, 44):<44} {_clip(row.before.generated, 24):<24} "
            f"{_clip(row.after.generated, 24):<24} {row.knowledge_score:>6.2f}"
        )
    lines += [
        "",
        f"{'knowledge score (1 as before, 0 like an unknown name)':<54} {'mean':>6}  {'95 % interval':<15} "
        f"{'right answers':<14} facts",
    ]
    for row in (row for row in evaluation.aggregates if row.group == ALL):
        excluded = f" ({row.n_excluded} not known, excluded)" if row.n_excluded else ""
        score = row.knowledge_score
        interval = f"[{score.low:.2f}, {score.high:.2f}]"
        right = (
            f"{row.before.exact_match.mean:.0%} → {row.after.exact_match.mean:.0%}"
            if row.before.exact_match is not None and row.after.exact_match is not None
            else ""
        )
        label = facts_label(row.role, row.split, others="controls")
        lines.append(f"  {label:<52} {score.mean:>6.2f}  {interval:<15} {right:<14} {row.n}{excluded}")
    damage = evaluation.damage
    before, after = damage.perplexity_before, damage.perplexity_after
    lines.append(
        f"  {'perplexity per word, neutral text':<52} {before:>6.1f} → {after:.1f} ({after / before - 1:+.1%})"
    )
    if damage.kl_controls is not None:
        shown = f"{damage.kl_controls.mean:>6.3f} nats per token"
        lines.append(f"  {'divergence from the original, texts about others':<52} {shown}")
    lines.append("")
    lines += [f"{MARKS[row.level]} {row.text}" for row in findings(evaluation, entity)]
    return "\n".join(lines)


def _clip(text: str | None, width: int) -> str:
    """One line of at most `width` characters; a cut is shown."""
    flat = " ".join((text or "").split()) or "(nothing)"
    return flat if len(flat) <= width else flat[: width - 1] + "…"
