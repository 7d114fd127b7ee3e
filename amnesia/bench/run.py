"""One suite on many models, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from amnesia.bench.results import SCORE, Bench
from amnesia.bench.suites import Suite
from amnesia.compare import check_loading, load_edited, name_of, resolve_edited
from amnesia.domain import DEFAULT_LOADING, FORMATS, Loading
from amnesia.live.loading import load_source
from amnesia.progress import Tracker
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource

FEW = 20
"""Known facts about others below which their mean says little: each counts as five hundredths or more."""


def run_bench(
    model: str, edited: Sequence[str], suite: Suite, tracker: Tracker, loading: Loading = DEFAULT_LOADING
) -> Bench:
    """Ask the original and each edited model, which may be a model, or the folder of an adapter for `model`.

    All of them are opened before anything long begins. Raises what the suite and `compare.resolve_edited` raise.
    """
    source = resolve(model, notice=tracker.notice)
    others = [resolve_edited(source, each, tracker) for each in edited]
    for other in others:
        check_loading(other, loading)
    live = load_source(source, loading, hooked=False, notice=tracker.notice)
    with tracker.task(f"asking {name_of(source)}") as progress:
        first, ask = suite.original(live, name_of(source), progress)
    n_known = sum(row.n for row in first.measures if row.set == "neighbor" and row.metric == SCORE)
    if 0 < n_known < FEW:
        tracker.notice(
            f"{name_of(source)} knows {n_known} of the facts about others, fewer than {FEW}: what is said of damage to "
            "them is uncertain; give a table with more rows, or better known subjects"
        )
    entries = [first]
    for other, name in zip(others, _names([_label(other) for other in others]), strict=True):
        del live
        gc.collect()
        live = load_edited(source, other, loading)
        with tracker.task(f"asking {name}") as progress:
            entries.append(ask(live, name, progress))
    return Bench(suite.contract, tuple(entries), suite.source)


def _label(source: ModelSource) -> str:
    """A model's name; of an output of this package, which is called after its format, with that of the folder above."""
    path, name = Path(source.ref.name), name_of(source)
    return f"{path.resolve().parent.name}/{name}" if name in FORMATS and path.is_dir() else name


def _names(names: Sequence[str]) -> list[str]:
    """Names that are told apart: of equal ones, each has its number."""
    return [f"{name} ({names[: n + 1].count(name)})" if names.count(name) > 1 else name for n, name in enumerate(names)]
