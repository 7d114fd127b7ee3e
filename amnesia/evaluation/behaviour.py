"""Proof by asking: a model that was edited must answer about its targets otherwise than its base.

Bytes prove a folder; they say nothing about a model that was merged elsewhere, or about an adapter that a program has
silently left out. Both models are loaded with the plain libraries and asked for the log-probabilities of the answers,
and so is a server that should have the edit. Its numbers differ from those of the libraries, by quantization if nothing
else, so what counts is how much of the change from one model to the other they have.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia.domain import ModelRef
from amnesia.errors import InputError, RecipeError, VerificationError
from amnesia.evaluation.lineage import check_made_for
from amnesia.evaluation.measurement import Pair, measure
from amnesia.facts.questions import questions_of
from amnesia.files.companions import whole_output
from amnesia.files.staging import MANIFEST_NAME
from amnesia.live.loading import load_source, loaded
from amnesia.numbers import signed
from amnesia.progress import Tracker
from amnesia.recipe import Recipe
from amnesia.recipe_file import load_recipe, parse_recipe
from amnesia.servers.server import Server, connect
from amnesia.sources.resolve import recorded, resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.adapter import CONFIG_NAME
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest

MIN_CHANGE = 0.1
"""Nats. An edit worth making moves answers by a nat and more; rounding to 16 bits moves them by hundredths."""


MIN_SHARE = 0.5
"""Of the change, on a server. Nothing is 0 and all of it 1, give or take what quantization does; set by hand."""

MAX_LEFT = 0.25
"""Squared size of what a server's answers differ by besides, over that of the change; set by hand."""


@dataclass(frozen=True)
class BehaviourReport:
    """Mean log-probabilities (nats) of the answers to the target facts, and their mean absolute change.

    `served` is the mean on a server and `share` how much of the change it has: the least-squares fit of
    (served − before) by (after − before), fact by fact.
    """

    n_targets: int
    before: float
    after: float
    change: float
    served: float | None = None
    share: float | None = None


def check_behaviour(
    output: Path,
    tracker: Tracker,
    *,
    base: str | None = None,
    recipe_path: Path | None = None,
    server: str | None = None,
) -> BehaviourReport:
    """Compare the answers of an output, or of any model or adapter in a folder, with those of its base.

    With the address of a `server`, that must have the edit, too.

    Base and facts are those of the manifest unless they are given. Raises VerificationError when the answers are as
    before, or the server's are, and InputError when base or facts are not known.
    """
    served = None if server is None else connect(server)
    output = whole_output(output)
    manifest = read_manifest(output) if (output / MANIFEST_NAME).exists() else None
    if base is None:
        if manifest is None:
            raise InputError(f"{output} has no {MANIFEST_NAME} that names its base: give it with --base")
        base = recorded(manifest.base.ref)
    name = "adapter" if (output / CONFIG_NAME).exists() else "safetensors" if manifest is None else manifest.format
    recipes = _recipes(output, manifest, recipe_path)
    questions = [row for recipe in recipes for row in questions_of(recipe)]
    pairs = list(dict.fromkeys(row.pair for row in questions if row.role == "target"))
    source = resolve(base, notice=tracker.notice)
    check_made_for(source, ModelSource(output, ModelRef(str(output))))
    live = load_source(source, hooked=False, notice=tracker.notice)
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
    return report if served is None else _on_server(report, served, totals, pairs, tracker)


def _on_server(
    report: BehaviourReport,
    server: Server,
    totals: Sequence[tuple[float, float]],
    pairs: Sequence[Pair],
    tracker: Tracker,
) -> BehaviourReport:
    with tracker.task("asking the server") as progress:
        answers = measure(server, pairs, progress)
    served = [answers[pair].logprob for pair in pairs]
    changes = [new - old for old, new in totals]
    seen = [own - old for own, (old, _) in zip(served, totals, strict=True)]
    size = sum(change**2 for change in changes)
    share = sum(own * change for own, change in zip(seen, changes, strict=True)) / size
    # What a share of the change leaves over; another model differs from the base in other answers, too.
    left = sum((own - share * change) ** 2 for own, change in zip(seen, changes, strict=True)) / size
    if not MIN_SHARE <= share <= 1 / MIN_SHARE or left > MAX_LEFT:
        raise VerificationError(
            f"{server.name} at {server.url} has {signed(share)} times the change of {report.n_targets} target facts, "
            f"and {math.sqrt(left):.2f} times its size besides; expected {MIN_SHARE} to {1 / MIN_SHARE:g}, and at most "
            f"{math.sqrt(MAX_LEFT)}: this edit does not act there; see which files it has loaded, and at what strength"
        )
    return replace(report, served=sum(served) / len(served), share=share)


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
