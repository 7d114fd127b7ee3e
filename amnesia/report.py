"""Results as JSON and as a table for the terminal. Pure: it reads no files and prints nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from amnesia.domain import ColumnEdit, Extraction, Localization
from amnesia.evaluation import Evaluation

LABELS = {
    "target": "target, search wordings",
    "held_out_target": "target, held-out wordings",
    "control": "controls, search",
    "held_out_control": "controls, held-out",
}


def to_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON as it is written to files: indented, UTF-8, keys in the order given, NaN refused."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


def edits_json(edits: Sequence[ColumnEdit]) -> list[dict[str, Any]]:
    """Edits as the manifest and `extract -o` write them."""
    return [
        {
            "layer": edit.cell.layer,
            **({} if edit.cell.expert is None else {"expert": edit.cell.expert}),
            "neuron": edit.cell.neuron,
            "multiplier": edit.multiplier,
        }
        for edit in edits
    ]


def extraction_json(result: Extraction) -> dict[str, Any]:
    """The chosen edit, as `extract -o` writes it and `edit --edit` reads it."""
    return {
        "entity": result.entity,
        "verdict": result.verdict,
        "edits": edits_json(result.edits),
        "target": {"knowledge_score": result.target},
        "control": {"knowledge_score": result.control},
        "candidates_tried": result.candidates_tried,
    }


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Aggregates with their intervals, perplexities, and every prompt."""
    return {
        "aggregates": [dataclasses.asdict(row) for row in evaluation.aggregates],
        "neutral_perplexity": {"before": evaluation.perplexity_before, "after": evaluation.perplexity_after},
        "n_excluded": sum(row.excluded is not None for row in evaluation.prompts),
        "prompts": [dataclasses.asdict(row) for row in evaluation.prompts],
    }


def scores_summary(evaluation: Evaluation) -> dict[str, float | None]:
    """Mean knowledge scores by kind, for the manifest."""
    return {row.kind: row.mean for row in evaluation.aggregates} | {
        "neutral_perplexity_ratio": evaluation.perplexity_after / evaluation.perplexity_before
    }


def run_text(entity: str, extraction: Extraction, evaluations: Mapping[str, Evaluation], accepted: bool) -> str:
    """What a run has to say on the terminal: the chosen edit, the before/after table, and the verdict."""
    lines = [extraction_text(extraction)]
    for name, evaluation in evaluations.items():
        lines += ["", f"{entity}, before and after ({name}, as saved)", "", evaluation_table(evaluation)]
    if not evaluations:
        lines.append("no handle on the entity was found, so nothing was written")
    else:
        lines += ["", "accepted" if accepted else "not accepted: the bounds of the recipe's [accept] are missed"]
    return "\n".join(lines)


def extraction_text(extraction: Extraction) -> str:
    """The chosen edit in two lines."""
    cells = ", ".join(map(str, extraction.edits)) or "none"
    handle = "no handle, at best" if extraction.verdict == "none" else f"{extraction.verdict} handle of"
    return (
        f"{extraction.entity}: {handle} {len(extraction.edits)} cells out of "
        f"{extraction.candidates_tried} (target {extraction.target:.2f}, controls {extraction.control:.2f})\n"
        f"cells: {cells}"
    )


def localization_table(result: Localization) -> str:
    """Ranked cells of each entity."""
    lines = [f"{result.model}, baseline {result.baseline}, {result.n_prompts} prompts, {result.n_skipped} skipped"]
    for row in result.entities:
        lines += ["", row.entity, f"{'cell':>10} {'score':>10} {'mean z':>8} {'std z':>8}"]
        lines += [f"{cell.cell!s:>10} {cell.score:>10.1f} {cell.mean_z:>8.2f} {cell.std_z:>8.2f}" for cell in row.cells]
    return "\n".join(lines)


def evaluation_table(evaluation: Evaluation) -> str:
    """Target facts with the answers generated before and after, then the mean knowledge scores of every kind."""
    lines = [f"{'prompt':<44} {'before':<24} {'after':<24} {'score':>6}", "─" * 101]
    for row in evaluation.prompts:
        if "target" in row.kind and row.knowledge_score is not None:
            lines.append(
                f"{_clip(row.prompt, 44):<44} {_clip(row.generated_before, 24):<24} "
                f"{_clip(row.generated_after, 24):<24} {row.knowledge_score:>6.2f}"
            )
    lines += [
        "",
        f"{'knowledge score (1 as before, 0 like an unknown name)':<54} {'mean':>6}  {'95 % interval':<15} facts",
    ]
    for row in evaluation.aggregates:
        excluded = f" ({row.n_excluded} not known, excluded)" if row.n_excluded else ""
        interval = f"[{row.low:.2f}, {row.high:.2f}]"
        lines.append(f"  {LABELS[row.kind]:<52} {row.mean:>6.2f}  {interval:<15} {row.n}{excluded}")
    before, after = evaluation.perplexity_before, evaluation.perplexity_after
    lines.append(
        f"  {'perplexity per word, neutral text':<52} {before:>6.1f} → {after:.1f} ({after / before - 1:+.1%})"
    )
    return "\n".join(lines)


def _clip(text: str | None, width: int) -> str:
    """One line of at most `width` characters; a cut is shown."""
    flat = " ".join((text or "").split()) or "(nothing)"
    return flat if len(flat) <= width else flat[: width - 1] + "…"
