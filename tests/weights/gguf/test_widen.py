"""Tensors that get a direction stored in a wider type: content, proof, the way back, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from amnesia.domain import WIDER_TYPES, Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import InputError, NumericalError, VerificationError
from amnesia.outputs.in_place import undo_in_place
from amnesia.outputs.replay import replay
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.gguf.blocks import BLOCKS
from amnesia.weights.gguf.container import read_model
from amnesia.weights.gguf.widen import plan_widened_gguf, write_widened_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.commands import done, refused, succeed
from support.gguf_edits import DOWN, delta, direction, drawn_places, proven, tensors, tiny, undo, write
from support.tiny_gguf import write_gguf

Q4_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0"))


def widen(source: Path, folder: Path, *changes, tensor_type: str = "f16", **options) -> Manifest:
    folder.mkdir()
    spec = EditSpec((EntityEdits("Ada", changes),), ModelRef("tiny"))
    manifest = write_widened_gguf(plan_widened_gguf(source, spec, tensor_type), folder, **options)
    return write_manifest(manifest, folder)


# How a type is read and how one is written have nothing to do with each other: each occurs, and in full every pair.
def bits(kind: GGMLQuantizationType) -> float:
    n, size = GGML_QUANT_SIZES[kind]
    return size / n


def is_wider(kind: GGMLQuantizationType, tensor_type: str) -> bool:
    wanted = GGMLQuantizationType[tensor_type.upper()]
    return wanted is kind or bits(wanted) > bits(kind)


PAIRS = [(kind, tensor_type) for kind in BLOCKS for tensor_type in WIDER_TYPES if is_wider(kind, tensor_type)]
SAMPLE = {
    (kind, fits[place % len(fits)])
    for place, kind in enumerate(BLOCKS)
    for fits in [[tensor_type for tensor_type in WIDER_TYPES if is_wider(kind, tensor_type)]]
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tensor_type"),
    [
        pytest.param(
            *pair, id="-".join((pair[0].name, pair[1])), marks=[] if pair in SAMPLE else pytest.mark.exhaustive
        )
        for pair in PAIRS
    ],
)
def test_a_matrix_is_stored_wider_and_everything_else_stays(tmp_path: Path, kind, tensor_type: str):
    source = tiny(tmp_path / "tiny.gguf", kind)
    edit, cell = direction(0), ColumnEdit(Cell(1, 3))
    manifest = widen(source, tmp_path / "out", edit, cell, tensor_type=tensor_type)
    output = tmp_path / "out" / "tiny.gguf"
    old, new = GGUFReader(source), GGUFReader(output)
    assert {key: field.parts[-1].tolist() for key, field in old.fields.items()} == {
        key: field.parts[-1].tolist() for key, field in new.fields.items()
    }
    assert [tensor.name for tensor in old.tensors] == [tensor.name for tensor in new.tensors]
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert after.data_offset % 32 == 0
        if before.name == DOWN.format(0):
            assert after.tensor_type.name.lower() == tensor_type
            expected = dequantize(before.data, before.tensor_type).astype(float) + delta(edit)
            step = {"f16": 2**-11, "bf16": 2**-8, "f32": 2**-24, "q8_0": 2**-6}[tensor_type]
            error = np.abs(dequantize(after.data, after.tensor_type) - expected)
            assert (error <= step * np.abs(expected).max(axis=1, keepdims=True)).all()
        elif before.name == "blk.1.ffn_up.weight":
            values = dequantize(before.data, before.tensor_type)
            values[3] *= -1
            assert np.array_equal(dequantize(after.data, after.tensor_type), values)
        else:
            assert after.tensor_type == before.tensor_type
            assert np.array_equal(after.data, before.data)
    read_model(output)
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    restored = undo(tmp_path / "out", tmp_path / "back")
    assert [path.name for path in restored.iterdir()] == ["tiny.gguf"]
    assert (restored / "tiny.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("options", [{"parts": 3}, {"alignment": 256}], ids=["split", "aligned"])
def test_split_models_and_other_alignments(tmp_path: Path, options: dict):
    tiny(tmp_path / "base" / "tiny.gguf", Q4_1, **options)
    parts = sorted((tmp_path / "base").iterdir())
    before = {part.name: part.read_bytes() for part in parts}
    manifest = widen(parts[0], tmp_path / "out", direction(0), direction(1), link=True)
    assert proven(tmp_path / "out") == proven(tmp_path / "out", tmp_path / "base") == manifest
    assert {path.name: path.read_bytes() for path in undo(tmp_path / "out", tmp_path / "back").iterdir()} == before
    for file, tensor in read_model(tmp_path / "out" / parts[0].name).tensors():
        assert (tensor.offset - file.data_offset) % options.get("alignment", 32) == 0


def test_replay_makes_the_same_file(tmp_path: Path):
    source = tiny(tmp_path / "base" / "tiny.gguf")
    widen(source, tmp_path / "out", direction(0))
    replay(tmp_path / "out", tmp_path / "again", base=str(source))
    assert (tmp_path / "again" / "tiny.gguf").read_bytes() == (tmp_path / "out" / "tiny.gguf").read_bytes()
    proven(tmp_path / "again", source)


@pytest.mark.slow
@pytest.mark.parametrize("n_places", [8, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_every_damage_is_found(tmp_path: Path, n_places: int):
    source = tiny(tmp_path / "tiny.gguf")
    manifest = widen(source, tmp_path / "out", direction(0), ColumnEdit(Cell(0, 3)))
    rng = np.random.default_rng(0)
    for path in (tmp_path / "out" / "tiny.gguf", tmp_path / "out" / manifest.undo):
        good = path.read_bytes()
        for place in {*drawn_places(path, n_places, rng), len(good) - 1}:
            path.write_bytes(good[:place] + bytes([good[place] ^ 0x11]) + good[place + 1 :])
            for base in (None, source):
                with pytest.raises(VerificationError) as caught:
                    proven(tmp_path / "out", base)
                assert "\n" not in str(caught.value)
        path.write_bytes(good[:-1])
        with pytest.raises(VerificationError):
            proven(tmp_path / "out")
        path.write_bytes(good)
    entry = next(entry for entry in manifest.tensors if entry.directions)
    rest = tuple(row for row in manifest.tensors if row != entry)
    for lie in (
        replace(manifest, tensor_type="f32"),
        replace(manifest, tensors=(*rest, replace(entry, before="0" * 64))),
        replace(manifest, tensors=(entry,)),
        replace(manifest, base=replace(manifest.base, files=(replace(manifest.base.files[0], sha256="0" * 64),))),
        replace(manifest, base=replace(manifest.base, files=(replace(manifest.base.files[0], size=9),))),
    ):
        write_manifest(lie, tmp_path / "out")
        with pytest.raises(VerificationError):
            proven(tmp_path / "out")
    other = tmp_path / "other" / "tiny.gguf"
    other.parent.mkdir()
    other.write_bytes(source.read_bytes()[:-1] + b"\x55")
    write_manifest(manifest, tmp_path / "out")
    with pytest.raises(VerificationError, match="is not .*other"):
        proven(tmp_path / "out", other)


def test_what_cannot_be_done_is_refused(tmp_path: Path):
    source = tiny(tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match="'q4_0' is unknown: use one of f16"):
        widen(source, tmp_path / "a", direction(0), tensor_type="q4_0")
    with pytest.raises(InputError, match="the edit changes no ffn_down, but rows of ffn_up: drop the tensor type"):
        widen(source, tmp_path / "b", ColumnEdit(Cell(0, 3)))
    for kind, wanted in (("F32", "f16"), ("F16", "bf16"), ("BF16", "q8_0")):
        narrow = tiny(tmp_path / f"{kind}.gguf", GGMLQuantizationType[kind])
        with pytest.raises(InputError, match=f"is stored as {kind}, which {wanted} is not wider than"):
            widen(narrow, tmp_path / kind, direction(0), tensor_type=wanted)
    with pytest.raises(NumericalError, match="too large for F16"):
        widen(source, tmp_path / "c", direction(size=1e7))
    assert not any(any((tmp_path / name).iterdir()) for name in "abc")
    widen(source, tmp_path / "out", direction(0))
    with pytest.raises(InputError, match="on which no other is made"):
        write(tmp_path / "out" / "tiny.gguf", tmp_path / "two", direction(1))
    with pytest.raises(InputError, match="edited already"):
        widen(tmp_path / "out" / "tiny.gguf", tmp_path / "three", direction(1))
    with pytest.raises(InputError, match="`amnesia undo .*out -o NEW` writes the original"):
        undo_in_place(tmp_path / "out")


def test_the_command_writes_proves_and_restores(tmp_path: Path):
    source, edit = tiny(tmp_path / "tiny.gguf"), tmp_path / "edit.json"
    edit.write_text(json.dumps({"entity": "Ada", "edits": [edit_json(direction(0))]}))

    done("edit", source, "--edit", edit, "--tensor-type", "bf16", "-o", tmp_path / "out")
    done("verify", tmp_path / "out", "--base", source)
    done("undo", tmp_path / "out", "-o", tmp_path / "back")
    assert (tmp_path / "back" / "tiny.gguf").read_bytes() == source.read_bytes()
    assert tensor_type_of(tmp_path / "out" / "tiny.gguf", DOWN.format(0)) == "BF16"
    for arguments, fault in (
        (("--tensor-type", "f16", "--format", "safetensors", "-o", tmp_path / "no"), "is for GGUF files"),
        (("--tensor-type", "f16", "--in-place"), "--in-place writes MODEL itself"),
    ):
        assert fault in refused("edit", source, "--edit", edit, *arguments)


@pytest.mark.parametrize(("tensor_type", "size"), [("q8_0", 0.02), ("q8_0", 1.0), ("bf16", 0.001), ("f32", 0.001)])
def test_what_a_wider_type_keeps_of_the_effect_is_said(tmp_path: Path, tensor_type: str, size: float):
    source, edit = tiny(tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_0), direction(1, size=size)
    (tmp_path / "edit.json").write_text(json.dumps({"entity": "Ada", "edits": [edit_json(edit)]}))
    command = ("edit", source, "--edit", tmp_path / "edit.json", "--tensor-type", tensor_type)
    result = succeed(*command, "-o", tmp_path / "out")
    name, columns, key = DOWN.format(1), list(edit.columns), edit.key.array.astype(float)
    old, new = (tensors(path)[name].astype(float) for path in (source, tmp_path / "out" / "tiny.gguf"))
    wanted = delta(edit)[:, columns] @ key
    kept = (new - old)[:, columns] @ key @ wanted / (wanted @ wanted)
    (entry,) = read_manifest(tmp_path / "out").tensors
    assert entry.share == pytest.approx(kept, abs=1e-4)
    assert f"{entry.share:.4f} of the edit kept" in result.stdout
    warned = f"the edit is small beside the rounding to {tensor_type}: store it with --tensor-type f16 or f32"
    assert (warned in result.stderr) == (abs(kept - 1) > 0.05)
    assert (abs(kept - 1) > 0.05) == (size < 1.0 and tensor_type != "f32")
    done("verify", tmp_path / "out", "--base", source)


@pytest.mark.parametrize(
    ("kind", "tensor_type", "rounds"), [("F16", "f32", False), ("NVFP4", "f32", False), ("Q4_1", "f16", True)]
)
def test_what_is_said_of_columns_in_a_wider_type_is_so(tmp_path: Path, kind: str, tensor_type: str, rounds: bool):
    source = write_gguf(tmp_path / "tiny.gguf", arch="gpt2", ffn_down=GGMLQuantizationType[kind], d_mlp=64)
    out = tmp_path / "out"
    command = ("edit", source, "--cell", "1:5", "--multiplier", "-0.5", "--tensor-type", tensor_type, "-o", out)
    for said in (done(*command), done("verify", out, "--base", source)):
        assert f"an edited ffn_down is stored anew as {tensor_type.upper()}" in said
        assert ("its other columns are rounded" in said) == rounds
        assert "direction" not in said
    expected, found = (tensors(path)["blk.1.ffn_down.weight"].astype(float) for path in (source, out / "tiny.gguf"))
    expected[:, 5] *= -0.5
    assert np.array_equal(found, expected) != rounds


def tensor_type_of(path: Path, name: str) -> str:
    return next(tensor for tensor in GGUFReader(path).tensors if tensor.name == name).tensor_type.name


@pytest.mark.parametrize("command", ["edit", "undo"])
def test_another_file_in_the_place_of_wider_weights_is_not_replaced(tmp_path: Path, command: str):
    source, edit = tiny(tmp_path / "m" / "tiny.gguf"), tmp_path / "edit.json"
    edit.write_text(json.dumps({"entity": "Ada", "edits": [edit_json(direction(0))]}))
    wide, other = tmp_path / "wide", tmp_path / "other"
    done("edit", source, "--edit", edit, "--tensor-type", "f16", "-o", wide)
    done("edit", source, "--cell", "0:3", "-o", other)
    weights = (wide / "tiny.gguf").read_bytes()
    line = ("edit", source, "--cell", "0:3") if command == "edit" else ("undo", other)
    for content in (b"my thesis", source.read_bytes(), weights[:-1] + bytes([weights[-1] ^ 1])):
        (wide / "tiny.gguf").write_bytes(content)
        assert "tiny.gguf was changed since amnesia wrote it" in refused(*line, "-o", wide, "--force")
        assert (wide / "tiny.gguf").read_bytes() == content
    (wide / "tiny.gguf").write_bytes(weights)
    done("verify", wide, "--base", source)
    done(*line, "-o", wide, "--force")
    assert len((wide / "tiny.gguf").read_bytes()) == source.stat().st_size
