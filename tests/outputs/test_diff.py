"""What `diff` finds between two checkpoints, against edits that are known and numbers computed from whole tensors."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.commands import save
from amnesia.outputs.diff import diff
from amnesia.weights.difference import Stored, compare
from amnesia.weights.gguf.container import read_model
from amnesia.weights.gguf.layout import BY_COLUMNS
from amnesia.weights.scaling import number_type
from support.checkpoints import weights
from support.commands import call, refused
from support.gguf_edits import direction, tiny, write
from support.tiny import D_MLP, N_LAYERS, save_tiny, tiny_direction, tiny_model
from support.tiny_gguf import phi3_gguf, write_gguf


def edited(tmp_path, *edits, dtype=torch.float32, model_type="llama"):
    """A tiny model and its edited copy, from which the manifest is gone."""
    model = save_tiny(tmp_path / "m", model_type, dtype=dtype)
    save(model, EntityEdits("Japan", edits), tmp_path / "out")
    for name in (MANIFEST_NAME, "amnesia-undo.safetensors"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
    return model, tmp_path / "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_scaled_cells_are_recognized_by_their_form(tmp_path, dtype, model_type):
    edits = (ColumnEdit(Cell(1, 4)), ColumnEdit(Cell(1, 7), 0.3), ColumnEdit(Cell(2, 11), -8.0))
    model, out = edited(tmp_path, *edits, dtype=dtype, model_type=model_type)
    found = diff(str(model), str(out))
    assert [cell for cell, _ in found.edit.cells] == [Cell(1, 4), Cell(1, 7), Cell(2, 11)]
    assert [by for _, by in found.edit.cells] == pytest.approx([-1.0, 0.3, -8.0], rel=5e-3)
    assert (found.edit.directions, len(found.tensors), found.same) == ((), 2, False)
    before, after = weights(model), weights(out)
    for row in found.tensors:
        one, two = before[row.name].double(), after[row.name].double()
        assert row.share == (one != two).double().mean().item()
        assert row.largest == pytest.approx(((two - one).abs().max() / one.square().mean().sqrt()).item())
        assert row.axis == (0 if model_type == "gpt2" else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_directions_are_recognized_by_rank_and_columns(tmp_path, dtype, model_type):
    first, second = tiny_direction(0), tiny_direction(0, tuple(range(1, D_MLP, 3)), multiplier=0.0, seed=1)
    edits = (first, second, tiny_direction(2, seed=2), ColumnEdit(Cell(2, 4), -2.0))
    model, out = edited(tmp_path, *edits, dtype=dtype, model_type=model_type)
    found = diff(str(model), str(out)).edit
    assert [(row.layer, row.rank, row.columns) for row in found.directions] == [
        (0, 2, tuple(sorted((*first.columns, *second.columns)))),
        (2, 1, first.columns),
    ]
    assert found.cells == ((Cell(2, 4), pytest.approx(-2.0)),)


def test_what_no_edit_explains_is_not_called_one(tmp_path):
    model = save_tiny(tmp_path / "m")
    other = save_tiny(tmp_path / "o", seed=1)
    found = diff(str(model), str(other))
    assert found.edit is None and len(found.tensors) == found.n_compared == len(weights(model))
    assert all(row.rank is None and row.share > 0.9 for row in found.tensors if min(row.shape) > 16)
    result = call("diff", model, other)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        1,
        f"{found.n_compared} of {found.n_compared} tensors differ",
    )


def test_a_copy_in_another_type_is_no_edit(tmp_path):
    model = save_tiny(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "o")
    found = diff(str(model), str(tmp_path / "o"))
    assert found.edit is None and not any(row.scaled for row in found.tensors)


@pytest.mark.parametrize(
    ("dtype", "noise"),
    [(torch.float32, 0.004), (torch.bfloat16, 0.004), (torch.bfloat16, 0.1), (torch.float8_e4m3fn, 0.1)],
)
def test_noise_is_no_edit(dtype, noise):
    before = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    factor = 1.0 + noise * torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    row = difference_of(before, (before.float() * factor).to(dtype))
    assert row.share > 0 and not row.scaled


def test_a_layer_that_was_trained_a_little_is_no_edit(tmp_path):
    model = save_tiny(tmp_path / "m", dtype=torch.bfloat16, max_shard_size="1GB")
    shutil.copytree(model, tmp_path / "o")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] = (tensors[name].float() * (1 + 0.004 * noise)).bfloat16()
    save_file(tensors, tmp_path / "o" / "model.safetensors", {"format": "pt"})
    found = diff(str(model), str(tmp_path / "o"))
    assert [row.name for row in found.tensors] == [name] and found.edit is None


def difference_of(before, after):
    """What `compare` says of two tensors."""
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}[before.dtype]

    def stored(tensor):
        raw = tensor.contiguous().view(torch.uint8).numpy()
        columns, number = tensor.shape[1], number_type(name)
        read = lambda first, count: raw[first : first + count].tobytes()  # noqa: E731
        numbers = lambda data: np.frombuffer(data, number).reshape(-1, columns)  # noqa: E731
        return Stored("x", name, tuple(tensor.shape), raw.nbytes, read, numbers)

    return compare(stored(before), stored(after))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told_from_others_and_among_themselves(tmp_path, value):
    before = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    damaged = before.clone()
    damaged[0, 0] = value
    row = difference_of(before, damaged)
    assert (row.share, row.largest, row.indices) == (1 / 48, None, (0,))
    other = damaged.clone()
    other[3, 2] += 1.0
    row = difference_of(damaged, other)
    scale = damaged[damaged.isfinite()].double().square().mean().sqrt().item()
    assert (row.share, row.largest) == (1 / 48, pytest.approx((other - damaged)[3, 2].item() / scale))
    model = save_tiny(tmp_path / "m", max_shard_size="1GB")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = value
    for name, more in (("a", 0.0), ("b", 1.0)):
        shutil.copytree(model, tmp_path / name)
        tensors["model.norm.weight"][1] += more
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    result = call("diff", tmp_path / "a", tmp_path / "b", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["tensors"][0]["largest"] > 0
    result = call("diff", model, tmp_path / "a")
    assert result.exit_code == 1 and "by at most" not in result.stdout
    assert json.loads(call("diff", model, tmp_path / "a", "--json").stdout)["tensors"][0]["largest"] is None


def test_exit_codes_are_those_of_diff(tmp_path):
    model, out = edited(tmp_path, ColumnEdit(Cell(1, 4)))
    result = call("diff", model, model)
    assert (result.exit_code, result.stdout.splitlines()[-1].startswith("0 of ")) == (0, True)
    result = call("diff", model, out)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "an edit as amnesia makes it: cells 1:4 × −1")
    assert "1 of 48 columns multiplied (4 × −1), rank 1" in result.stdout
    document = json.loads(call("diff", model, out, "--json").stdout)
    assert document["edit"]["cells"] == [[{"layer": 1, "neuron": 4, "expert": None}, -1.0]]
    assert (document["same"], document["tensors"][0]["scaled"]) == (False, {"4": -1.0})
    assert "does not exist" in refused("diff", model, tmp_path / "none")


def test_other_tensors_types_and_shapes_are_told(tmp_path):
    model = save_tiny(tmp_path / "m", max_shard_size="1GB")
    other = save_tiny(tmp_path / "o", max_shard_size="1GB")
    path = other / "model.safetensors"
    tensors = load_file(path)
    names = sorted(name for name in tensors if name.endswith("o_proj.weight"))
    tensors["more.weight"] = torch.ones(3)
    tensors[names[0]] = tensors[names[0]].bfloat16()
    tensors[names[1]] = torch.ones(5, 5)
    del tensors[names[2]]
    save_file(tensors, path, {"format": "pt"})
    found = diff(str(model), str(other))
    assert (found.only_first, found.only_second, found.reshaped) == ((names[2],), ("more.weight",), (names[1],))
    shown = call("diff", model, other).stdout.splitlines()[-1]
    assert shown == f"4 of {found.n_compared + 3} tensors differ, 3 of them by name or shape"
    (row,) = found.tensors
    assert (row.name, row.dtypes, found.edit) == (names[0], ("F32", "BF16"), None)
    assert N_LAYERS == 3 and row.largest < 0.05


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "input_scale"])
def test_of_numbers_with_scales_nothing_is_claimed(tmp_path, dtype, scale):
    model = save_tiny(tmp_path / "m", max_shard_size="1GB")
    other = save_tiny(tmp_path / "o", max_shard_size="1GB")
    path, name = other / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    scales = name.replace("weight", scale)
    tensors = load_file(path)
    tensors |= {name: (tensors[name] * 10).to(dtype), scales: torch.full((tensors[name].shape[0], 1), 0.1)}
    save_file(tensors, path, {"format": "pt"})
    is_f8 = dtype == torch.float8_e4m3fn
    kind = "F32 → F8_E4M3): of another type" if is_f8 else "F32): other bytes"
    for pair in ((model, other), (other, model)):
        found = diff(*map(str, pair))
        (row,) = found.tensors
        assert (row.name, row.share, row.axis, row.scaled, row.rank, found.edit) == (name, None, None, {}, None, None)
        assert row.scales == scales
    shown = call("diff", model, other)
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[0] == f"{name} ({kind}, to be multiplied by {scales}: its numbers are not compared"


def test_two_gguf_files_are_compared_as_they_are(tmp_path):
    source = tiny(tmp_path / "base" / "m.gguf", GGMLQuantizationType.F32)
    write(source, tmp_path / "cells", ColumnEdit(Cell(0, 9), -1.0))
    found = diff(str(source), str(tmp_path / "cells" / "m.gguf"))
    assert found.edit.cells == ((Cell(0, 9), -1.0),)
    one = direction()
    write(source, tmp_path / "turned", one)
    found = diff(str(source), str(tmp_path / "turned" / "m.gguf"))
    assert [(row.layer, row.rank, row.columns) for row in found.edit.directions] == [(0, 1, one.columns)]
    codes = tiny(tmp_path / "codes" / "m.gguf", GGMLQuantizationType.Q4_1)
    write(codes, tmp_path / "chosen", one)
    (row,) = diff(str(codes), str(tmp_path / "chosen" / "m.gguf")).tensors
    assert set(row.indices) <= set(one.columns) and row.dtypes == ("Q4_1", "Q4_1") and row.rank is None


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path):
    import tracemalloc

    rng = np.random.default_rng(0)
    for name in ("m", "o"):
        save_tiny(tmp_path / name, max_shard_size="1GB")
        path = tmp_path / name / "model.safetensors"
        big = torch.from_numpy(rng.normal(size=(60_000, 64)).astype(np.float32))
        save_file({**load_file(path), "big": big}, path, {"format": "pt"})
    tracemalloc.start()
    diff(str(tmp_path / "m"), str(tmp_path / "o"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 60_000 * 64 * 8  # Less than the two matrices as the numbers that are computed with.


@pytest.mark.parametrize("fuse_experts", [False, True])
def test_cells_of_experts_are_found(tmp_path, fuse_experts):
    source = tiny(tmp_path / "base" / "m.gguf", GGMLQuantizationType.F32, experts=(4, 16), fuse_experts=fuse_experts)
    write(source, tmp_path / "expert", ColumnEdit(Cell(1, 3, 2)))
    found = diff(str(source), str(tmp_path / "expert" / "m.gguf"))
    assert found.edit.cells == ((Cell(1, 3, 2), -1.0),)


def test_rows_of_the_gate_are_no_cells(tmp_path):
    fused = phi3_gguf(tmp_path / "fused.gguf", tiny_model("phi3"))
    (file,) = read_model(fused).files
    up = file.tensors["blk.0.ffn_up.weight"]
    for first, expected in ((0, None), (up.shape[0] // 2, ((Cell(0, 5), -1.0),))):
        content = bytearray(fused.read_bytes())
        start = up.offset + (first + 5) * up.row_bytes
        row = np.frombuffer(content, np.float32, up.shape[1], start)
        content[start : start + up.row_bytes] = (-row).tobytes()
        (tmp_path / "other.gguf").write_bytes(content)
        edit = diff(str(fused), str(tmp_path / "other.gguf")).edit
        assert (edit and edit.cells) == expected


BIAS = {"blk.1.ffn_up.bias": np.ones(12, np.float32)}


@pytest.mark.parametrize(
    ("arch", "options", "is_edit"),
    [("llama", {}, True), ("llama", {"extra": BIAS}, False), *((arch, {}, False) for arch in BY_COLUMNS)],
)
def test_rows_that_multiply_no_cell_are_no_edit(tmp_path, arch, options, is_edit):
    source = write_gguf(tmp_path / "m.gguf", arch=arch, **options)
    up, content = read_model(source).files[0].tensors["blk.1.ffn_up.weight"], bytearray(source.read_bytes())
    start = up.offset + 5 * up.row_bytes
    content[start : start + up.row_bytes] = (-np.frombuffer(content, np.float32, up.shape[1], start)).tobytes()
    (tmp_path / "other.gguf").write_bytes(content)
    found = diff(str(source), str(tmp_path / "other.gguf"))
    assert [(row.name, row.scaled) for row in found.tensors] == [("blk.1.ffn_up.weight", {5: -1.0})]
    assert (found.edit and found.edit.cells) == (((Cell(1, 5), -1.0),) if is_edit else None)


def test_what_becomes_infinite_has_no_largest_difference():
    before = torch.full((1, 8), 2.0)
    after = before.clone()
    after[0, 3] = float("inf")
    assert difference_of(before, after).largest is None
