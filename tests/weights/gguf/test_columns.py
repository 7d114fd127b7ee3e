"""Cells of GGUF files that are columns: exactness in every type and architecture, also in a wider type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from amnesia.domain import ModelRef
from amnesia.edits import EditSpec, EntityEdits
from amnesia.errors import CheckpointError, InputError, VerificationError
from amnesia.weights.gguf.blocks import SIGNS
from amnesia.weights.gguf.layout import BY_COLUMNS
from amnesia.weights.gguf.lora import plan_lora
from amnesia.weights.gguf.proof import undo_gguf
from amnesia.weights.gguf.widen import plan_widened_gguf, write_widened_gguf
from amnesia.weights.manifest_file import write_manifest
from support.gguf_edits import (
    F32,
    Q4_1,
    Q8_0,
    changed_bytes,
    direction,
    edits,
    proven,
    tensors,
    undo,
    write,
)
from support.tiny_gguf import (
    D_MODEL,
    N_LAYERS,
    write_gguf,
)

# What gpt-oss, GPT-2 and others add behind and before their MLP, which no cell changes.
BIASES = {f"blk.{layer}.ffn_{part}.bias": np.ones(64, "f4") for layer in range(N_LAYERS) for part in ("up", "down")}


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*(kind.name for kind in SIGNS), "F16", "BF16", "F32"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt-oss"])
def test_where_no_row_stands_for_a_column_the_column_itself_is_negated(tmp_path: Path, architecture: str, kind: str):
    experts = (4, 64) if architecture == "gpt-oss" else None
    options = {"arch": architecture, "experts": experts, "d_mlp": 64, "extra": BIASES}
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0, ffn_down=GGMLQuantizationType[kind], **options)
    cells = ("0:2:5", "0:2:21", "1:3:63") if experts else ("0:5", "0:21", "1:63")
    manifest = write(source, tmp_path / "out", *edits(*cells))
    output = tmp_path / "out" / "tiny.gguf"
    # 5 and 21 share their bytes in MXFP4.
    where = {0: ("2", [5, 21]), 1: ("3", [63])}
    before, after = tensors(source), tensors(output)
    for name, values in before.items():
        expected = values.copy()
        for layer, (expert, columns) in where.items():
            if name == f"blk.{layer}.ffn_down{'_exps' if experts else ''}.weight":
                matrix = expected[int(expert)] if experts else expected
                matrix[:, columns] *= -1
        assert np.array_equal(after[name], expected), name
    # The sign of every weight.
    bits = np.unpackbits(np.bitwise_xor(*(np.frombuffer(path.read_bytes(), np.uint8) for path in (source, output))))
    assert bits.sum() == 3 * D_MODEL
    assert [(entry.axis, entry.multipliers) for entry in manifest.tensors] == [
        (1, {5: -1.0, 21: -1.0}),
        (1, {63: -1.0}),
    ]
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()
    # Another edit on top, and both taken back.
    again = write(
        output, tmp_path / "two", *edits(cells[1].replace("21", "37"), cells[0].replace("5", "6")), entity="Eve"
    )
    assert proven(tmp_path / "two", source) == again
    undo_gguf(tmp_path / "two", empty(tmp_path / "first"), every_step=True)
    assert (tmp_path / "first" / "tiny.gguf").read_bytes() == source.read_bytes()
    damaged = bytearray(output.read_bytes())
    damaged[changed_bytes(source, output)[0]] ^= 0x80
    output.write_bytes(damaged)
    with pytest.raises(VerificationError):
        proven(tmp_path / "out")


@pytest.mark.parametrize("kind", ["F16", "MXFP4"])
def test_other_multipliers_of_a_column_need_plain_numbers(tmp_path: Path, kind: str):
    source = write_gguf(tmp_path / "tiny.gguf", arch="gpt2", ffn_down=GGMLQuantizationType[kind], d_mlp=64)
    changes = edits("1:7", multiplier=-1.3125)
    if kind == "MXFP4":
        with pytest.raises(CheckpointError, match="multiplier -1.3125 is not exact in MXFP4, of which only the signs"):
            write(source, tmp_path / "out", *changes)
        return
    manifest = write(source, tmp_path / "out", *changes)
    before, after = (tensors(path)["blk.1.ffn_down.weight"] for path in (source, tmp_path / "out" / "tiny.gguf"))
    expected = before.copy()
    expected[:, 7] = (before[:, 7].astype(np.float64) * -1.3125).astype(np.float16)
    assert np.array_equal(after, expected)
    assert proven(tmp_path / "out", source) == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("architecture", BY_COLUMNS)
def test_every_architecture_of_columns_is_edited_by_them(tmp_path: Path, architecture: str):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0, arch=architecture, d_mlp=32, extra=BIASES)
    write(source, tmp_path / "out", *edits("1:3"))
    planned = plan_lora(source, EditSpec((EntityEdits("Ada", tuple(edits("1:3"))),), ModelRef("tiny")))
    assert [(row.tensor.name, row.scaled) for row in planned.tensors] == [("blk.1.ffn_down.weight", {3: -1.0})]
    proven(tmp_path / "out", source)
    before, after = (tensors(path) for path in (source, tmp_path / "out" / "tiny.gguf"))
    before["blk.1.ffn_down.weight"] = before["blk.1.ffn_down.weight"] * np.where(np.arange(32) == 3, -1, 1)
    assert all(np.array_equal(after[name], values) for name, values in before.items())


def test_a_cell_and_a_direction_of_one_matrix_by_columns(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", arch="gpt2", ffn_down=F32, d_mlp=64)
    turned = direction(1, (3, 40))
    manifest = write(source, tmp_path / "out", *edits("1:3", "1:5"), turned)
    matrix = tensors(source)["blk.1.ffn_down.weight"].astype(np.float64)
    matrix[:, [3, 5]] *= -1
    matrix[:, [3, 40]] += (turned.multiplier - 1) * np.outer(turned.write.array, turned.read.array)
    found = tensors(tmp_path / "out" / "tiny.gguf")["blk.1.ffn_down.weight"]
    np.testing.assert_allclose(found, matrix, rtol=1e-6, atol=1e-7)
    (entry,) = manifest.tensors
    assert (entry.multipliers, entry.share) == ({3: -1.0, 5: -1.0, 40: 1.0}, 1.0)
    assert proven(tmp_path / "out", source) == proven(tmp_path / "out") == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()


def test_a_wider_type_lets_cells_be_columns_too(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", arch="gpt2", ffn_down=Q4_1, d_mlp=64)
    folder = empty(tmp_path / "out")
    spec = EditSpec((EntityEdits("Ada", tuple(edits("1:3"))),), ModelRef("tiny"))
    manifest = write_manifest(write_widened_gguf(plan_widened_gguf(source, spec, "f32"), folder), folder)
    before, after = (tensors(path) for path in (source, folder / "tiny.gguf"))
    before["blk.1.ffn_down.weight"] = before["blk.1.ffn_down.weight"] * np.where(np.arange(64) == 3, -1, 1)
    assert all(np.array_equal(after[name], values) for name, values in before.items())
    assert proven(folder, source) == manifest
    assert (undo(folder, tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()
    mixture = write_gguf(tmp_path / "mixture.gguf", arch="gpt-oss", experts=(4, 64))
    spec = EditSpec((EntityEdits("Ada", tuple(edits("1:2:3"))),), ModelRef("tiny"))
    with pytest.raises(InputError, match=r"ffn_down_exps.weight\[2\] is the matrix of one expert of many"):
        plan_widened_gguf(mixture, spec, "f32")
