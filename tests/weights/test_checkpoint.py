"""The edited copy against torch, byte for byte; refusals; and what a crash leaves behind."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import AmnesiaError, CheckpointError, InputError, LayoutError, OutputError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.verify import verify
from amnesia.weights.checkpoint import UNDO_NAME, open_source, write_edited
from amnesia.weights.manifest_file import read_manifest
from support.checkpoints import EDITS, edit, weights
from support.folders import ROOT, tree
from support.tiny import D_MLP, D_MODEL, MODEL_TYPES, N_LAYERS, save_tiny, write_with


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_exactly_the_columns_change(tmp_path, model_type, tied):
    source = save_tiny(tmp_path / "source", model_type, tied=tied, dtype=torch.bfloat16)
    edit(source, tmp_path / "out")
    shape = open_source(source).shape
    expected = weights(source)
    for row in EDITS:
        name, axis = shape.tensor(row.cell.layer)
        column = expected[name].select(axis, row.cell.neuron)
        column.copy_(column * row.multiplier)
    found = weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


def test_every_other_byte_is_identical(tmp_path):
    source = save_tiny(tmp_path / "source")
    manifest = edit(source, tmp_path / "out", [ColumnEdit(Cell(1, 5))])
    before, after = tree(source), tree(tmp_path / "out")
    assert after.keys() == {*before, MANIFEST_NAME}
    different = [name for name in before if before[name] != after[name]]
    assert different == [manifest.tensors[0].file]
    shard_before, shard_after = before[different[0]], after[different[0]]
    changed = [place for place, (a, b) in enumerate(zip(shard_before, shard_after, strict=True)) if a != b]
    # One sign byte of each little-endian float32 in the column.
    tensor = open_source(source).weights.headers[different[0]].tensors["model.layers.1.mlp.down_proj.weight"]
    assert changed == [tensor.offset + 4 * (row * D_MLP + 5) + 3 for row in range(D_MODEL)]
    assert all(shard_before[place] ^ shard_after[place] == 0x80 for place in changed)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_type(tmp_path, dtype):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB")
    tensors = {name: (tensor / 4).to(getattr(torch, dtype)) for name, tensor in weights(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    edit(source, tmp_path / "out", [ColumnEdit(Cell(1, 7)), ColumnEdit(Cell(1, 8), 0.5)])
    found = weights(tmp_path / "out")["model.layers.1.mlp.down_proj.weight"].double()
    original = tensors["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found[:, 7], -original.double()[:, 7])
    half = (original.double()[:, 8] / 2).to(getattr(torch, dtype)).double()
    assert torch.equal(found[:, 8], half)


def test_other_types_are_refused_by_name(tmp_path):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB")
    tensors = {name: tensor.to(torch.int8) for name, tensor in weights(source).items()}
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(LayoutError, match=r"are quantized \(.*\.weight is I8\)"):
        edit(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_without_the_prefix(tmp_path):
    source = save_tiny(tmp_path / "source", "gpt2", max_shard_size="1GB")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in weights(source).items()}
    save_file(tensors, source / "model.safetensors")
    manifest = edit(source, tmp_path / "out", [ColumnEdit(Cell(1, 7))])
    assert manifest.tensors[0].name == "h.1.mlp.c_proj.weight"
    assert torch.equal(weights(tmp_path / "out")["h.1.mlp.c_proj.weight"][7], -tensors["h.1.mlp.c_proj.weight"][7])


@pytest.mark.parametrize("name", ["ema.layers.1.mlp.down_proj.weight", "lora.copy"])
def test_a_column_that_the_weights_hold_once_more_is_refused(tmp_path, name):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB")
    tensors = load_file(source / "model.safetensors")
    twin = torch.randn(tensors["model.layers.1.mlp.down_proj.weight"].shape)
    save_file(tensors | {name: twin}, source / "model.safetensors")
    edit(source, tmp_path / "other", [ColumnEdit(Cell(1, 4))])
    twin[:, 4] = tensors["model.layers.1.mlp.down_proj.weight"][:, 4]
    save_file(tensors | {name: twin}, source / "model.safetensors")
    edit(source, tmp_path / "another", [ColumnEdit(Cell(1, 5))])
    with pytest.raises(CheckpointError, match=rf"holds columns of model.layers.1.* once more in {name}"):
        edit(source, tmp_path / "out", [ColumnEdit(Cell(1, 4))])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([], InputError, "nothing to edit"),
        ([ColumnEdit(Cell(N_LAYERS, 0))], InputError, "layer 3 is out of range"),
        ([ColumnEdit(Cell(0, D_MLP))], InputError, "neuron 48 is out of range"),
        ([ColumnEdit(Cell(0, 1)), ColumnEdit(Cell(0, 1))], InputError, "listed twice"),
        ([ColumnEdit(Cell(0, 1), 1.0)], InputError, "changes nothing"),
        ([ColumnEdit(Cell(0, 1), 1e300)], InputError, r"multiplier 1e\+300 of cell 0:1 .* beyond"),
    ],
)
def test_edits_that_cannot_be_made(tmp_path, edits, error, message):
    source = save_tiny(tmp_path / "source")
    before = tree(source)
    with pytest.raises(error, match=message):
        edit(source, tmp_path / "out", edits)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert tree(source) == before


def test_weights_that_do_not_fit_the_configuration(tmp_path):
    source = save_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(LayoutError, match="no tensors of layer 3, but config.json says that there are 9 layers"):
        edit(source, tmp_path / "out", [ColumnEdit(Cell(7, 0))])
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(LayoutError, match=r"of shape \[32, 48\]: expected 64 on axis 0, as config.json says"):
        edit(source, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model_type": ["llama"]}',
        b'{"model_type": "llama", "quantization_config": [1]}',
        b"[" * 99999,
    ],
)
def test_malformed_configurations(tmp_path, content):
    source = save_tiny(tmp_path / "source")
    (source / "config.json").write_bytes(content)
    with pytest.raises(AmnesiaError) as caught:
        open_source(source)
    assert "\n" not in str(caught.value)
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_source(source)


def test_several_entities_in_one_output(tmp_path):
    source = save_tiny(tmp_path / "source")
    rome = EntityEdits("Rome", (ColumnEdit(Cell(1, 1)),))
    manifest = edit(source, tmp_path / "out", also=[rome])
    assert manifest.entity == "Paris, Rome"
    assert [row.indices for row in manifest.tensors] == [(3,), (1,), (0, 47)]
    clash = EntityEdits("Rome", (ColumnEdit(Cell(0, 3)),))
    with pytest.raises(InputError, match="'Paris' and 'Rome'"):
        edit(source, tmp_path / "out2", also=[clash])


def test_an_edit_on_top_of_another(tmp_path):
    source = save_tiny(tmp_path / "source")
    first = edit(source, tmp_path / "one")
    with pytest.raises(InputError, match=r"0:3 is edited for 'Rome', but this model already has it .* 'Paris'"):
        edit(tmp_path / "one", tmp_path / "two", [ColumnEdit(Cell(0, 3))], "Rome")
    second = edit(tmp_path / "one", tmp_path / "two", [ColumnEdit(Cell(1, 3))], "Rome")
    assert read_manifest(tmp_path / "two").previous == first
    assert second.replaced == (UNDO_NAME, MANIFEST_NAME) == tuple(sorted(second.replaced))
    third = edit(tmp_path / "one", tmp_path / "three", [ColumnEdit(Cell(0, 3))], "Rome", allow_overlap=True)
    assert third.previous == first
    restored = weights(tmp_path / "three")["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(restored, weights(source)["model.layers.0.mlp.down_proj.weight"])


def test_needs_an_empty_folder(tmp_path):
    source = save_tiny(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(OutputError, match="not empty"):
        write_with(write_edited, open_source(source), EDITS, tmp_path / "out")


def test_progress_ends_at_the_total(tmp_path):
    source = save_tiny(tmp_path / "source")
    calls = []
    edit(source, tmp_path / "out", progress=calls.append)
    assert min(calls) >= 0
    assert sum(calls) == sum(map(len, tree(source).values()))


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source")
    opened = open_source(source)
    (tmp_path / "out").mkdir()
    shard = source / opened.weights.location["model.layers.0.mlp.down_proj.weight"]

    def touch(count):
        os.utime(shard, ns=(1, 1))

    with pytest.raises(CheckpointError, match="changed while it was copied"):
        write_with(write_edited, opened, EDITS, tmp_path / "out", progress=touch)


EDIT_IN_A_PROCESS = """
import sys
from pathlib import Path
from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.files.staging import staged_output
from amnesia.outputs.in_place import undo_in_place
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.weights.adapter import write_adapter
from amnesia.weights.checkpoint import open_source, write_edited
from amnesia.weights.manifest_file import write_manifest
from amnesia.weights.plan import Plan
source, output = Path(sys.argv[1]), Path(sys.argv[2])
spec = EditSpec((EntityEdits("A", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 47), -3.0))),), ModelRef("b"))
with staged_output(output, source=source) as staging:
    write_manifest(write_edited(Plan.of(open_source(source), spec), staging), staging)
verify(output, source)
undo(output, output.with_name("undone"))
with staged_output(output.with_name("adapter"), source=source) as staging:
    write_adapter(Plan.of(open_source(source), spec), staging)
assert "torch" not in sys.modules and "transformers" not in sys.modules, "imported"
"""


@pytest.mark.slow
def test_editing_imports_neither_torch_nor_transformers(tmp_path):
    source = save_tiny(tmp_path / "source")
    subprocess.run([sys.executable, "-c", EDIT_IN_A_PROCESS, str(source), str(tmp_path / "out")], cwd=ROOT, check=True)
    assert tree(tmp_path / "undone") == tree(source)


@pytest.mark.parametrize("call", range(0, 60, 4))
def test_failing_at_every_write(tmp_path, monkeypatch, call):
    """The n-th operation that changes the disk fails, as on a full or broken disk."""
    source = save_tiny(tmp_path / "source")
    before = tree(source)
    count = 0

    def failing(name):
        original = getattr(os, name)

        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        return wrapped

    for name in ("pwritev", "pwrite", "fsync", "fchmod"):
        monkeypatch.setattr(os, name, failing(name))
    try:
        edit(source, tmp_path / "out")
    except OutputError as error:
        assert "No space left" in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    else:
        verify(tmp_path / "out", source)
    assert tree(source) == before
