"""An edit of one model made again on a relative: a model that was fine-tuned or quantized from the same base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from amnesia.directions.keys import name_rows
from amnesia.domain import DEFAULT_LOADING, Format, Loading, is_gguf_path, name_key
from amnesia.edits import (
    ColumnEdit,
    DirectionEdit,
    Edit,
    EditSpec,
    EntityEdits,
    directions_of,
    edits_in,
    named_after_cells,
)
from amnesia.errors import InputError, os_errors_as
from amnesia.experiments.robustness import unrelated_names
from amnesia.facts.names import entity_templates
from amnesia.files.disk import read_small
from amnesia.files.staging import check_output
from amnesia.live.loading import load_source
from amnesia.live.model import LiveModel
from amnesia.live.watching import activations
from amnesia.mining.carrying import carried_over
from amnesia.outputs import write
from amnesia.outputs.commands import save
from amnesia.outputs.proofs import check_unaltered, matrix_shape, outputs_in
from amnesia.pipeline import RunResult, given, save_chosen
from amnesia.progress import SILENT, Progress, Tracker
from amnesia.recipe import Recipe
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.manifest_file import MAX_MANIFEST, parse_manifest, read_manifest


@dataclass(frozen=True)
class TransferSettings:
    """When an edit means the same in another model.

    `n_names`, 1 or more: other names that are asked. `n_texts`, 1 to 100: wordings of each. `min_answer`: what a
    direction must answer to the name, where 1 is the answer in its own model. `max_other`: the greatest answer to
    another name, as a share of the one to the name; for cells 1. Set by hand, not measured.
    """

    n_names: int = 24
    n_texts: int = 20
    min_answer: float = 0.5
    max_other: float = 0.5


@dataclass(frozen=True)
class Reply:
    """What an edit answers in the other model: to the name of its `entity`, and at most, in size, to other names.

    uᵀa of a direction, in means over wordings, at the token that it is for, 1 where it was solved; of a cell its
    activation by that at the name, so that `own` is 1. At others' names the token counts that answers most.
    """

    entity: str
    edit: Edit
    own: float
    other: float

    def holds(self, settings: TransferSettings) -> bool:
        """Whether the name, and hardly another one, is answered."""
        if isinstance(self.edit, ColumnEdit):
            return self.other < self.own
        return self.own >= settings.min_answer and self.other <= settings.max_other * self.own


@dataclass(frozen=True)
class Transferred:
    """What came of a transfer: the replies, whether they are those of the edit, and what was measured, given facts.

    `output` is None where nothing was written.
    """

    replies: tuple[Reply, ...]
    answers: bool
    run: RunResult | None
    output: Path | None

    @property
    def holds(self) -> bool:
        """Whether the edit means the same in the other model, and does it as far as that was measured."""
        return self.answers and (self.run is None or self.run.accepted)


def read_transferred(path: Path) -> tuple[tuple[EntityEdits, ...], str | None]:
    """The edits in an output folder, a manifest or a file of `extract -o`, and the recipe in the manifest, if any.

    Raises InputError for an output that was made on top of another edit, and for what cannot be read.
    """
    if path.is_dir():
        manifest, *others = map(read_manifest, outputs_in(path))
        # A run writes the same edit in each of its formats.
        if any(other.edits != manifest.edits for other in others):
            raise InputError(f"{path} holds {1 + len(others)} outputs with different edits: give the folder of one")
    else:
        with os_errors_as(InputError, f"edit {path} cannot be read", "give an output folder or an existing file"):
            content = read_small(path, MAX_MANIFEST)
        if b'"edits_sha256"' not in content:
            return write.edits_from_file(path), None
        manifest = parse_manifest(content)
    if manifest.previous is not None:
        raise InputError(
            f"{path} was made on top of the edit for {manifest.previous.entity!r}: transfer one edit at a time, from "
            "an output that has it alone (`amnesia undo` takes the newest one back) or from a file of `amnesia extract`"
        )
    return manifest.edits, manifest.recipe


def transfer(
    edit: Path | str,
    model: str,
    output: Path | str,
    tracker: Tracker = SILENT,
    *,
    format: Format | None = None,
    recipe: Recipe | None = None,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
    settings: TransferSettings = TransferSettings(),
) -> Transferred:
    """Make the edit of a folder, manifest or file again on `model`, where it still answers to its name.

    Facts are those of `recipe`, or of the recipe in the manifest; with them the written files are evaluated as a run
    does it. Where the edit does not answer to the name nothing is written, unless by `force`. Raises InputError when
    the edit does not fit the model's sizes, and the errors of `run`.
    """
    path, output = Path(edit), Path(output)
    check_output(output, force=force)
    groups, text = read_transferred(path)
    if recipe is not None:
        groups = _meant(groups, recipe)
    elif text is not None:
        recipe = parse_recipe(text, groups[0].entity, f"the recipe in {path}")
    source = resolve(model, tracker.notice)
    check_output(output, source.origin, force=force)
    check_unaltered(source.origin, partial(tracker.task, "proving the edit before"))
    name: Format = format or ("gguf" if is_gguf_path(model) else "safetensors")
    write.plan_formats((name,), source, EditSpec(groups, source.ref))
    if path.is_dir():
        _check_sizes(path, source)
    of_experts = [edit.expert is not None for edit in edits_in(groups)]
    live = load_source(source, loading, hooked=not all(of_experts), notice=tracker.notice)
    with tracker.task("asking for the name and others") as progress:
        replies = tuple(reply for group in groups for reply in answers(live, group, settings, progress))
    answered = all(_answered(group, replies, settings) for group in groups)
    if not answered and not force:
        return Transferred(replies, False, None, None)
    has_facts = recipe is not None and [name_key(recipe.target.entity)] == [name_key(group.entity) for group in groups]
    if recipe is None or not has_facts or any(of_experts):
        why = "which it does not have" if all(map(_is_unnamed, groups)) else "as cells of experts cannot be watched"
        asked = "" if replies else f", nor is anything asked for the name, {why}"
        if has_facts:
            tracker.notice(f"cells of experts cannot be changed in memory: nothing is measured{asked}")
        else:
            tracker.notice(f"no facts about {groups[0].entity} alone: nothing is measured{asked}; give a recipe")
        del live
        save(source, groups, output, format=name, force=force, tracker=tracker)
        return Transferred(replies, answered, None, output)
    recipe, notices = carried_over(recipe, source.ref, source.checkpoint.shape.n_layers)
    for line in notices:
        tracker.notice(line)
    recipe = replace(recipe, edit=replace(recipe.edit, formats=(name,)))
    chosen = given(live, recipe, groups[0], tracker, force)
    del live
    run = save_chosen(recipe, source, chosen, output, tracker, force, loading)
    return Transferred(replies, answered, run, run.output)


def _check_sizes(edited: Path, source: ModelSource) -> None:
    """Raises InputError where a model has other sizes than that whose edited output is in the folder `edited`."""
    folder = outputs_in(edited)[0]
    shape = source.checkpoint.shape
    for row in read_manifest(folder).tensors:
        found, layer = matrix_shape(folder, row.name), row.place.layer
        experts = shape.experts_in(layer)
        width = shape.width(layer) if row.place.expert is None or experts is None else experts[1]
        if found is not None and sorted(found) != sorted((shape.d_model, width)):
            raise InputError(
                f"{edited} has {row.name} of shape {list(found)}, and {source} has {width} neurons in layer {layer} "
                f"that write {shape.d_model} numbers: give a relative of the model that the edit was made for"
            )


def _meant(groups: tuple[EntityEdits, ...], recipe: Recipe) -> tuple[EntityEdits, ...]:
    """The edits, of which cells without a name are for the recipe's entity; raises InputError for other entities'."""
    names = [group.entity for group in groups]
    if name_key(recipe.target.entity) in map(name_key, names):
        return groups
    if len(groups) == 1 and _is_unnamed(groups[0]):
        return (replace(groups[0], entity=recipe.target.entity),)
    raise InputError(f"the recipe is about {recipe.target.entity!r}, the edit about {', '.join(names)}: give its own")


def _is_unnamed(group: EntityEdits) -> bool:
    return not directions_of(group.edits) and group.entity == named_after_cells(group.edits).entity


def _answered(group: EntityEdits, replies: Sequence[Reply], settings: TransferSettings) -> bool:
    """Whether an entity's edits answer to its name: one of its directions, as others may be for other forms of it, or
    without directions half of its cells, as one in twenty answers to any name."""
    own = [reply for reply in replies if reply.entity == group.entity]
    held = [reply for reply in own if reply.holds(settings)]
    if any(isinstance(reply.edit, DirectionEdit) for reply in own):
        return any(isinstance(reply.edit, DirectionEdit) for reply in held)
    return 2 * len(held) >= len(own)


def answers(
    live: LiveModel, group: EntityEdits, settings: TransferSettings, progress: Progress | None = None
) -> list[Reply]:
    """What the edits of an entity answer to its name and to others; none for an edit that has no entity's name.

    Cells of experts, which nobody can watch, are left out.
    """
    edits = [edit for edit in group.edits if edit.expert is None]
    if not edits or _is_unnamed(group):
        return []
    own = _by_token(live, group.entity, edits, settings.n_texts, progress)
    others = [
        _by_token(live, name, edits, settings.n_texts, progress).abs().amax(0)
        for name in unrelated_names([group.entity], settings.n_names)
    ]
    most = torch.stack(others).amax(0).tolist()
    found = []
    for place, edit in enumerate(edits):
        if isinstance(edit, ColumnEdit):
            found.append(Reply(group.entity, edit, 1.0, most[place] / max(own[:, place].abs().max().item(), 1e-30)))
        else:
            token = min(edit.token, len(own) - 1)
            found.append(Reply(group.entity, edit, own[token, place].item(), most[place]))
    return found


@torch.inference_mode()
def _by_token(
    live: LiveModel, name: str, edits: Sequence[Edit], n_texts: int, progress: Progress | None
) -> torch.Tensor:
    """Mean answers over wordings (n_tokens, n_edits), by the name's tokens from its last one backwards."""
    layers = sorted({edit.layer for edit in edits})
    reads = torch.zeros(len(layers), live.shape.d_mlp, len(edits), device=live.device)
    for number, edit in enumerate(edits):
        read = torch.tensor(edit.read.array.copy()).to(reads)
        reads[layers.index(edit.layer), list(edit.columns), number] = read
    means = []
    for rows in name_rows(live, name, texts=entity_templates()[:n_texts]).values():
        total = torch.zeros(len(edits), device=live.device)
        for _, batch in activations(live, rows, layers, progress):
            total += torch.einsum("bld,ldn->n", batch, reads)
        means.append(total / len(rows))
    return torch.stack(means).cpu()
