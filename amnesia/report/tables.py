"""What the terminal shows of results, as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from amnesia.choice.results import Answers, Extraction, NeighborResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import Format, n_columns
from amnesia.edits import Edit, columns_of, directions_of, token_name
from amnesia.evaluation.comparison import ALL, Evaluation
from amnesia.evaluation.findings import findings
from amnesia.evaluation.labels import facts_label
from amnesia.evaluation.results import MESSAGES, Ability, Aggregate, Damage, LanguageScore, PromptScore
from amnesia.localization.results import Localization
from amnesia.numbers import change, flat, plus, positive, share, signed, tried
from amnesia.report.content import Tasks

MAX_SHOWN = 12
"""Target prompts in the table on the terminal, which should fit a screen; `report.json` has all."""


MARKS = {"damage": "DAMAGE:", "warning": "warning:", "info": "note:", "good": "good:"}


def tasks_table(found: Tasks) -> str:
    """The metrics of lm-eval tasks on the terminal, without their standard errors."""
    rows = [
        (task, metric.partition(",")[0], values)
        for task, metrics in found.tasks.items()
        for metric, values in metrics.items()
        if "stderr" not in metric
    ]
    alone = all(values.after is None for _, _, values in rows)
    lines = [f"{'lm-eval task':<32} {'metric':<24} " + ("   value" if alone else f"{'before':>8} {'after':>8}")]
    for task, metric, values in rows:
        after = "" if values.after is None else f" {values.after:>8.4f}"
        lines.append(f"{_clip(task, 32):<32} {metric:<24} {values.before:>8.4f}{after}")
    return "\n".join(lines)


def run_text(extraction: Extraction, evaluations: Mapping[Format, Evaluation], accepted: bool) -> str:
    """What a run has to say on the terminal: the chosen edit, the before/after table, and the verdict."""
    entity, lines = extraction.edits.entity, [extraction_text(extraction)]
    tables: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        tables.setdefault(evaluation_table(evaluation, entity), []).append(name)
    for table, names in tables.items():
        lines += ["", f"{entity}, before and after ({' and '.join(names)}, as saved)", "", table]
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
        f"{extraction.edits.entity}: {handle} {edits_text(extraction.edits.edits)}, "
        f"{tried(extraction.candidates_tried)} (over search facts in every form: target {signed(extraction.target)}, "
        f"controls {signed(extraction.control)})"
    )
    return "\n".join(
        [chosen, *(() if extraction.answers is None else answers_lines(extraction.answers)), *around_lines(extraction)]
    )


def around_lines(extraction: Extraction) -> list[str]:
    """Other forms of the name and its neighbors, in a line each: what could not be forgotten or kept comes first."""
    forms = sorted(extraction.forms, key=lambda row: -row.after)
    neighbors = sorted(extraction.neighbors, key=lambda row: row.score)
    parts = (
        ("other forms of the name", [f"{row.name} {signed(row.before)} → {signed(row.after)}" for row in forms]),
        ("neighbors, 1 is untouched", [f"{row.name} {signed(row.score)}" for row in neighbors]),
    )
    return [f"  {label}: {', '.join(found)}" for label, found in parts if found]


def neighbors_line(rows: Sequence[NeighborResult]) -> str | None:
    """Which neighbors of names an edit takes along, with their scores; None where it keeps all of them."""
    lost = sorted((row for row in rows if row.score < ChoiceSettings.min_neighbor), key=lambda row: row.score)
    shown = ", ".join(f"{row.name} {signed(row.score)}" for row in lost)
    return f"what the model says of neighbors is lost in part (1 is untouched): {shown}" if lost else None


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
    """What an edit changes, in one line: scaled cells, and directions with layer, multiplier and number of columns.

    Of several, of which one is a direction, the columns of all are counted once more, each of them once.
    """
    cells, directions = columns_of(edits), directions_of(edits)
    total = f": {n_columns(edits)} columns in all" if directions and len(edits) > 1 else ""
    return f"{', '.join(map(str, (*cells, *directions))) or 'nothing'}{total}"


def localization_table(result: Localization) -> str:
    """Ranked cells of each entity."""
    lines = [f"{result.model}, baseline {result.baseline}, {result.n_prompts} prompts, {result.n_skipped} skipped"]
    for row in result.entities:
        lines += ["", row.entity, f"{'cell':>10} {'score':>10} {'mean z':>8} {'std z':>8}"]
        lines += [f"{cell.cell!s:>10} {cell.score:>10.1f} {cell.mean_z:>8.2f} {cell.std_z:>8.2f}" for cell in row.cells]
    return "\n".join(lines)


def evaluation_table(evaluation: Evaluation, entity: str) -> str:
    """Some target facts with the answers generated before and after, all means, damage, findings.

    Of one model alone what it writes, and how much of it is right.
    """
    lines = _known_lines(evaluation) if evaluation.alone else _compared_lines(evaluation)
    lines.append("")
    lines += [f"{MARKS[row.level]} {row.text}" for row in findings(evaluation, entity)]
    return "\n".join(lines)


def _shown_targets(evaluation: Evaluation) -> list[PromptScore]:
    """Some scored facts about the target."""
    # Messages begin with what every message begins with, which is all that a line would show.
    asked = [row for row in evaluation.prompts if row.role == "target" and not row.is_message]
    targets = [row for row in asked if row.knowledge_score is not None]
    # Evenly spaced, so that held-out wordings are among them.
    return targets[:: max(1, math.ceil(len(targets) / MAX_SHOWN))]


def _known_lines(evaluation: Evaluation) -> list[str]:
    """What one model knows; a score of its own answers against themselves would say nothing."""
    lines = [f"{'prompt':<44} {'answer':<24} the model writes", "-" * 101]
    for row in _shown_targets(evaluation):
        lines.append(f"{_clip(row.prompt, 44):<44} {_clip(row.answer, 24):<24} {_clip(row.before.generated, 31)}")
    lines += ["", f"{'what the model knows':<54} {'right answers':<14} facts"]
    for label, row in _labelled(evaluation):
        right = "" if row.before.exact_match is None else share(row.before.exact_match.mean)
        lines.append(f"  {label:<52} {right:<14} {_count(row)}")
    damage = evaluation.damage
    lines.append(f"  {'perplexity per word, neutral text':<52} {positive(damage.perplexity_before)}")
    for row in damage.languages:
        lines.append(f"    {_language(row):<50} {positive(row.perplexity_before)}")
    if damage.ability is not None:
        lines.append(f"  {_ability(damage.ability):<52} {share(damage.ability.before.mean, 1)}")
    return lines


def _compared_lines(evaluation: Evaluation) -> list[str]:
    lines = [f"{'prompt':<44} {'before':<24} {'after':<24} {'score':>6}", "-" * 101]
    for row in _shown_targets(evaluation):
        assert row.knowledge_score is not None, "only scored facts are shown"
        lines.append(
            f"{_clip(row.prompt, 44):<44} {_clip(row.before.generated, 24):<24} "
            f"{_clip(row.after.generated, 24):<24} {signed(row.knowledge_score):>6}"
        )
    lines += [
        "",
        f"{'knowledge score (1 as before, 0 like an unknown name)':<54} {'mean':>6}  {'95 % interval':<15} "
        f"{'right answers':<14} facts",
    ]
    for label, row in _labelled(evaluation):
        score = row.knowledge_score
        interval = f"[{signed(score.low)}, {signed(score.high)}]"
        right = (
            f"{share(row.before.exact_match.mean)} → {share(row.after.exact_match.mean)}"
            if row.before.exact_match is not None and row.after.exact_match is not None
            else ""
        )
        lines.append(f"  {label:<52} {signed(score.mean):>6}  {interval:<15} {right:<14} {_count(row)}")
    damage = evaluation.damage
    lines.append(f"  {'perplexity per word, neutral text':<52} {_perplexity(damage)}")
    for row in damage.languages:
        lines.append(f"    {_language(row):<50} {_perplexity(row)}")
    if damage.ability is not None:
        before, after = (share(each.mean, 1) for each in (damage.ability.before, damage.ability.after))
        low, high = (100 * bound for bound in (damage.ability.change.low, damage.ability.change.high))
        shown = f"{before:>7} → {after} (change {plus(low)} to {plus(high)} points)"
        lines.append(f"  {_ability(damage.ability):<52} {shown}")
    if damage.kl_controls is not None:
        shown = f"{damage.kl_controls.mean:>6.3f} nats per token"
        lines.append(f"  {'divergence from the original, texts about others':<52} {shown}")
    return lines


def _labelled(evaluation: Evaluation) -> Iterator[tuple[str, Aggregate]]:
    """The means of each role and split with their labels: as text, and as messages where these were asked."""
    rows = [row for row in evaluation.aggregates if row.group in (ALL, MESSAGES)]
    asked = {(row.role, row.split) for row in rows if row.group == MESSAGES}
    for row in rows:
        as_text = ", as text" if (row.role, row.split) in asked else ""
        label = facts_label(row.role, row.split, others="controls") + as_text
        yield "  as messages" if row.group == MESSAGES else label, row


def _count(row: Aggregate) -> str:
    return f"{row.n} ({row.n_excluded} not known, excluded)" if row.n_excluded else str(row.n)


def _language(row: LanguageScore) -> str:
    return f"{row.language}: {row.bits_before:.2f} bits per character{'' if row.fluent else ', not fluent'}"


def _ability(row: Ability) -> str:
    return f"general ability, {row.n} questions (chance {share(row.chance)})"


def _perplexity(row: Damage | LanguageScore) -> str:
    before, after = positive(row.perplexity_before), positive(row.perplexity_after)
    return f"{before:>6} → {after} ({change(row.perplexity_ratio)})"


def _clip(text: str | None, width: int) -> str:
    """One line of at most `width` characters; a cut is shown."""
    return flat(text or "", width) or "(nothing)"
