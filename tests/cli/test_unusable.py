"""Folders, files and disks that commands cannot use: one line for each, exit code 2, and what is there stays."""

import errno
import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import OutputError
from amnesia.outputs.commands import save
from support.commands import refused, succeed
from support.folders import tree
from support.tiny import save_tiny


def test_a_result_file_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "choose another file" in refused("localize", model, "Japan", "-o", tmp_path / "file" / "x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused("localize", model, "Japan", "-o", tmp_path / "x.json")
    assert "x.json cannot be written (No space left on device): choose another file" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_outputs_that_exist_are_only_replaced_when_told_to(model, tmp_path):
    output = tmp_path / "out"
    succeed("edit", model, "--cell", "0:1", "-o", output)
    before = tree(output)
    assert "replace it with --force" in refused("edit", model, "--cell", "0:2", "-o", output)
    assert tree(output) == before
    succeed("edit", model, "--cell", "0:2", "--entity", "Peru", "-o", output, "--force")
    assert "Peru" in succeed("verify", output).stdout
    assert "was not written by amnesia" in refused("edit", model, "--cell", "0:2", "-o", model, "--force")
    assert "overlaps the source" in refused("edit", output, "--cell", "0:3", "-o", output, "--force")
    assert "overlaps the source" in refused("undo", output, "-o", output, "--force")


@pytest.mark.slow
def test_full_disks(model, recipe, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    for command in (["edit", model, "--cell", "0:1"], ["run", recipe]):
        assert "GB are needed: free space or choose another disk" in refused(*command, "-o", tmp_path / "out")
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr("amnesia.files.disk._reflink", lambda *_: False)
    assert "No space left on device" in refused("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used(copy, model, tmp_path):
    output = tmp_path / "out"

    def both(message):
        assert message in refused("localize", copy, "Japan")
        assert message in refused("edit", copy, "--cell", "0:1", "-o", output)

    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"model_type": "opt"}, "architecture 'opt' is not supported: try `amnesia --layout auto COMMAND`"),
        ({"model_type": "unheard-of"}, "architecture 'unheard-of' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantized (awq)"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        both(message)
    (copy / "config.json").write_text("{", encoding="utf-8")
    both("config.json is not valid JSON")
    (copy / "config.json").unlink()
    both("config.json cannot be read (No such file or directory)")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards = sorted(copy.glob("*.safetensors"))
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-10])
    both(shards[0].name)
    shards[0].unlink()
    both(f"lacks {shards[0].name}, 1 of {len(shards)} shards are missing")
    for shard in shards[1:]:
        shard.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    both("has only pickle weights (pytorch_model.bin)")
    (copy / "pytorch_model.bin").unlink()
    both("has no safetensors weights")
    assert not output.exists()


def test_a_missing_tokenizer(copy, recipe, tmp_path):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    for command in (["localize", copy, "Japan"], ["extract", copy, "--recipe", recipe]):
        assert "has no usable tokenizer" in refused(*command)
    succeed("edit", copy, "--cell", "0:1", "-o", tmp_path / "out")


def test_damaged_weights(copy, recipe, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    index = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = copy / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][0, 3] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    for command in (
        ["localize", copy, "Japan"],
        ["extract", copy, "--recipe", recipe],
        ["evaluate", copy, "--recipe", recipe],
    ):
        assert f"weight {name} of {copy} holds NaN or infinity" in refused(*command)
    message = refused("edit", copy, "--cell", "1:3", "-o", tmp_path / "out")
    assert f"tensor {name}, neuron 3: a column holds nan" in message
    assert not (tmp_path / "out").exists()
    name = "model.layers.1.self_attn.q_proj.weight"
    shard = copy / index["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert f"lacks 1 of its weights, first {name}" in refused("localize", copy, "Japan")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlp.gate_proj.adapter.weight", "mlp.down_proj.bias", "self_attn.q_norm.weight", "mlp.act_fn.scales"]
)
def test_tensors_that_would_be_ignored(copy, recipe, tmp_path, name):
    index = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = copy / next(iter(index["weight_map"].values()))
    tensors = load_file(shard) | {f"model.layers.1.{name}": torch.ones(4, 4)}
    save_file(tensors, shard, metadata={"format": "pt"})
    index["weight_map"][f"model.layers.1.{name}"] = shard.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for command in (
        ["extract", copy, "--recipe", recipe],
        ["evaluate", copy, "--recipe", recipe],
    ):
        line = refused(*command)
        assert f"1 tensors of layers that transformers ignores, first model.layers.1.{name}" in line


def test_fewer_layers_than_the_weights_have(copy, recipe):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "that transformers ignores, first model.layers.2." in refused("extract", copy, "--recipe", recipe)


def test_scales_of_a_cache_are_no_weights(copy, recipe):
    index = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = copy / next(iter(index["weight_map"].values()))
    save_file(load_file(shard) | {"model.layers.1.self_attn.k_scale": torch.ones(1)}, shard, metadata={"format": "pt"})
    index["weight_map"]["model.layers.1.self_attn.k_scale"] = shard.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    succeed("evaluate", copy, "--recipe", recipe)


def test_outputs_that_are_none(model, tmp_path):
    for folder, wrong in ((tmp_path, "has no"), (tmp_path / "missing", "does not exist"), (model, "has no")):
        for command in (["verify", folder], ["undo", folder, "-o", tmp_path / "out"]):
            assert f"{folder} {wrong}" in refused(*command)
    succeed("edit", model, "--cell", "0:1", "--format", "adapter", "-o", tmp_path / "adapter")
    assert "is an adapter, the base model was never changed" in refused(
        "undo", tmp_path / "adapter", "-o", tmp_path / "out"
    )


def test_what_the_system_refuses_is_one_line(tmp_path):
    long = "x" * 300
    model = save_tiny(tmp_path / "m")
    succeed("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    before = tree(tmp_path)
    for command in (
        ("localize", long, "Japan"),
        ("verify", tmp_path / long),
        ("undo", tmp_path / long, "--in-place"),
        ("edit", tmp_path / long, "--cell", "0:1", "--in-place"),
    ):
        assert refused(*command).strip().endswith("File name too long: give a shorter name")
    for output in (tmp_path / long, tmp_path / long / "out", tmp_path / "new" / long):
        for command in (("edit", model, "--cell", "0:1", "-o", output), ("undo", tmp_path / "out", "-o", output)):
            assert "(File name too long): choose another output" in refused(*command)
    with pytest.raises(OutputError, match="holds a null character, which no name can have: choose another output"):
        save(model, ColumnEdit(Cell(0, 1)), tmp_path / "a\0b")
    assert tree(tmp_path) == before


def test_no_command_writes_into_a_cache(model, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    succeed("edit", model, "--cell", "1:1", "-o", tmp_path / "edited")
    (tmp_path / "link").symlink_to(snapshot)
    before = tree(tmp_path)
    monkeypatch.setattr("amnesia.live.loading.load", lambda *_: pytest.fail("the model must not be loaded"))
    for folder, cache in (
        (snapshot, "the Hugging Face cache"),
        (tmp_path / "link", "the Hugging Face cache"),
        (tmp_path / "cache", "the cache of amnesia"),
    ):
        for name, *command in (
            ("a.toml", "init", "Paris"),
            ("a.toml", "mine", model, "Japan", "--popqa", "facts.tsv"),
            ("a.json", "localize", model, "Japan"),
            ("a.json", "extract", "--recipe", recipe),
            ("a", "atlas", model, "Japan", "--no-plots"),
            ("a.html", "record", tmp_path / "edited"),
            ("a", "edit", model, "--cell", "1:1"),
            ("a", "edit", model, "--cell", "1:1", "--force"),
            ("a", "undo", tmp_path / "edited"),
            ("a", "replay", tmp_path / "edited", "--base", model),
            ("a", "run", recipe),
            ("a", "evaluate", model, tmp_path / "edited", "--recipe", recipe),
            ("a", "layers", model, "Japan"),
        ):
            assert f"{folder / name} lies in {cache}, " in refused(*command, "-o", folder / name)
        said = refused("run", recipe, "-o", tmp_path / "out", "--front", folder / "f.json")
        assert f"{folder / 'f.json'} lies in {cache}, " in said
    assert tree(tmp_path) == before and not any(snapshot.iterdir()) and not any((tmp_path / "cache").iterdir())
