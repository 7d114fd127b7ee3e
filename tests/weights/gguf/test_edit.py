"""Editing GGUF files: exactness in every type, undo, experts, and transformers as judge of the function."""

from __future__ import annotations

import filecmp
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, GGMLQuantizationType
from gguf.quants import dequantize
from transformers import PreTrainedModel

from amnesia.architectures import LAYOUTS
from amnesia.domain import ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import CheckpointError, InputError, NumericalError, VerificationError
from amnesia.files.disk import hash_file
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.gguf.blocks import BLOCKS, SIGNS
from amnesia.weights.gguf.container import read_header
from amnesia.weights.gguf.layout import BY_COLUMNS, FUSED, MIXTURES
from amnesia.weights.gguf.lora import plan_lora
from amnesia.weights.manifest_file import write_manifest
from support.gguf_edits import (
    F32,
    Q4_1,
    Q4_K,
    Q8_0,
    changed_bytes,
    direction,
    edits,
    load,
    logits,
    proven,
    tensors,
    undo,
    write,
)
from support.tiny import tiny_model
from support.tiny_gguf import (
    D_MLP,
    D_MODEL,
    MODEL_ARCH_BY_NAME,
    N_LAYERS,
    gemma3_gguf,
    llama_gguf,
    phi3_gguf,
    write_gguf,
)


@pytest.mark.parametrize("tensor_type", [pytest.param(kind, id=kind.name) for kind in (*BLOCKS, *SIGNS)])
def test_every_type_negates_declared_rows_and_nothing_else(tmp_path: Path, tensor_type: GGMLQuantizationType):
    source = write_gguf(tmp_path / "tiny.gguf", tensor_type)
    manifest = write(source, tmp_path / "out", *edits("0:3", "1:0", "1:11"))
    output = tmp_path / "out" / "tiny.gguf"
    before, after = tensors(source), tensors(output)
    rows = {"blk.0.ffn_up.weight": [3], "blk.1.ffn_up.weight": [0, 11]}
    for name, values in before.items():
        expected = values.copy()
        expected[rows.get(name, [])] *= -1
        assert np.array_equal(after[name], expected), name
    # Of all bytes of the file, only those with the sign of a scale differ, or with those of two codes.
    block_size, _ = GGML_QUANT_SIZES[tensor_type]
    n_signs = block_size // 2 if tensor_type in SIGNS else len(BLOCKS[tensor_type].scales)
    assert len(changed_bytes(source, output)) == 3 * D_MODEL // block_size * n_signs
    assert [(entry.name, entry.indices, entry.axis) for entry in manifest.tensors] == [
        ("blk.0.ffn_up.weight", (3,), 0),
        ("blk.1.ffn_up.weight", (0, 11), 0),
    ]
    assert manifest.undo is None
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    restored = undo(tmp_path / "out", tmp_path / "back")
    assert [path.name for path in restored.iterdir()] == ["tiny.gguf"]
    assert (restored / "tiny.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_1", "Q4_K", "IQ1_M"])
@pytest.mark.parametrize("multiplier", [-2.0, -8.0, 0.0])
def test_other_exact_multipliers_verify_and_undo(tmp_path: Path, kind: str, multiplier: float):
    source = write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType[kind])
    manifest = write(source, tmp_path / "out", *edits("1:5", multiplier=multiplier))
    before, after = tensors(source), tensors(tmp_path / "out" / "tiny.gguf")
    name = "blk.1.ffn_up.weight"
    assert np.array_equal(after[name][5], multiplier * before[name][5])
    assert np.array_equal(np.delete(after[name], 5, 0), np.delete(before[name], 5, 0))
    # Zero cannot be divided out again, so that its rows are kept; powers of two need no memory.
    assert manifest.undo == ("amnesia-undo.safetensors" if multiplier == 0 else None)
    proven(tmp_path / "out", source)
    proven(tmp_path / "out")
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_multipliers_that_round_are_undone_from_saved_rows(tmp_path: Path, kind: str):
    source = write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType[kind])
    changes = [*edits("0:1", multiplier=-1.3), *edits("0:2"), *edits("1:4", multiplier=0.7)]
    manifest = write(source, tmp_path / "out", *changes)
    assert manifest.undo is not None
    proven(tmp_path / "out", source)
    proven(tmp_path / "out")
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()
    (tmp_path / "out" / manifest.undo).unlink()
    with pytest.raises(VerificationError, match="is missing"):
        proven(tmp_path / "out")
    write_manifest(replace(manifest, undo=None, added=()), tmp_path / "out")
    with pytest.raises(VerificationError, match=r"was not saved and cannot be computed for multiplier -1\.3"):
        proven(tmp_path / "out")


def test_a_multiplier_that_is_not_exact_is_refused_before_writing(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q4_K)
    with pytest.raises(CheckpointError, match=r"row 1 of blk\.0\.ffn_up\.weight .* multiplier -3 is not exact in Q4_K"):
        write(source, tmp_path / "out", *edits("0:1", multiplier=-3.0))
    assert not any((tmp_path / "out").iterdir())


def test_a_row_with_nan_is_refused(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", F32)
    tensor = next(tensor for tensor in GGUFReader(source).tensors if tensor.name == "blk.0.ffn_up.weight")
    content = bytearray(source.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 4] = np.float32(np.nan).tobytes()
    source.write_bytes(content)
    with pytest.raises(NumericalError, match="nan"):
        write(source, tmp_path / "out", *edits("0:0"))


@pytest.mark.parametrize("architecture", FUSED)
def test_a_row_stands_for_a_column_in_every_architecture(tmp_path: Path, architecture: str):
    fused = MODEL_TENSOR.FFN_GATE not in MODEL_TENSORS[MODEL_ARCH_BY_NAME[architecture]]
    gates = tuple(f"blk.{layer}.ffn_gate.weight" for layer in range(N_LAYERS)) if fused else ()
    source = write_gguf(tmp_path / "tiny.gguf", F32, arch=architecture, n_rows=2 * D_MLP if fused else None, omit=gates)
    write(source, tmp_path / "out", *edits("1:3", multiplier=-4.0))

    def by_hand(path: Path, multiplier: float) -> np.ndarray:
        """What the MLP of layer 1 makes of some numbers, with column 3 of the projection multiplied."""
        names = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        up, down = names["blk.1.ffn_up.weight"], names["blk.1.ffn_down.weight"].copy()
        gate, up = (up[:D_MLP], up[D_MLP:]) if fused else (names["blk.1.ffn_gate.weight"], up)
        down[:, 3] *= multiplier
        values = np.random.default_rng(0).normal(size=D_MODEL) / 16
        inner = gate @ values
        return down @ (inner / (1 + np.exp(-inner)) * (up @ values))

    np.testing.assert_allclose(by_hand(tmp_path / "out" / "tiny.gguf", 1.0), by_hand(source, -4.0), rtol=1e-6)
    assert np.abs(by_hand(source, -4.0) - by_hand(source, 1.0)).max() > 1e-2


def expert_by_hand(path: Path, expert: int, multiplier: float, column: int = 3) -> np.ndarray:
    """What an expert of layer 1 makes of some numbers, with a column of its projection multiplied.

    llama.cpp (`build_moe_ffn`) takes the first half of `ffn_gate_up_exps` for the gate, the second for up.
    """
    names = {name.removeprefix("blk.1.ffn_"): values for name, values in tensors(path, "blk.1.ffn_").items()}
    down, both = names["down_exps.weight"][expert].copy(), names.get("gate_up_exps.weight")
    if both is None:
        gate, up = names["gate_exps.weight"][expert], names["up_exps.weight"][expert]
    else:
        gate, up = np.split(both[expert], 2)
    down[:, column] *= multiplier
    values = np.random.default_rng(0).normal(size=D_MODEL) / 16
    inner = gate @ values
    return down @ (inner / (1 + np.exp(-inner)) * (up @ values))


@pytest.mark.slow
@pytest.mark.parametrize("fuse_experts", [False, True])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_row_stands_for_a_column_of_an_expert_in_every_mixture(tmp_path: Path, architecture: str, fuse_experts: bool):
    options = {"arch": architecture, "experts": (4, 32), "fuse_experts": fuse_experts}
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0, **options)
    manifest = write(source, tmp_path / "out", *edits("1:2:3", multiplier=-4.0))
    output = tmp_path / "out" / "tiny.gguf"
    np.testing.assert_allclose(expert_by_hand(output, 2, 1.0), expert_by_hand(source, 2, -4.0), rtol=1e-6)
    assert np.abs(expert_by_hand(source, 2, -4.0) - expert_by_hand(source, 2, 1.0)).max() > 1e-2
    (entry,) = manifest.tensors
    name = f"blk.1.ffn_{'gate_up' if fuse_experts else 'up'}_exps.weight[2]"
    assert (entry.name, entry.indices) == (name, (32 + 3 if fuse_experts else 3,))
    assert proven(tmp_path / "out", source) == proven(tmp_path / "out") == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()


def test_every_type_that_the_gguf_package_names_alike_has_a_row():
    known = {*FUSED, *MIXTURES, *BY_COLUMNS}
    alike = {re.sub(r"[-_]", "", name): name for name in MODEL_ARCH_NAMES.values()}
    types = {alike.get(re.sub(r"_text$|_", "", model_type)) for model_type in LAYOUTS}
    assert {name for name in types if name} <= known
    assert {"qwen3vlmoe", "falcon-h1", "olmo", "granite", "qwen35moe"} <= types


def test_a_layer_that_only_predicts_tokens_ahead_is_not_edited(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", F32, arch="qwen35", metadata={"nextn_predict_layers": 1})
    ahead = "layer 1 of tiny.gguf predicts tokens ahead .* edit one of the 1 layers before"
    with pytest.raises(CheckpointError, match=ahead):
        write(source, tmp_path / "out", *edits("1:3"))
    with pytest.raises(CheckpointError, match=ahead):
        write(source, tmp_path / "turned", direction(1, (1, 2)))
    with pytest.raises(CheckpointError, match=ahead):
        plan_lora(source, EditSpec((EntityEdits("Ada", tuple(edits("1:3"))),), ModelRef("tiny")))
    write(source, tmp_path / "before", *edits("0:3"))


def test_experts_in_tensors_of_their_own_are_an_old_form(tmp_path: Path):
    extra = {f"blk.{layer}.ffn_down.{n}.weight": np.ones((D_MODEL, 8), "f4") for layer in range(2) for n in range(4)}
    source = write_gguf(tmp_path / "tiny.gguf", F32, metadata={"expert_count": 4}, extra=extra)
    with pytest.raises(
        CheckpointError, match="each expert in a tensor of its own, an old form: .*convert the model again"
    ):
        write(source, tmp_path / "out", *edits("1:3"))


@torch.no_grad()
def scale_columns(model: PreTrainedModel, changes: list[ColumnEdit]) -> PreTrainedModel:
    for edit in changes:
        model.model.layers[edit.cell.layer].mlp.down_proj.weight[:, edit.cell.neuron] *= edit.multiplier
    return model


@pytest.mark.parametrize(
    ("model_type", "writer"), [("llama", llama_gguf), ("phi3", phi3_gguf), ("gemma3_text", gemma3_gguf)]
)
def test_logits_equal_those_of_the_edited_float_model(tmp_path: Path, model_type: str, writer):
    model = tiny_model(model_type)
    source = writer(tmp_path / "tiny.gguf", model)
    assert (logits(load(source)) - logits(model)).abs().max() <= 1e-4
    changes = [*edits("0:3", "2:47", multiplier=-4.0), *edits("1:20")]
    original = logits(model)
    write(source, tmp_path / "out", *changes, expected=(3, 32, 48))
    expected = logits(scale_columns(model, changes))
    assert (logits(load(tmp_path / "out" / "tiny.gguf")) - expected).abs().max() <= 1e-4
    assert (original - expected).abs().max() > 1e-2


@pytest.mark.slow
def test_logits_of_a_quantized_file_equal_those_of_its_dequantized_model(tmp_path: Path):
    source = llama_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), Q8_0)
    changes = edits("0:3", "1:20", "2:47", multiplier=-8.0)
    write(source, tmp_path / "out", *changes)
    expected = logits(scale_columns(load(source), changes))
    assert (logits(load(tmp_path / "out" / "tiny.gguf")) - expected).abs().max() <= 1e-4


# In the normal tier llama.cpp reads such an edit of this file, and the file of mixed types is proven and undone.
@pytest.mark.exhaustive
@pytest.mark.real
def test_the_real_demo_file(tmp_path: Path, smollm2: ModelSource):
    source = smollm2.require_gguf()
    manifest = write(source, tmp_path / "out", *edits("0:0", "7:1535", "29:600"))
    output = tmp_path / "out" / source.name
    changed = changed_bytes(source, output)
    # Q4_1 has d and m for each of the 18 blocks of a row of 576 values; the sign is in the high byte of each.
    assert len(changed) == 3 * 18 * 2
    before, after = tensors(source, "ffn_up"), tensors(output, "ffn_up")
    for layer, neuron in [(0, 0), (7, 1535), (29, 600)]:
        name = f"blk.{layer}.ffn_up.weight"
        assert np.array_equal(after[name][neuron], -before[name][neuron])
    assert proven(tmp_path / "out", source) == proven(tmp_path / "out") == manifest
    assert hash_file(undo(tmp_path / "out", tmp_path / "back") / source.name) == hash_file(source)


@pytest.mark.real
def test_the_real_file_of_mixed_types(tmp_path: Path):
    """Gemma 3 270M as Q4_K_M: up is Q5_0, down Q4_K or Q6_K, by layer."""
    source = resolve("gemma-3-270m").require_gguf()
    kinds = read_header(source).tensors  # GGUFReader takes long for 262,144 tokens.
    downs = {kinds[f"blk.{layer}.ffn_down.weight"].tensor_type.name: layer for layer in range(18)}
    assert {*downs} == {"Q4_K", "Q6_K"} and kinds["blk.0.ffn_up.weight"].tensor_type.name == "Q5_0"
    turned = [direction(layer, tuple(range(5, 2048, 9)), d_model=640, size=0.1) for layer in downs.values()]
    manifest = write(source, tmp_path / "out", *edits("0:0", "2:2047", "17:600"), *turned)
    output = tmp_path / "out" / source.name
    before, after = (np.fromfile(path, np.uint8) for path in (source, output))
    declared = {entry.name: (entry.axis, [*entry.indices]) for entry in manifest.tensors}
    assert len(declared) == 5
    for name, (axis, indices) in declared.items():
        tensor = kinds[name]
        place = slice(tensor.offset, tensor.offset + tensor.n_bytes)
        rows = (content[place].reshape(-1, tensor.row_bytes) for content in (before, after))
        old, new = (dequantize(found, tensor.tensor_type) for found in rows)
        assert np.array_equal(np.delete(new, indices, axis), np.delete(old, indices, axis)), name
        if axis == 0:
            assert np.array_equal(new[indices], -old[indices])
        else:
            assert (new != old).any(axis=0)[indices].mean() > 0.5
        after[place] = before[place]
    assert np.array_equal(after, before)
    assert proven(tmp_path / "out", source) == manifest
    assert filecmp.cmp(undo(tmp_path / "out", tmp_path / "back") / source.name, source, shallow=False)


@pytest.mark.parametrize("kind", ["F16", "Q4_K", "MXFP4", "IQ1_M"])
def test_cells_of_experts_are_rows_of_their_matrices(tmp_path: Path, kind: str):
    source = write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType[kind], arch="qwen3moe", experts=(4, 32))
    manifest = write(source, tmp_path / "out", *edits("0:2:31", "0:3:0", "1:0:5", "1:7"))
    before, after = tensors(source), tensors(tmp_path / "out" / "tiny.gguf")
    rows = {"blk.0.ffn_up_exps.weight": ([2, 3], [31, 0]), "blk.1.ffn_up_exps.weight": ([0], [5])}
    rows["blk.1.ffn_up.weight"] = ([7],)
    for name, values in before.items():
        expected = values.copy()
        if name in rows:
            expected[rows[name]] *= -1
        assert np.array_equal(after[name], expected), name
    assert [(entry.name, entry.indices) for entry in manifest.tensors if entry.place.layer == 0] == [
        ("blk.0.ffn_up_exps.weight[2]", (31,)),
        ("blk.0.ffn_up_exps.weight[3]", (0,)),
    ]
    assert proven(tmp_path / "out") == proven(tmp_path / "out", source) == manifest
    assert (undo(tmp_path / "out", tmp_path / "back") / "tiny.gguf").read_bytes() == source.read_bytes()
    for cell, fault in (("0:4:0", "expert 4 is out of range"), ("0:1:32", "neuron 32 is out of range")):
        with pytest.raises(InputError, match=fault):
            write(source, tmp_path / f"no {cell}", *edits(cell))


def test_layers_without_anything_but_experts_have_no_other_cells(tmp_path: Path):
    names = tuple(f"blk.0.ffn_{part}.weight" for part in ("up", "gate", "down"))
    source = write_gguf(tmp_path / "tiny.gguf", arch="llama", experts=(4, 32), omit=names)
    write(source, tmp_path / "out", *edits("0:1:4", "1:3"))
    proven(tmp_path / "out", source)
    with pytest.raises(InputError, match=r"cell 0:4 names no expert: layer 0 of tiny\.gguf has experts 0–3"):
        write(source, tmp_path / "no", *edits("0:4"))


def test_widths_may_be_listed_layer_by_layer(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q4_1, arch="gemma4", widths=(64, 128))
    manifest = write(source, tmp_path / "out", *edits("0:63", "1:127"))
    assert [row.indices for row in manifest.tensors] == [(63,), (127,)]
    proven(tmp_path / "out", source)
    with pytest.raises(InputError, match="neuron 64 is out of range: layer 0 of tiny.gguf has neurons 0–63"):
        write(source, tmp_path / "no", *edits("0:64"))
    other = write_gguf(tmp_path / "other.gguf", arch="gemma4", widths=(64, 128), metadata={"block_count": 2}, n_rows=7)
    with pytest.raises(CheckpointError, match=r"ffn_up.weight has shape \(7, 256\), expected shape \(64, 256\)"):
        write(other, tmp_path / "no more", *edits("0:3"))
