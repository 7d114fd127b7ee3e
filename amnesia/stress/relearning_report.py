"""What training brought back, in plain sentences and as a table for the terminal. Pure: it prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from amnesia.evaluation.findings import CONTROLS_DAMAGED, FORGOTTEN_HELD_OUT
from amnesia.evaluation.results import Finding
from amnesia.numbers import signed
from amnesia.stress.findings import GIVEN_AWAY, is_back
from amnesia.stress.report import mean_text
from amnesia.stress.results import (
    AS_MESSAGE,
    TRAINED_ABOUT,
    TRAINED_MODELS,
    TRAINED_ON,
    Relearning,
    RelearningResult,
    Runs,
    by_training,
)


def relearning_findings(relearning: Relearning, entity: str) -> tuple[Finding, ...]:
    """What came back, after how many steps, and whether more easily than after LoRA unlearning; most severe first."""
    # A training may have failed for one model alone.
    trainings = {key: runs for key, runs in by_training(relearning).items() if ("edited", "entity") in runs}
    edited = [runs["edited", "entity"] for runs in trainings.values()]
    if not edited:
        reason = next(run.not_applicable for run in relearning.runs if run.model == "edited")
        return (Finding("info", f"Relearning was not tried: {reason}."),)
    if (start := edited[0].steps[0].knowledge_score.mean) > FORGOTTEN_HELD_OUT:
        text = (
            f"Before training {entity} has a knowledge score of {signed(start)}: relearning says nothing of the edit."
        )
        return (Finding("info", text),)
    found = [
        finding
        for key, runs in trainings.items()
        for form in ("", AS_MESSAGE)
        for finding in _back(key, runs, entity, form)
    ]
    if not found:
        most = edited[0].steps[-1].step
        found = [Finding("good", f"No training of {most} steps brought {entity} back.")]
    return (*found, *_against_peer(trainings, entity))


def _back(key: tuple[str, str], runs: Runs, entity: str, form: str) -> Iterator[Finding]:
    if ("edited", f"entity{form}") not in runs or (place := first_back(runs, "edited", form)) is None:
        return
    step, given, *original = (
        runs[model, subject + form].steps[place]
        for model, subject in (("edited", "entity"), ("edited", "never_known"), ("original", "entity"))
        if (model, subject + form) in runs
    )
    beside = "".join(
        f", the original model after the same training {signed(row.knowledge_score.mean)}" for row in original
    )
    yield Finding(
        "warning",
        f"{entity} comes back{', asked in messages,' if form else ''} after {step.step} steps of fine-tuning "
        f"({key[1]}) on {TRAINED_ON[key[0]]}: knowledge "
        f"score {signed(step.knowledge_score.mean)} (invented name {signed(given.knowledge_score.mean)}{beside}).",
    )


def first_back(runs: Runs, model: str, form: str = "") -> int | None:
    """The place of the first step at which the entity is back, or None where it never is.

    `form` is `AS_MESSAGE` where it is asked about in messages.
    """
    pairs = zip(runs[model, f"entity{form}"].steps, runs[model, f"never_known{form}"].steps, strict=True)
    return next(
        (n for n, (own, given) in enumerate(pairs) if is_back(own.knowledge_score.mean, given.knowledge_score.mean)),
        None,
    )


def _against_peer(trainings: Mapping[tuple[str, str], Runs], entity: str) -> Iterator[Finding]:
    compared = {key: runs for key, runs in trainings.items() if ("unlearned", "entity") in runs}
    if not compared:
        return
    start = next(iter(compared.values()))["unlearned", "entity"].steps[0]
    name = "LoRA unlearning of the same facts (NPO with a KL term)"
    if start.knowledge_score.mean > FORGOTTEN_HELD_OUT:
        left = signed(start.knowledge_score.mean)
        text = f"{name} left {entity} at {left}, so that relearning is compared with nothing."
        yield Finding("info", text)
        return
    easier = [f"{way} on {text}" for (text, way), runs in compared.items() if comes_back_easier(runs)]
    if easier:
        yield Finding(
            "warning",
            f"The edit comes back more easily than {name} in {len(easier)} of {len(compared)} trainings: "
            f"{', '.join(easier)}.",
        )
    else:
        yield Finding("good", f"In none of {len(compared)} trainings does the edit come back more easily than {name}.")
    if start.control is not None and start.control.mean < CONTROLS_DAMAGED:
        yield Finding("info", f"{name} kept {signed(start.control.mean)} of what is known about others.")


def comes_back_easier(runs: Runs) -> bool:
    """Whether the edited model is back at an earlier step than the unlearned one, or else ends clearly higher."""
    own, other = (first_back(runs, model) for model in ("edited", "unlearned"))
    if own != other:
        return own is not None and (other is None or own < other)
    ends = [runs[model, "entity"].steps[-1].knowledge_score.mean for model in ("edited", "unlearned")]
    return ends[0] - ends[1] > GIVEN_AWAY


def relearning_text(relearning: Relearning, entity: str) -> str:
    """Knowledge scores by step of each training, and what they come to."""
    steps = next((run.steps for run in relearning.runs if run.steps), ())
    width = max(58, *(len(_name(run)) + 1 for run in relearning.runs))
    lines = [
        f"{entity} after fine-tuning: mean knowledge score, {relearning.n_facts} fact{'s' * (relearning.n_facts != 1)}",
        f"LoRA unlearning (NPO with a KL term) took {relearning.unlearning_steps} steps"
        if relearning.no_unlearning is None
        else f"no LoRA unlearning to compare with: {relearning.no_unlearning}",
        "",
        f"{'trained on; asked about':<{width}}" + "".join(f"{f'step {step.step}':>9}" for step in steps),
    ]
    for run in relearning.runs:
        if run.not_applicable is not None:
            lines.append(f"{_name(run)}  not applicable: {run.not_applicable}")
            continue
        scores = "".join(f"{signed(step.knowledge_score.mean):>9}" for step in run.steps)
        lines.append(f"{_name(run):<{width}}{scores}")
        if run.subject.removesuffix(AS_MESSAGE) == "entity" and all(step.control for step in run.steps):
            lines.append(f"{'  others':<{width}}" + "".join(f"{mean_text(step.control):>9}" for step in run.steps))
    return "\n".join([*lines, "", *(f"{row.level}: {row.text}" for row in relearning_findings(relearning, entity))])


def _name(run: RelearningResult) -> str:
    who = TRAINED_ABOUT[run.subject]
    return f"{run.text}, {run.way}, {TRAINED_MODELS[run.model]}" + (who and f"; {who}")
