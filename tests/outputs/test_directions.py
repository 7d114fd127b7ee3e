"""Directions in files: equal to plain torch and to PEFT's merge, provable, and taken back to the last bit."""

from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import InputError, NumericalError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.live.model import apply_edits, edited, wrap
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.vector import Vector
from amnesia.weights.adapter import WEIGHTS_NAME, write_adapter
from amnesia.weights.checkpoint import UNDO_NAME
from amnesia.weights.manifest_file import read_manifest
from support.checkpoints import weights
from support.direction_edits import ONE, SEVERAL, edit
from support.folders import tree
from support.tiny import D_MLP, D_MODEL, save_tiny, tiny_direction

# Plain, without biases; with a norm behind the MLP; transposed; with gate and up projection in one matrix.
KINDS = ("llama", "gemma2", "gpt2", "phi3")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def by_hand(tensors, model_type, edits):
    """The edited weights by plain torch: each row of a matrix (d_mlp, d_model) in turn."""
    transposed = model_type == "gpt2"
    for layer in range(3):
        ends = tuple(f".{layer}.mlp.{name}.weight" for name in ("down_proj", "c_proj", "dense_4h_to_h"))
        (name,) = (name for name in tensors if name.endswith(ends))
        before = tensors[name] if transposed else tensors[name].T
        wide = torch.float64 if before.dtype == torch.float64 else torch.float32
        after = before.clone()
        for neuron, column in enumerate(before):
            total, changed = torch.zeros(D_MODEL, dtype=wide), column.to(wide)
            for row in edits:
                if isinstance(row, ColumnEdit):
                    if row.cell == Cell(layer, neuron):
                        changed = changed * row.multiplier
                elif row.layer == layer and neuron in row.columns:
                    v = torch.tensor(row.write.array.copy()).to(wide)
                    u = torch.tensor(row.read.array.copy()).to(wide)[row.columns.index(neuron)]
                    total = total + (row.multiplier - 1.0) * v * u
            after[neuron] = (changed + total).to(before.dtype)
        tensors[name] = (after if transposed else after.T).contiguous()
    return tensors


@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_files_equal_plain_torch(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    manifest = edit(source, tmp_path / "out")
    expected, found = by_hand(weights(source), model_type, SEVERAL), weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [row.indices for row in manifest.tensors] == [ONE[0].columns, (7,), tuple(range(D_MLP))]
    assert [row.scaled for row in manifest.tensors] == [{}, {7: -1.0}, {5: -1.0}]
    assert [len(row.directions) for row in manifest.tensors] == [1, 0, 2]
    same = {name for name, content in tree(source).items() if tree(tmp_path / "out").get(name) == content}
    assert {*tree(source)} - same == {row.file for row in manifest.tensors}


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_types_equal_plain_torch(tmp_path, dtype):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB")
    tensors = {name: (tensor / 4).to(getattr(torch, dtype)) for name, tensor in weights(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    edit(source, tmp_path / "out")
    expected, found = by_hand(tensors, "llama", SEVERAL), weights(tmp_path / "out")
    assert all(torch.equal(found[name].double(), expected[name].double()) for name in expected)
    verify(tmp_path / "out", source)
    undo(tmp_path / "out", tmp_path / "undone")
    assert tree(tmp_path / "undone") == tree(source)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_adapter_is_the_edited_model(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    edit(source, tmp_path / "out", ONE)
    edit(source, tmp_path / "adapter", ONE, write_adapter)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {tensor.shape for name, tensor in tensors.items() if "lora_A" in name} == {(8, D_MLP)}
    merged = PeftModel.from_pretrained(load(source, dtype), tmp_path / "adapter").merge_and_unload().state_dict()
    expected = load(tmp_path / "out", dtype).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_in_a_layer_merge_to_within_rounding(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    edit(source, tmp_path / "out")
    edit(source, tmp_path / "adapter", writer=write_adapter)
    merged = PeftModel.from_pretrained(load(source, dtype), tmp_path / "adapter").merge_and_unload().state_dict()
    expected = load(tmp_path / "out", dtype).state_dict()
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    for name in expected:
        # One unit in the last place of float32 sums of this size, or of the type itself.
        exact = expected[name].double()
        ulp = torch.maximum(exact.abs() * torch.finfo(dtype).eps, torch.tensor(largest * 2**-23))
        assert ((merged[name].double() - exact).abs() <= ulp).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
def test_hooks_memory_file_and_adapter_give_the_same_logits(tmp_path, model_type):
    source = save_tiny(tmp_path / "source", model_type)
    edit(source, tmp_path / "out")
    edit(source, tmp_path / "adapter", writer=write_adapter)
    ids = torch.arange(3, 19).reshape(2, 8)
    live = wrap(load(source, torch.float32), None)
    with torch.no_grad():
        before = live.model(input_ids=ids).logits
        with edited(live, SEVERAL):
            by_hook = live.model(input_ids=ids).logits
        assert torch.equal(live.model(input_ids=ids).logits, before), "the block must leave the model as it was"
        expected = load(tmp_path / "out", torch.float32)(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(load(source, torch.float32), tmp_path / "adapter").eval()
        by_adapter = adapted(input_ids=ids).logits
        apply_edits(live, SEVERAL)
        in_memory = live.model(input_ids=ids).logits
    for found in (by_hook, by_adapter, in_memory):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 0.1


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_equals_the_file_bit_for_bit(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    edits = (*ONE, ColumnEdit(Cell(2, 5)))
    edit(source, tmp_path / "out", edits)
    live = wrap(load(source, dtype), None)
    apply_edits(live, edits)
    expected = load(tmp_path / "out", dtype).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in live.model.state_dict().items())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_proven_and_taken_back(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    manifest = edit(source, tmp_path / "out")
    n_columns = len(ONE[0].columns) + 1 + D_MLP
    for base in (None, source):
        assert verify(tmp_path / "out", base).n_cells == n_columns
    # The flipped column can be computed back.
    assert {*load_file(tmp_path / "out" / UNDO_NAME)} == {f"{manifest.tensors[at].name}:directions" for at in (0, 2)}
    assert undo(tmp_path / "out", tmp_path / "undone") == manifest == read_manifest(tmp_path / "out")
    assert tree(tmp_path / "undone") == tree(source)
    edit(source, tmp_path / "adapter", writer=write_adapter)
    for base in (None, source):
        assert verify(tmp_path / "adapter", base).n_cells == n_columns


@pytest.mark.slow
def test_what_is_saved_is_small(tmp_path):
    """A direction that changes weights by less than their size leaves little to keep, if it changes all of them."""
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16, hidden_size=128, intermediate_size=256)
    dense = replace(tiny_direction(1, range(256)), write=Vector.of(np.linspace(-0.1, 0.1, 128)))
    manifest = edit(source, tmp_path / "out", [dense])
    assert (tmp_path / "out" / UNDO_NAME).stat().st_size < 128 * 256 * 2 / 8
    name = manifest.tensors[0].name
    before, after = weights(source)[name], weights(tmp_path / "out")[name]
    assert (before != after).float().mean() > 0.5
    undo(tmp_path / "out", tmp_path / "undone")
    assert tree(tmp_path / "undone") == tree(source)


def test_numbers_that_the_way_back_would_make_infinite(tmp_path):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB", dtype=torch.float16)
    tensors = weights(source)
    tensors["model.layers.0.mlp.down_proj.weight"][:, 0] = 65504.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    # 65504 − 48 is a tie and becomes 65472; with 48 back it is another, which rounds up to infinity.
    one = replace(tiny_direction(0, (0, 3)), read=Vector.of([1.0, 1.0]), write=Vector.of(np.full(D_MODEL, 24.0)))
    edit(source, tmp_path / "out", [one])
    assert (weights(tmp_path / "out")["model.layers.0.mlp.down_proj.weight"][:, 0] == 65472.0).all()
    undo(tmp_path / "out", tmp_path / "undone")
    assert tree(tmp_path / "undone") == tree(source)


STEPS = (
    EntityEdits("Paris", (tiny_direction(0), ColumnEdit(Cell(0, 3), -1.7))),
    EntityEdits("Rome", (tiny_direction(0, range(9), seed=3), tiny_direction(1, seed=4))),
    EntityEdits("Oslo", (ColumnEdit(Cell(0, 6)), ColumnEdit(Cell(1, 2)))),
    EntityEdits("Lima", (tiny_direction(0, (3, 6), multiplier=0.0, seed=5),)),
)


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_edits_on_top_of_each_other(tmp_path, order, model_type):
    source = save_tiny(tmp_path / "0", model_type, dtype=torch.bfloat16)
    expected = weights(source)
    for count, step in enumerate(order, start=1):
        edit(tmp_path / str(count - 1), tmp_path / str(count), STEPS[step].edits, entity=STEPS[step].entity)
        expected = by_hand(expected, model_type, STEPS[step].edits)
        found = weights(tmp_path / str(count))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for base in (None, source, tmp_path / "2"):
        verify(tmp_path / "4", base)
    undo(tmp_path / "4", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "3")
    undo(tmp_path / "4", tmp_path / "base", every_step=True)
    assert tree(tmp_path / "base") == tree(source)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_in_place(tmp_path, model_type):
    path = save_tiny(tmp_path / "model", model_type, dtype=torch.bfloat16)
    base = copytree(path, tmp_path / "base")
    edit(base, tmp_path / "copy", STEPS[0].edits)
    states = [tree(path)]
    for step in STEPS:
        edit_in_place(path, EditSpec((step,), ModelRef("a/b")))
        states.append(tree(path))
        assert prove(path).n_cells == verify(path, base).n_cells
    assert {**states[1], MANIFEST_NAME: b""} == {**tree(tmp_path / "copy"), MANIFEST_NAME: b""}
    take_back(path, tmp_path / "undone", every_step=True)
    assert tree(tmp_path / "undone") == states[0]
    for state in reversed(states[:-1]):
        undo_in_place(path)
        assert tree(path) == state


def test_two_entities_may_share_columns_of_directions_but_no_scaled_cell(tmp_path):
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    rome = EntityEdits("Rome", (tiny_direction(0, seed=8), ColumnEdit(Cell(1, 1))))
    manifest = edit(source, tmp_path / "out", [tiny_direction(0)], also=[rome])
    expected = by_hand(weights(source), "llama", [tiny_direction(0), *rome.edits])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())
    assert manifest.tensors[0].directions == (tiny_direction(0), rome.edits[0])
    with pytest.raises(InputError, match="cell 1:1 is edited for both"):
        edit(source, tmp_path / "clash", [ColumnEdit(Cell(1, 1))], also=[rome])


def test_overflow_is_an_error_that_names_the_column(tmp_path):
    source = save_tiny(tmp_path / "source", dtype=torch.float16)
    large = replace(tiny_direction(0), write=Vector.of(np.full(D_MODEL, 1e6)))
    with pytest.raises(NumericalError, match=r"layers.0.mlp.down_proj.weight, neuron 0: .*inf"):
        edit(source, tmp_path / "out", [large])
    with pytest.raises(NumericalError, match=r"down_proj.weight: a direction overflows"):
        edit(source, tmp_path / "adapter", [replace(large, multiplier=-1e38)], write_adapter)
    assert not (tmp_path / "out").exists() and not (tmp_path / "adapter").exists()
