"""The commands that work on the bytes of files: edit, verify, undo. They build a model only to prove a
guessed architecture (`--layout auto`) and for `verify --behaviour`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnesia.cli.options import MODEL, as_json, force_option
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.domain import ADAPTERS, FORMATS, WIDER_TYPES, Format, ModelRef, is_gguf_path
from amnesia.errors import InputError
from amnesia.files.staging import check_output
from amnesia.guessing import ASKED
from amnesia.numbers import signed

_N_SHOWN = 8
"""Names in a line."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amnesia.edits import EntityEdits
    from amnesia.weights.manifest import Manifest


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--edit", "edit_files", multiple=True, type=click.Path(path_type=Path), help="File of `extract -o`; repeatable."
)
@click.option(
    "--cell", "cells", multiple=True, metavar="L:N", help="Layer and neuron (L:EXPERT:N with experts); repeatable."
)
@click.option("--pick", type=click.IntRange(1), help="Which edit of a file of `run --front`, from 1.")
@click.option("--atlas", type=click.Path(path_type=Path), help="Table of `atlas`: the direction of --entity is turned.")
@click.option("--top", type=click.IntRange(1), metavar="N", help="Edit the best N cells of --atlas, not the direction.")
@click.option("--multiplier", type=float, help="Of every cell, or the direction of --atlas. Default: -1.")
@click.option("--entity", help="Whom --atlas is asked for; with --cell, a name for the manifest.")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Default: gguf for .gguf, else safetensors.")
@click.option(
    "--tensor-type",
    type=click.Choice(WIDER_TYPES),
    help="Store each ffn_down of a GGUF that the edit changes in this type. Default: their own.",
)
@click.option("--link", is_flag=True, help="Hard-link untouched files: fast, but both folders then share them.")
@click.option("--allow-overlap", is_flag=True, help="Edit a column again that an earlier edit already changed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--in-place", is_flag=True, help="Write the columns into MODEL itself; `undo --in-place` restores it.")
@force_option
@as_json
def edit(
    model: str,
    edit_files: tuple[Path, ...],
    cells: tuple[str, ...],
    pick: int | None,
    atlas: Path | None,
    top: int | None,
    multiplier: float | None,
    entity: str | None,
    format_name: Format | None,
    tensor_type: str | None,
    link: bool,
    allow_overlap: bool,
    output: Path | None,
    in_place: bool,
    force: bool,
    json_output: bool,
) -> None:
    """Write an edited copy of MODEL. Needs no GPU, and builds the model only for a guessed architecture."""
    from amnesia.outputs import commands, write

    if sum(map(bool, (edit_files, cells, atlas))) != 1:
        raise InputError("give the edit in one way: as --edit FILE, as --cell LAYER:NEURON, or as --atlas FILE")
    if edit_files and (multiplier is not None or entity is not None):
        raise InputError("--multiplier and --entity belong to cells: the edit file says both itself")
    if pick is not None and not edit_files:
        raise InputError("--pick is for --edit: drop it")
    if top is not None and atlas is None:
        raise InputError("--top is for --atlas: drop it")
    factor = -1.0 if multiplier is None else multiplier
    if atlas is not None:
        groups = [_from_atlas(atlas, model, entity, top, factor)]
    elif cells:
        groups = [write.edits_from_cells(cells, factor, entity)]
    else:
        groups = [group for path in edit_files for group in write.edits_from_file(path, pick)]
    if in_place:
        from amnesia.edits import EditSpec
        from amnesia.outputs.in_place import edit_in_place
        from amnesia.sources.resolve import declared

        commands.take_back_interrupted(Path(model), Terminal().notice)
        if output or link or force or format_name or tensor_type:
            raise InputError("--in-place writes MODEL itself: drop -o, --link, --force, --format and --tensor-type")
        if not Path(model).exists():
            raise InputError(f"{model} is not a folder or .gguf file here: only those can be edited in place")
        _prove_guess(model, groups, allow_overlap)
        with Terminal().task("editing in place", 0):
            manifest = edit_in_place(
                Path(model), EditSpec(tuple(groups), declared(ModelRef(model)), allow_overlap=allow_overlap)
            )
        if line := write.rounding_notice(manifest):
            Terminal().notice(line)
        _print_edit(manifest, Path(model), json_output)
        return
    if output is None:
        raise InputError("no output: give a new folder with -o, or edit MODEL itself with --in-place")
    name = format_name or ("gguf" if is_gguf_path(model) else "safetensors")
    if tensor_type is not None and name != "gguf":
        raise InputError("--tensor-type is for GGUF files: add --format gguf, or drop it")
    if link and name in ADAPTERS:
        raise InputError(f"--link is for files of the model, of which format {name} has none: drop it")
    if ASKED.get():
        check_output(output, force=force)
        _prove_guess(model, groups, allow_overlap)
    manifest = commands.save(
        model,
        groups,
        output,
        format=name,
        tensor_type=tensor_type,
        link=link,
        allow_overlap=allow_overlap,
        force=force,
        tracker=Terminal(),
    )
    _print_edit(manifest, output, json_output)


def _prove_guess(model: str, groups: Sequence[EntityEdits], allow_overlap: bool) -> None:
    """Bytes say where a projection may be, and only the model that it is one; types of the table are not loaded.

    Of a model on the Hub the headers say whether the edit fits, before all of it is fetched.
    """
    if not ASKED.get() or is_gguf_path(model):
        return
    from amnesia.architectures import GUESSED
    from amnesia.sources.remote import open_remote
    from amnesia.sources.resolve import hub_ref, is_on_disk, resolve
    from amnesia.weights.plan import plan_edits

    is_here = is_on_disk(model)
    weights = resolve(model, Terminal().notice).checkpoint if is_here else open_remote(hub_ref(model))
    if weights.shape.layout.model_type in GUESSED:
        from amnesia.live.loading import load_source

        plan_edits(weights, groups, allow_overlap=allow_overlap)
        load_source(resolve(model, Terminal().notice), hooked=False)


def _from_atlas(atlas: Path, model: str, entity: str | None, top: int | None, multiplier: float) -> EntityEdits:
    if entity is None:
        raise InputError("--atlas needs --entity: name the entity that should be edited")
    from amnesia.experiments.atlas_file import edits_of
    from amnesia.sources.fingerprint import fingerprint
    from amnesia.sources.remote import list_hub_files
    from amnesia.sources.resolve import hub_ref, is_local, is_on_disk, resolve, resolve_file

    if is_local(model):
        weights = fingerprint((resolve_file if is_gguf_path(model) else resolve)(model, Terminal().notice))
    else:  # The commit says which weights these are.
        weights = str(resolve(model).ref if is_on_disk(model) else list_hub_files(hub_ref(model)).ref)
    return edits_of(atlas, entity, model, top, multiplier, weights)


def _print_edit(manifest: Manifest, output: Path, json_output: bool) -> None:
    from amnesia.report.view import count

    if json_output:
        print_json(manifest.to_json())
        return
    n = sum(len(row.indices) for row in manifest.tensors)
    share = min((row.share for row in manifest.tensors if row.share is not None), default=None)
    codes = "" if share is None else f", {share:.4f} of the edit kept by their codes"
    changed = f"{count(n, 'column')} in {count(len(manifest.tensors), 'tensor')}"
    echo(f"{changed} edited ({manifest.format}{codes}); written to {output}")
    if manifest.tensor_type is not None:
        echo(_stored_anew(manifest.tensor_type))


def _stored_anew(tensor_type: str) -> str:
    """What happened to the matrices of a GGUF that were edited by columns; float32 holds what any type stands for."""
    others = "" if tensor_type == "f32" else ", and its other columns are rounded where that does not hold them"
    return f"an edited ffn_down is stored anew as {tensor_type.upper()}{others}"


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", type=MODEL, help="The model that was edited: every byte is then compared with it.")
@click.option("--behaviour", is_flag=True, help="Load OUTPUT and its base and ask both about the target facts.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Facts for --behaviour. Default: those of OUTPUT.")
@click.option("--server", help="With --behaviour: URL or URL#MODEL of a server that should have the edit, too.")
@as_json
def verify(
    output: Path, base: str | None, behaviour: bool, recipe: Path | None, server: str | None, json_output: bool
) -> None:
    """Prove from the bytes that only the declared columns changed. All else in OUTPUT must be its base's.

    With --behaviour the models are loaded instead, and OUTPUT may be any model or adapter folder that should have the
    edit, for example one that was merged elsewhere: its answers about the targets must not be those of the base.
    """
    from amnesia.outputs import commands

    if recipe is not None and not behaviour:
        raise InputError("--recipe is for --behaviour: bytes are proven without facts")
    if server is not None and not behaviour:
        raise InputError("--server is for --behaviour: a server shows no bytes; add it")
    if behaviour:
        from amnesia.evaluation.behaviour import check_behaviour
        from amnesia.files.disk import check_settled

        check_settled(commands.folder_of(output))
        report = check_behaviour(output, Terminal(), base=base, recipe_path=recipe, server=server)
        if json_output:
            print_json(dataclasses.asdict(report))
        else:
            echo(
                f"{output}: answers to {report.n_targets} target facts changed by {report.change:.2f} nats in the mean "
                f"(log-probability {signed(report.before)} before, {signed(report.after)} after)"
            )
            if report.share is not None and report.served is not None:
                echo(f"{server}: {report.share:.2f} of that change (log-probability {signed(report.served)})")
        return
    reports = commands.verify(output, base, tracker=Terminal())
    if json_output:
        print_json({str(folder): dataclasses.asdict(row) for folder, row in reports.items()})
        return
    from amnesia.report.view import count

    for folder, row in reports.items():
        proof = "compared with the base" if row.base_read else "by the hashes in the manifest"
        echo(
            f"{folder}: {count(row.n_cells, 'column')} in {count(row.n_tensors, 'tensor')} changed as declared "
            f"({row.format}, {row.entity}); {count(row.n_files, 'file')} proven {proof}"
        )
        if row.n_unchanged:
            echo(f"  {count(row.n_unchanged, 'edited column')} beside these: now as before the edits")
        if row.tensor_type is not None:
            echo(f"  {_stored_anew(row.tensor_type)}")
        if row.unproven:
            more = len(row.unproven) - _N_SHOWN
            names = ", ".join(row.unproven[:_N_SHOWN]) + (f" and {more} more" if more > 0 else "")
            echo(f"  not proven without --base: {names}; of these only the edited tensors and the sizes are")


@click.command()
@click.argument("edited", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--in-place", is_flag=True, help="Restore the files of EDITED themselves, its newest edit only.")
@click.option("--every-step", is_flag=True, help="Take back all edits that were made on top of each other.")
@force_option
def undo(edited: Path, output: Path | None, in_place: bool, every_step: bool, force: bool) -> None:
    """Restore the original bytes of an edited model. The manifest in the folder EDITED says how."""
    from amnesia.outputs import commands

    if in_place == (output is not None) or (in_place and (every_step or force)):
        raise InputError("give either -o FOLDER, or --in-place without --every-step and --force")
    if output is None:
        from amnesia.outputs.in_place import undo_in_place
        from amnesia.outputs.proofs import output_of

        if commands.take_back_interrupted(edited, Terminal().notice):
            return  # That was the newest edit; the one before it is another, which nobody has asked for.
        output = output_of(edited)
        with Terminal().task("restoring", 0):
            manifest = undo_in_place(output)
        echo(f"{manifest.entity} is back: {output} is as it was before the edit")
        return
    from amnesia.outputs.proofs import model_in
    from amnesia.weights.manifest_file import read_manifest

    manifest = commands.undo(edited, output, every_step=every_step, force=force, tracker=Terminal())
    steps = [*read_manifest(model_in(edited)).history()] if every_step else [manifest]
    names = ", ".join(dict.fromkeys(step.entity for step in steps))
    echo(f"{names} {'are' if ', ' in names else 'is'} back: {manifest.base.ref.name} as it was, in {output}")
