"""Proof by asking: a model that was edited must answer about its targets otherwise than its base.

Bytes prove a folder; they say nothing about a model that was merged elsewhere, or about an adapter that a program has
silently left out. Both models are loaded with the plain libraries and asked for the log-probabilities of the answers.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.errors import InputError, RecipeError, VerificationError
from amnesia.evaluation.measurement import measure
from amnesia.facts.questions import questions_of
from amnesia.files.staging import MANIFEST_NAME
from amnesia.live.loading import load_source, loaded
from amnesia.progress import Tracker
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe, parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.weights.adapter import CONFIG_NAME
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest

MIN_CHANGE = 0.1
"""Nats. An edit worth making moves answers by a nat and more; rounding to 16 bits moves them by hundredths."""


@dataclass(frozen=True)
class BehaviourReport:
    """Mean log-probabilities (nats) of the answers to the target facts, and their mean absolute change."""

    n_targets: int
    before: float
    after: float
    change: float


def check_behaviour(
    output: Path,
    tracker: Tracker,
    *,
    base: str | None = None,
    recipe_path: Path | None = None,
) -> BehaviourReport:
    """Compare the answers of an output, or of any model or adapter in a folder, with those of its base.

    Base and facts are those of the manifest unless they are given. Raises VerificationError when the answers are as
    before, and InputError when base or facts are not known.
    """
    manifest = read_manifest(output) if (output / MANIFEST_NAME).exists() else None
    if base is None:
        if manifest is None:
            raise InputError(f"{output} has no {MANIFEST_NAME} that names its base: give it with --base")
        base = str(manifest.base)
    name = "adapter" if (output / CONFIG_NAME).exists() else "safetensors" if manifest is None else manifest.format
    recipes = _recipes(output, manifest, recipe_path)
    questions = [row for recipe in recipes for row in questions_of(recipe)]
    pairs = list(dict.fromkeys(row.pair for row in questions if row.role == "target"))
    source = resolve(base, notice=tracker.notice)
    live = load_source(source)
    with tracker.task("asking the base") as progress:
        before = measure(live, pairs, progress)
    del live
    gc.collect()
    with loaded(name, source, output) as edited, tracker.task("asking the edited model") as progress:
        after = measure(edited, pairs, progress)
    totals = [(before[pair].logprob, after[pair].logprob) for pair in pairs]
    report = BehaviourReport(
        n_targets=len(pairs),
        before=sum(old for old, _ in totals) / len(pairs),
        after=sum(new for _, new in totals) / len(pairs),
        change=sum(abs(new - old) for old, new in totals) / len(pairs),
    )
    if report.change < MIN_CHANGE:
        raise VerificationError(
            f"{output} answers {report.n_targets} target facts as {base} does (mean change {report.change:.3f} nats, "
            f"expected {MIN_CHANGE} or more): the edit is not in what was loaded, merge or load it again"
        )
    return report


def _recipes(output: Path, manifest: Manifest | None, path: Path | None) -> Sequence[Recipe]:
    """The recipe of each entity that the output was edited for."""
    if path is not None:
        try:
            return [load_recipe(path)]  # Its one entity, whatever name a published manifest has for it.
        except RecipeError:
            return [load_recipe(path, group.entity) for group in (() if manifest is None else manifest.edits)] or [
                load_recipe(path)
            ]
    if manifest is None or manifest.recipe is None:
        raise InputError(f"{output} does not say which facts were its targets: give them with --recipe")
    where = f"the recipe in {output / MANIFEST_NAME}"
    return [parse_recipe(manifest.recipe, group.entity, where) for group in manifest.edits]
