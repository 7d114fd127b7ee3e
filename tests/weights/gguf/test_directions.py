"""Directions in GGUF files: codes of declared columns change and nothing else, provably, and can be taken back."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, DirectionEdit, EditSpec, EntityEdits
from amnesia.errors import CheckpointError, InputError, NumericalError, VerificationError
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove
from amnesia.outputs.replay import replay
from amnesia.sources.source import ModelSource
from amnesia.vector import Vector
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.gguf.codes import CODES, REFUSED, PlainNumbers
from amnesia.weights.gguf.pieces import _furthest
from amnesia.weights.gguf.proof import undo_gguf
from amnesia.weights.manifest_file import read_manifest, write_manifest
from amnesia.weights.safetensors import read_header
from support.commands import call
from support.gguf_edits import (
    D_MLP,
    DOWN,
    changed_bytes,
    delta,
    direction,
    drawn_places,
    load,
    logits,
    proven,
    tensors,
    tiny,
    undo,
    write,
)
from support.tiny import as_read, tiny_direction, tiny_model
from support.tiny_gguf import D_MODEL, llama_gguf

F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, NVFP4 = (
    GGMLQuantizationType[name] for name in ("F32", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0", "NVFP4")
)
TYPES = [pytest.param(kind, id=kind.name) for kind in CODES]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_changes_codes_of_declared_columns_and_nothing_else(tmp_path: Path, kind: GGMLQuantizationType):
    source, edit = tiny(tmp_path / "tiny.gguf", kind), direction(1)
    manifest = write(source, tmp_path / "out", edit)
    output = tmp_path / "out" / "tiny.gguf"
    before, after = tensors(source), tensors(output)
    others = np.setdiff1d(np.arange(D_MLP), edit.columns)
    for name, values in before.items():
        if name == DOWN.format(1):
            assert np.array_equal(after[name][:, others], values[:, others])
            changed = (after[name] != values).any(axis=0)
            assert changed[list(edit.columns)].mean() > 0.5
            report = prove(tmp_path / "out")
            assert (report.n_cells, report.n_cells + report.n_unchanged) == (changed.sum(), len(edit.columns))
        else:
            assert np.array_equal(after[name], values), name
    # What is left at the key is what was to be left there, however few bits there are.
    name, columns, key = DOWN.format(1), list(edit.columns), edit.key.array.astype(float)
    change = (after[name] - before[name])[:, columns].astype(float) @ key
    wanted = delta(edit)[:, columns] @ key
    kept = change @ wanted / (wanted @ wanted)
    if isinstance(CODES[kind], PlainNumbers):
        assert kept == pytest.approx(1.0, abs=1e-2)
    elif kind.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):  # Of others the random scales leave no room.
        assert kept == pytest.approx(1.0, abs=2e-2)
    entry = manifest.tensors[0]
    assert len(manifest.tensors) == 1
    assert (entry.name, entry.axis, entry.indices) == (name, 1, edit.columns)
    assert set(entry.multipliers.values()) == {1.0}
    assert entry.directions == (edit,)
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    restored = undo(tmp_path / "out", tmp_path / "back")
    assert [path.name for path in restored.iterdir()] == ["tiny.gguf"]
    assert (restored / "tiny.gguf").read_bytes() == source.read_bytes()


def kept_at_the_key(source: Path, output: Path, edit: DirectionEdit) -> float:
    """The share of the change at the key that a file has, from what the `gguf` package reads."""
    name, columns, key = DOWN.format(edit.layer), list(edit.columns), edit.key.array.astype(float)
    change = (tensors(output)[name].astype(float) - tensors(source)[name])[:, columns] @ key
    wanted = delta(edit)[:, columns] @ key
    return float(change @ wanted / (wanted @ wanted))


@pytest.mark.parametrize(("columns", "enough"), [((3, 40, 77, 300), False), (tuple(range(5, D_MLP, 9)), True)])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_the_codes_cannot_hold_is_said(tmp_path: Path, columns: tuple[int, ...], enough: bool, in_place: bool):
    source, edit = tiny(tmp_path / "base" / "tiny.gguf"), direction(1, columns, size=1.0 if enough else 8.0)
    copy = tmp_path / "copy" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    (tmp_path / "edit.json").write_text(json.dumps({"entity": "Ada", "edits": [edit_json(edit)]}))
    output = copy.parent if in_place else tmp_path / "out"
    result = call("edit", copy, "--edit", tmp_path / "edit.json", *(["--in-place"] if in_place else ["-o", output]))
    assert result.exit_code == 0, result.stderr
    expected = kept_at_the_key(source, output / "tiny.gguf", edit)
    assert (expected >= 0.95) == enough
    (entry,) = read_manifest(output).tensors
    assert entry.share == pytest.approx(expected, abs=1e-3)
    assert f"{entry.share:.4f} of the edit kept" in result.stdout
    said = [line for line in result.stderr.splitlines() if "keeps only" in line]
    start, remedy = f"blk.1.ffn_down.weight keeps only {expected:.2f} of the edit", "with --tensor-type q8_0 or f16"
    assert [line.startswith(start) and remedy in line for line in said] == [True] * (not enough)


def test_the_direction_that_is_kept_least_counts(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf")
    good, bad = direction(1, tuple(range(5, D_MLP, 9))), direction(1, (1, 2, 3), seed=1, size=20.0)
    manifest = write(source, tmp_path / "out", good, also=(EntityEdits("Bob", (bad,)),))
    shares = [kept_at_the_key(source, tmp_path / "out" / "tiny.gguf", edit) for edit in (good, bad)]
    assert shares[1] < 0.9 < shares[0]
    assert manifest.tensors[0].share == pytest.approx(shares[1], abs=1e-3)


def test_scaled_rows_have_no_share(tmp_path: Path):
    manifest = write(tiny(tmp_path / "tiny.gguf"), tmp_path / "out", ColumnEdit(Cell(0, 5), -1.0))
    assert [entry.share for entry in manifest.tensors] == [None]
    assert "kept" not in (tmp_path / "out" / "amnesia.json").read_text()


def test_the_undo_file_holds_the_bytes_of_the_columns(tmp_path: Path):
    source, edit = tiny(tmp_path / "tiny.gguf", Q4_1), direction()
    manifest = write(source, tmp_path / "out", edit)
    saved = read_header(tmp_path / "out" / manifest.undo).tensors
    assert {name: tensor.dtype for name, tensor in saved.items()} == {DOWN.format(0): "U8"}
    n_rows, n_bytes = saved[DOWN.format(0)].shape
    assert n_rows == D_MODEL
    assert n_bytes <= len(edit.columns)


@pytest.mark.parametrize("kind", [F32, Q4_1])
def test_cells_and_directions_of_one_layer_give_what_the_matrix_gives(tmp_path: Path, kind: GGMLQuantizationType):
    source = tiny(tmp_path / "tiny.gguf", kind)
    first, second = direction(0, multiplier=0.0), direction(0, tuple(range(0, D_MLP, 4)), seed=1)
    cells = [ColumnEdit(Cell(0, 5), -1.0), ColumnEdit(Cell(0, 6), -1.0), ColumnEdit(Cell(1, 5), -1.0)]
    also = (EntityEdits("Bob", (second,)),)
    manifest = write(source, tmp_path / "out", first, *cells, also=also)
    assert [(entry.name, entry.axis) for entry in manifest.tensors] == sorted(
        [("blk.0.ffn_up.weight", 0), ("blk.1.ffn_up.weight", 0), (DOWN.format(0), 1)],
        key=lambda place: next(tensor.data_offset for tensor in GGUFReader(source).tensors if tensor.name == place[0]),
    )
    before, after = tensors(source), tensors(tmp_path / "out" / "tiny.gguf")
    # What a token's activations come to: `up` is scaled, and with it what columns 5 and 6 receive.
    scale = np.ones(D_MLP)
    scale[[5, 6]] = -1.0
    key = np.zeros(D_MLP)
    key[list(first.columns)] = first.key.array
    expected = before[DOWN.format(0)] @ (key * scale) + delta(first, second) @ key
    found = after[DOWN.format(0)].astype(float) @ (key * scale)
    assert np.abs(found - expected).max() <= (1e-4 if kind == F32 else 0.1)
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()


def test_a_column_whose_row_is_multiplied_by_zero_is_refused(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointError, match=r"ffn_down.weight cannot get a direction in column 5, whose row"):
        write(source, tmp_path / "out", direction(), ColumnEdit(Cell(0, 5), 0.0))
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [F32, pytest.param(Q4_1, marks=pytest.mark.exhaustive), Q6_K])
def test_edits_on_top_of_each_other_verify_undo_and_replay(tmp_path: Path, kind: GGMLQuantizationType):
    source = tiny(tmp_path / "base" / "tiny.gguf", kind)
    original = source.read_bytes()
    steps = [
        (direction(0),),
        (ColumnEdit(Cell(0, 5)), direction(1, tuple(range(40))), ColumnEdit(Cell(1, 3))),
        (direction(0, tuple(range(0, 300, 3)), seed=3), direction(1, tuple(range(D_MLP)), seed=4)),
    ]
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for number, (folder, step) in enumerate(zip(folders, steps, strict=True)):
        before = source if number == 0 else folders[number - 1] / "tiny.gguf"
        write(before, folder, *step, entity=f"Entity {number}")
    proven(folders[2])
    for base in (*folders[:2], source):
        proven(folders[2], base)
    before, after = tensors(source), tensors(folders[2] / "tiny.gguf")
    differ = [(before[name] != after[name]).any(axis=0).sum() for name in map(DOWN.format, (0, 1))]
    assert prove(folders[2]).n_cells == sum(differ) + 2  # The rows of the two cells.
    for later, earlier in ((2, 1), (1, 0)):
        restored = undo(folders[later], tmp_path / f"undone{later}")
        expected = {path.relative_to(folders[earlier]): path for path in folders[earlier].rglob("*") if path.is_file()}
        found = {path.relative_to(restored): path for path in restored.rglob("*") if path.is_file()}
        assert found.keys() == expected.keys()
        assert all(path.read_bytes() == expected[name].read_bytes() for name, path in found.items())
        proven(restored)
    (tmp_path / "all").mkdir()
    undo_gguf(folders[2], tmp_path / "all", every_step=True)
    assert (tmp_path / "all" / "tiny.gguf").read_bytes() == original
    replay(folders[2], tmp_path / "again", base=str(source))
    assert (tmp_path / "again" / "tiny.gguf").read_bytes() == (folders[2] / "tiny.gguf").read_bytes()
    assert read_manifest(tmp_path / "again").tensors == read_manifest(folders[2]).tensors


def test_in_place_gives_the_same_bytes_and_takes_them_back(tmp_path: Path):
    source = tiny(tmp_path / "base" / "tiny.gguf")
    original = source.read_bytes()
    steps = [(direction(0), ColumnEdit(Cell(0, 5))), (direction(0, tuple(range(0, 300, 3)), seed=3),)]
    write(source, tmp_path / "one", *steps[0])
    write(tmp_path / "one" / "tiny.gguf", tmp_path / "two", *steps[1], entity="Bob")
    states = [original]
    for folder, step, entity in zip(("one", "two"), steps, ("Ada", "Bob"), strict=True):
        manifest = edit_in_place(source, EditSpec((EntityEdits(entity, step),), ModelRef("tiny")))
        states.append(source.read_bytes())
        assert states[-1] == (tmp_path / folder / "tiny.gguf").read_bytes()
        assert manifest.tensors == read_manifest(tmp_path / folder).tensors
        assert proven(source.parent) == manifest
    for state in states[-2::-1]:
        undo_in_place(source.parent)
        assert source.read_bytes() == state
    assert [path.name for path in source.parent.iterdir()] == ["tiny.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("n_places", [8, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_every_damage_of_an_output_is_found(tmp_path: Path, n_places: int):
    source, edit = tiny(tmp_path / "tiny.gguf"), direction()
    manifest = write(source, tmp_path / "out", edit)
    output, saved = tmp_path / "out" / "tiny.gguf", tmp_path / "out" / manifest.undo
    changed = changed_bytes(source, output)
    rng = np.random.default_rng(0)
    for path in (output, saved):
        good = path.read_bytes()
        places = drawn_places(path, n_places, rng)
        places |= {*changed[:3].tolist(), changed[0] - 1} if path == output else {len(good) - 1}
        for place, base in itertools.product(sorted(places), (None, source)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 0x11]) + good[place + 1 :])
            with pytest.raises(VerificationError) as caught:
                proven(tmp_path / "out", base)
            assert "\n" not in str(caught.value)
        path.write_bytes(good)
    proven(tmp_path / "out")
    saved.unlink()
    with pytest.raises(VerificationError, match="is missing"):
        proven(tmp_path / "out")
    write_manifest(replace(manifest, undo=None, added=()), tmp_path / "out")
    with pytest.raises(VerificationError, match="the saved columns of blk.0.ffn_down.weight are missing"):
        proven(tmp_path / "out")


def test_manifests_that_lie_are_found(tmp_path: Path):
    source, edit = tiny(tmp_path / "tiny.gguf"), direction()
    manifest = write(source, tmp_path / "out", edit)
    entry = manifest.tensors[0]
    other = replace(edit, write=Vector.of(edit.write.array * 1.5))
    shorter = {name: Vector.of(getattr(edit, name).array[1:]) for name in ("read", "key", "spread")}
    fewer = replace(edit, columns=edit.columns[1:], **shorter)
    lies = [
        replace(manifest, edits=(EntityEdits("Ada", (replace(edit, multiplier=0.0),)),)),
        replace(manifest, edits=(EntityEdits("Ada", (other,)),)),
        replace(manifest, edits=(EntityEdits("Ada", (fewer,)),)),
        replace(manifest, tensors=(replace(entry, place=replace(entry.place, first=1)),)),
        replace(manifest, tensors=(replace(entry, axis=0),)),
        replace(manifest, edits=(EntityEdits("Ada", (edit, ColumnEdit(Cell(0, 5)))),)),
        replace(
            manifest,
            edits=(EntityEdits("Ada", (replace(edit, layer=9),)),),
            tensors=(replace(entry, place=replace(entry.place, layer=9)),),
        ),
    ]
    for lie in lies:
        folder = tmp_path / "out"
        write_manifest(as_read(lie), folder)
        for base in (None, source):
            with pytest.raises(VerificationError) as caught:
                proven(folder, base)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in REFUSED])
def test_types_without_codes_of_single_weights_name_the_remedy(tmp_path: Path, kind: GGMLQuantizationType):
    source = tiny(tmp_path / "tiny.gguf", kind)
    with pytest.raises(
        CheckpointError, match=f"ffn_down.weight is {kind.name}, .*--tensor-type \\(in Python: tensor_type\\)"
    ) as caught:
        write(source, tmp_path / "out", direction())
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("edit", "error", "fault"),
    [
        (direction(2), InputError, "layer 2 is out of range"),
        (direction(0, (1, D_MLP)), InputError, "has column 512"),
        (direction(d_model=8), InputError, "writes 8 numbers"),
        (direction(multiplier=1.0), InputError, "changes nothing"),
    ],
)
def test_directions_that_do_not_fit_are_refused(tmp_path: Path, edit: DirectionEdit, error, fault: str):
    source = tiny(tmp_path / "tiny.gguf")
    with pytest.raises(error, match=fault):
        write(source, tmp_path / "out", edit)
    assert not any((tmp_path / "out").iterdir())


def test_damaged_matrices_are_refused_in_one_line(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf", Q4_1)
    tensor = next(tensor for tensor in GGUFReader(source).tensors if tensor.name == DOWN.format(0))
    content = bytearray(source.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.nan).tobytes()
    source.write_bytes(content)
    with pytest.raises(NumericalError, match=r"ffn_down.weight in tiny.gguf: .* NaN") as caught:
        write(source, tmp_path / "out", direction())
    assert "\n" not in str(caught.value)
    missing = tiny(tmp_path / "missing" / "tiny.gguf", metadata={"feed_forward_length": 256})
    with pytest.raises(CheckpointError, match=r"ffn_down.weight has shape \(256, 512\), expected shape \(256, 256\)"):
        write(missing, tmp_path / "no", direction(0, (1, 2)))


def test_a_matrix_that_a_number_outside_it_multiplies_is_refused(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf", NVFP4, extra={"blk.1.ffn_down.scale": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"ffn_down.weight is multiplied by blk.1.ffn_down.scale") as caught:
        write(source, tmp_path / "out", direction(1))
    assert "\n" not in str(caught.value)
    write(source, tmp_path / "other", direction(0))
    assert proven(tmp_path / "other", source)


def test_f16_that_overflows_is_refused(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf", GGMLQuantizationType.F16)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        write(source, tmp_path / "out", direction(size=1e7))


def test_logits_equal_those_of_the_edited_float_model(tmp_path: Path):
    model = tiny_model("llama")
    source = llama_gguf(tmp_path / "tiny.gguf", model)
    edit, cell = tiny_direction(1), ColumnEdit(Cell(1, 3), -1.0)
    write(source, tmp_path / "out", edit, cell)
    weight = model.model.layers[1].mlp.down_proj.weight
    original = logits(model)
    with torch.no_grad():
        weight[:, 3] *= -1.0
        columns = list(edit.columns)
        weight[:, columns] += (edit.multiplier - 1) * torch.outer(
            torch.tensor(edit.write.array), torch.tensor(edit.read.array)
        )
    assert (logits(model) - original).abs().max() > 1e-2
    assert (logits(load(tmp_path / "out" / "tiny.gguf")) - logits(model)).abs().max() <= 1e-4


@pytest.mark.exhaustive
@pytest.mark.real
def test_the_real_demo_file(tmp_path: Path, smollm2: ModelSource):
    source = smollm2.require_gguf()
    columns = tuple(range(0, 1536, 12))
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 0.5, len(columns))
    key = rng.standard_t(3, len(columns)) * spread
    down = next(tensor for tensor in GGUFReader(source).tensors if tensor.name == DOWN.format(3))
    matrix = dequantize(down.data, down.tensor_type)[:, columns].astype(float)
    read = key / spread**2 / (key**2 / spread**2).sum()
    edit = DirectionEdit(3, 0, 0.0, columns, *map(Vector.of, (read, matrix @ key, key, spread)))
    manifest = write(source, tmp_path / "out", edit)
    after = tensors(tmp_path / "out" / source.name, DOWN.format(3))[DOWN.format(3)][:, columns].astype(float)
    # The atom is gone: nothing of what the columns wrote about the key is left.
    assert np.linalg.norm(after @ key) <= 0.02 * np.linalg.norm(matrix @ key)
    assert proven(tmp_path / "out", source) == proven(tmp_path / "out") == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / source.name).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("reached", "wanted", "share"),
    [([0.98, 1.4], [1, 1], 1.4), ([0.5, 1.4], [1, 1], 0.5), ([1.8, 9.0], [2, 0], 0.9), ([1.0], [0], None)],
)
def test_the_share_that_is_recorded_is_the_furthest_from_one(reached, wanted, share):
    assert _furthest(np.array(reached), np.array(wanted)) == share
