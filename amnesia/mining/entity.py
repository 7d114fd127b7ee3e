"""A recipe for an entity, from a table of facts where there is one, else from what the model itself says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amnesia.domain import DEFAULT_LOADING, Loading, ModelRef
from amnesia.errors import InputError
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.popqa import PopqaRow, facts_for, read_popqa
from amnesia.live.loading import load_source
from amnesia.live.model import LiveModel
from amnesia.mining.own import from_model
from amnesia.mining.recipe_text import Mined
from amnesia.mining.table import from_table
from amnesia.progress import Progress, Tracker
from amnesia.sources.resolve import resolve

TASK = "asking what the model knows"


def mine(
    live: LiveModel,
    entity: str,
    rows: Sequence[PopqaRow] | None,
    model: ModelRef,
    aliases: Sequence[str] = (),
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> Mined:
    """The recipe for `model`, in memory as `live`; raises InputError when it knows too little of the entity.

    What is in `cache` is not asked again, and what is asked is put there.
    """
    if rows is None:
        return from_model(live, entity, model=model, aliases=aliases, progress=progress, cache=cache)
    return from_table(live, rows, entity, model=model, aliases=aliases, progress=progress, cache=cache)


def table_about(popqa: Path | None, entity: str) -> tuple[PopqaRow, ...] | None:
    """The rows of a PopQA file, if one is given; raises InputError when none of them is about the entity."""
    if popqa is None:
        return None
    rows = read_popqa(popqa)
    try:
        facts_for(rows, entity)
    except InputError as error:
        raise InputError(f"{popqa}: {error}") from None
    return rows


def mine_recipe(
    model: str,
    entity: str,
    popqa: Path | None,
    tracker: Tracker,
    *,
    aliases: Sequence[str] = (),
    loading: Loading = DEFAULT_LOADING,
) -> Mined:
    """The recipe for a model by its name, with the rows of a PopQA file, if one is given."""
    rows = table_about(popqa, entity)
    source = resolve(model, notice=tracker.notice)
    live = load_source(source, loading, notice=tracker.notice)
    with tracker.task(TASK) as progress:
        return mine(live, entity, rows, source.ref, aliases, progress)
