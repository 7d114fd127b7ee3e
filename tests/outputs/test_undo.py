"""`undo` gives back every bit, for every multiplier, one edit or all of them at a time."""

import contextlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, OutputError, VerificationError
from amnesia.outputs.undo import undo
from amnesia.weights.adapter import write_adapter
from amnesia.weights.checkpoint import UNDO_NAME, write_edited
from support.checkpoints import write_output
from support.folders import tree
from support.tiny import save_tiny


def edit(source, output, edits, entity="Paris", writer=write_edited, **options):
    added = {"README.md": entity.encode(), "report.json": b"{}"} if writer is write_edited else {}
    return write_output(source, output, edits, writer, entity=entity, added=added, **options)


FURTHER = [pytest.param(multiplier, marks=pytest.mark.slow) for multiplier in (0.5, -3.0, 2.0, -1.7)]


@pytest.mark.parametrize("model_type", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("multiplier", [-1.0, 0.0, 0.1, *FURTHER])
def test_restores_every_bit(tmp_path, model_type, dtype, multiplier):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    edits = [ColumnEdit(Cell(0, 3), multiplier), ColumnEdit(Cell(2, 1), multiplier), ColumnEdit(Cell(2, 9))]
    manifest = edit(source, tmp_path / "out", edits)
    assert (manifest.undo is None) == (multiplier in (-1.0, 0.5, 2.0))
    assert undo(tmp_path / "out", tmp_path / "undone") == manifest
    assert tree(tmp_path / "undone") == tree(source)


def test_saves_columns_that_a_power_of_two_would_not_restore(tmp_path):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB", dtype=torch.float16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][4, 7] = 2**-24  # The smallest number: half of it is rounded to 0.
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    manifest = edit(source, tmp_path / "out", [ColumnEdit(Cell(1, 7), 0.5), ColumnEdit(Cell(1, 8), 0.5)])
    saved = load_file(tmp_path / "out" / manifest.undo)
    assert list(saved) == ["model.layers.1.mlp.down_proj.weight:7"]
    assert torch.equal(*saved.values(), tensors["model.layers.1.mlp.down_proj.weight"][:, 7])
    undo(tmp_path / "out", tmp_path / "undone")
    assert tree(tmp_path / "undone") == tree(source)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [True, False])
def test_chains_step_by_step_and_at_once(tmp_path, overlap):
    source = save_tiny(tmp_path / "source")
    edit(source, tmp_path / "one", [ColumnEdit(Cell(0, 3), -1.7), ColumnEdit(Cell(1, 4))])
    second = [ColumnEdit(Cell(0, 3 if overlap else 5), 0.3), ColumnEdit(Cell(2, 2), 0.0)]
    edit(tmp_path / "one", tmp_path / "two", second, "Rome", allow_overlap=overlap)
    edit(tmp_path / "two", tmp_path / "three", [ColumnEdit(Cell(0, 40))], "Oslo")
    undo(tmp_path / "three", tmp_path / "back_two")
    assert tree(tmp_path / "back_two") == tree(tmp_path / "two")
    undo(tmp_path / "back_two", tmp_path / "back_one")
    assert tree(tmp_path / "back_one") == tree(tmp_path / "one")
    undo(tmp_path / "three", tmp_path / "back", every_step=True)
    assert tree(tmp_path / "back") == tree(source)


def test_damaged_outputs_are_not_restored_to_something_else(tmp_path):
    source = save_tiny(tmp_path / "source")
    manifest = edit(source, tmp_path / "out", [ColumnEdit(Cell(0, 3), -1.7)])
    path = tmp_path / "out" / manifest.tensors[0].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="does not become the original"):
        undo(tmp_path / "out", tmp_path / "undone")
    assert not (tmp_path / "undone").exists()
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "out" / "LICENSE").write_bytes((source / "LICENSE").read_bytes().upper())
    with pytest.raises(VerificationError, match="LICENSE does not become the original"):
        undo(tmp_path / "out", tmp_path / "undone")
    assert not (tmp_path / "undone").exists()
    (tmp_path / "out" / UNDO_NAME).unlink()
    with pytest.raises(VerificationError, match="is missing"):
        undo(tmp_path / "out", tmp_path / "undone")
    with pytest.raises(VerificationError, match="not a complete output"):
        undo(source, tmp_path / "undone")


def test_output_rules_apply(tmp_path):
    source = save_tiny(tmp_path / "source")
    edit(source, tmp_path / "out", [ColumnEdit(Cell(0, 3))])
    with pytest.raises(OutputError, match="overlaps the source"):
        undo(tmp_path / "out", tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="--force"):
        undo(tmp_path / "out", source)
    calls, totals = [], []
    watch = lambda n_bytes: totals.append(n_bytes) or contextlib.nullcontext(calls.append)  # noqa: E731
    undo(tmp_path / "out", tmp_path / "undone", watch=watch)
    assert [sum(calls)] == totals == [sum(map(len, tree(source).values()))]


def test_adapters_are_undone_by_not_loading_them(tmp_path):
    source = save_tiny(tmp_path / "source")
    edit(source, tmp_path / "adapter", [ColumnEdit(Cell(0, 3))], writer=write_adapter)
    with pytest.raises(InputError, match="do not load it"):
        undo(tmp_path / "adapter", tmp_path / "undone")
