"""Edits of any kind, made in any order and in any place, are proven and taken back in any place, bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError, CheckpointError, InputError, VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import plan_formats, save, staged, write_format
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.checkpoints import tell_otherwise
from support.folders import tree
from support.gguf_edits import D_MLP, direction, tiny
from support.tiny import save_tiny, tiny_direction

# Those that are their own inverse, that invert exactly, that need saved columns, and that leave nothing to invert.
MULTIPLIERS = (-1.0, 0.5, 2.0, 0.3, -1.7, 0.0)
# A scale of 16 bits ends; and what is stored wider is edited once.
REFUSED = re.compile("is not exact in Q8_0|on which no other is made|is edited already: undo that")
CELLS = (Cell(0, 3), Cell(0, 7), Cell(1, 4))

steps = st.lists(
    st.fixed_dictionaries(
        {
            "cells": st.dictionaries(st.sampled_from(CELLS), st.sampled_from(MULTIPLIERS), max_size=2),
            "direction": st.none() | st.integers(0, 1),
            "way": st.sampled_from(["in place", "copy", "linked copy", "copy with a card"]),
            "wider": st.sampled_from([None, None, "f16", "q8_0"]),
        }
    ).filter(lambda step: step["cells"] or step["direction"] is not None),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gguf"])
def original(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "model"
    if request.param == "gguf":
        tiny(folder / "tiny.gguf")
    else:
        save_tiny(folder, request.param, dtype=torch.bfloat16)
    return folder


def source_in(folder: Path) -> ModelSource:
    return ModelSource(folder, ModelRef("a/b"), gguf=next(folder.glob("*.gguf"), None))


def edits_of(step, number: int, is_gguf: bool) -> EntityEdits:
    """The edit of a step; scales of a quantized row take powers of two alone, and no row of a directed column is 0."""
    fit = {0.3: 0.25, -1.7: -4.0, 0.0: -0.125} if is_gguf else {}
    edits = [ColumnEdit(cell, fit.get(multiplier, multiplier)) for cell, multiplier in step["cells"].items()]
    if (layer := step["direction"]) is not None:
        columns = tuple(range(3, D_MLP, 7))
        edits.append(direction(layer, columns, seed=number) if is_gguf else tiny_direction(layer, seed=number))
    return EntityEdits(f"Name {number}", tuple(edits))


def make(step, folder: Path, target: Path, group: EntityEdits) -> Path:
    """The folder that holds the edited model: `folder` itself, or `target`."""
    source = source_in(folder)
    name = "gguf" if source.gguf else "safetensors"
    if step["way"] == "in place":
        edit_in_place(source.gguf or folder, EditSpec((group,), ModelRef("a/b"), allow_overlap=True))
        return folder
    if step["way"] == "copy with a card":
        plan = plan_formats((name,), source, EditSpec((group,), ModelRef("a/b"), allow_overlap=True))[name]
        with staged(plan, target) as staging:
            manifest = write_format(plan, staging)
            for added in ("README.md", "report.json"):
                manifest = add_file(manifest, staging, added, group.entity.encode())
            write_manifest(manifest, staging)
        return target
    wider = step["wider"] if source.gguf and step["direction"] is not None else None
    save(name, source, [group], target, link=step["way"] == "linked copy", allow_overlap=True, tensor_type=wider)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("n_sequences", [4, pytest.param(100, marks=pytest.mark.exhaustive)])
def test_any_sequence_of_edits_comes_back(original, n_sequences):
    @settings(
        max_examples=n_sequences,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.filter_too_much],
    )
    @given(steps=steps, here=st.lists(st.booleans(), min_size=4, max_size=4))
    def drawn(steps, here):
        there_and_back(original, steps, here)

    drawn()


def there_and_back(original, steps, here):
    """Make edits one on top of the other, in place or as copies, and take them back one by one and all at once."""
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = copytree(original, root / "model")
        states = []
        for number, step in enumerate(steps):
            states.append(tree(folder))
            if step["way"] == "in place":  # What a link shares is refused in place.
                folder = copytree(folder, root / f"own {number}")
            is_gguf, target = (folder / "tiny.gguf").exists(), root / f"edited {number}"
            try:
                folder = make(step, folder, target, edits_of(step, number, is_gguf))
            except (CheckpointError, InputError) as error:
                assert is_gguf and REFUSED.search(str(error))
                assert tree(folder) == states.pop() and not target.exists()
                break
            prove(folder)
            prove(folder, source_in(original))
        take_back(folder, root / "all back", every_step=True)
        assert tree(root / "all back") == states[0]
        for number, state in reversed([*enumerate(states)]):
            if here[number] and read_manifest(folder).tensor_type is None:
                folder = copytree(folder, root / f"undone {number}")
                undo_in_place(folder)
            else:
                if here[number]:
                    before = tree(folder)
                    with pytest.raises(InputError, match=f"`amnesia undo '.*{folder.name}' -o NEW`"):
                        undo_in_place(folder)
                    assert tree(folder) == before
                take_back(folder, root / f"undone {number}")
                folder = root / f"undone {number}"
            assert tree(folder) == state


def leaves(value, path=()):
    """The places of all values in a manifest that are no lists or tables."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def lie(value):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return "LICENSE"
    if isinstance(value, int | float):
        return value + 1
    others = {"file": "header", "header": "file", "tensor": "columns", "safetensors": "gguf", "gguf": "safetensors"}
    return others.get(value) or ("0" * len(value) if len(value) == 64 else f"{value}x")


def accepts(action, *arguments) -> bool:
    try:
        action(*arguments)
    except AmnesiaError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "way"),
    [
        ("llama", "copy with a card"),
        ("gpt2", "in place"),
        ("gguf", "copy with a card"),
        ("gguf", "in place"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (("llama", "in place"), ("gpt2", "copy with a card"))
        ),
    ],
    indirect=["original"],
)
def test_what_is_proven_is_taken_back_and_what_is_refused_is_not(original, tmp_path, way):
    """Each value of a manifest in turn is false: four ways to read it say the same of it."""
    folder = copytree(original, tmp_path / "model")
    is_gguf = (folder / "tiny.gguf").exists()
    step = {"cells": {CELLS[0]: 0.3, CELLS[2]: -1.0}, "direction": 1, "way": way, "wider": None}
    folder = make(step, folder, tmp_path / "edited", edits_of(step, 1, is_gguf))
    told = json.loads((folder / MANIFEST_NAME).read_bytes())
    seen: set[tuple[object, ...]] = set()
    free = {"tool", "libraries", "recipe", "scores", "id", "revision", "entity", "share", "edits_sha256"}
    n_refused = 0
    for number, (path, value) in enumerate(leaves(told)):
        # Rows of one list are read alike: a value of each kind is enough.
        kind = (*("a row" if isinstance(key, int) else key for key in path), type(value))
        if free & {*path} or path[-1] in ("read", "write", "key", "spread") or kind in seen:
            continue
        seen.add(kind)
        work = copytree(folder, tmp_path / f"lie {number}")
        tell_otherwise(work, lambda document, path=path, value=value: put(document, path, lie(value)))
        found = {
            "verify": accepts(prove, work),
            "verify with the base": accepts(prove, work, source_in(original)),
            "undo": accepts(take_back, work, tmp_path / f"undone {number}"),
            "undo in place": accepts(undo_in_place, work),
        }
        assert len({*found.values()}) == 1, (path, value, found)
        n_refused += not found["verify"]
        if "sha256" in path or path[-1] == "size":
            assert not found["verify"], path
    assert n_refused > 10


def put(document, path, value) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


@pytest.mark.parametrize("way", ["copy", "in place"])
def test_nothing_is_built_on_an_output_that_could_not_be_taken_back(original, tmp_path, way):
    folder = copytree(original, tmp_path / "model")
    first = {"cells": {}, "direction": 1, "way": "copy with a card", "wider": None}
    is_gguf = (folder / "tiny.gguf").exists()
    folder = make(first, folder, tmp_path / "first", edits_of(first, 1, is_gguf))
    (folder / "report.json").unlink()
    before = tree(folder)
    second = {"cells": {CELLS[0]: -1.0}, "direction": None, "way": way, "wider": None}
    with pytest.raises(VerificationError, match=r"report\.json is missing"):
        make(second, folder, tmp_path / "second", edits_of(second, 2, is_gguf))
    assert tree(folder) == before and not (tmp_path / "second").exists()


def test_a_manifest_of_other_files_is_not_built_upon(tmp_path):
    folder = save_tiny(tmp_path / "model")
    tiny(folder / "tiny.gguf")
    edit_in_place(folder / "tiny.gguf", EditSpec((EntityEdits("Paris", (ColumnEdit(CELLS[0]),)),), ModelRef("a")))
    before = tree(folder)
    source = ModelSource(folder, ModelRef("a/b"))
    with pytest.raises(InputError, match="is of format gguf"):
        save("safetensors", source, [EntityEdits("Rome", (ColumnEdit(CELLS[1]),))], tmp_path / "out")
    assert tree(folder) == before and not (tmp_path / "out").exists()
