"""Edit files, and complete outputs in every format."""

import contextlib
import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from amnesia.domain import FORMATS, Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import CheckpointError, InputError, OutputError
from amnesia.outputs import commands
from amnesia.outputs.proofs import outputs_in, prove, take_back
from amnesia.outputs.write import edits_from_cells, edits_from_file, plan_formats, save, spec_of, write_format
from amnesia.sources import built_in
from amnesia.sources import source as source_module
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import open_source
from amnesia.weights.manifest import MAX_CHAIN, check_earlier
from amnesia.weights.manifest_file import read_manifest
from support.folders import tree
from support.tiny import save_tiny, tiny_model
from support.tiny_gguf import llama_gguf, write_gguf

JAPAN = EntityEdits("Japan", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), -2.0)))
PERU = EntityEdits("Peru", (ColumnEdit(Cell(1, 5)),))


@pytest.fixture
def source(tmp_path):
    gguf = llama_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    return ModelSource(save_tiny(tmp_path / "source"), ModelRef("a/b", "main"), gguf)


def test_an_edit_file(tmp_path):
    path = tmp_path / "edit.json"
    path.write_text(
        json.dumps({"entity": "日本", "verdict": "weak", "edits": [{"layer": 2, "neuron": 7, "multiplier": -1}]})
    )
    assert edits_from_file(path) == (EntityEdits("日本", (ColumnEdit(Cell(2, 7), -1.0),)),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "has list as the file, expected an object"),
        ("{}", "lacks `entity` or `edits`"),
        ('{"entity": "x"}', "lacks `entity` or `edits`"),
        ('{"entity": 1, "edits": []}', "has 1 as entity, expected a non-empty string"),
        ('{"entity": "x", "edits": []}', "holds no edits: no handle on 'x' was found"),
        ('{"entity": "x", "edits": {}}', "has dict as edits, expected a list"),
        ('{"entity": "x", "edits": [{"layer": 1, "neuron": 2}]}', "lacks the key 'multiplier' in edits"),
        ('{"entity": "x", "edits": [{"layer": 1, "neuron": -2, "multiplier": -1}]}', "has -2 as edits.neuron"),
        ('{"entity": "x", "edits": [{"layer": 1.5, "neuron": 2, "multiplier": -1}]}', "has 1.5 as edits.layer"),
        ('{"entity": "x", "edits": [{"layer": 1, "neuron": 2, "multiplier": NaN}]}', "holds NaN"),
        ('{"entity": "x", "edits": [{"layer": 1, "neuron": 2, "multiplier": "-1"}]}', "expected a finite number"),
        ('{"entity": "x", "entity": "y", "edits": []}', "has the same key twice"),
    ],
)
def test_malformed_edit_files(tmp_path, content, message):
    path = tmp_path / "edit.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        edits_from_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        edits_from_file(tmp_path / "missing.json")


def test_cells_from_the_command_line():
    assert edits_from_cells(["0:3", "1:4"], -2.0, None) == EntityEdits(
        "cells 0:3, 1:4", (ColumnEdit(Cell(0, 3), -2.0), ColumnEdit(Cell(1, 4), -2.0))
    )
    assert edits_from_cells(["0:3"], -1.0, "Japan").entity == "Japan"
    with pytest.raises(InputError, match="is malformed: expected LAYER:NEURON"):
        edits_from_cells(["0-3"], -1.0, None)
    for name in ("Jos\udce9", "\x1b[31m", "x" * 5000):
        with pytest.raises(InputError, match="the name "):
            edits_from_cells(["0:3"], -1.0, name)


@pytest.mark.parametrize("name", ["safetensors", "adapter", "gguf"])
def test_every_format_is_complete_and_proven(tmp_path, source, name):
    manifest = save(name, source, [JAPAN, PERU], tmp_path / "out")
    assert read_manifest(tmp_path / "out") == manifest
    assert (manifest.format, manifest.base.ref) == (name, ModelRef("a/b", "main"))
    assert manifest.edits == (JAPAN, PERU)
    assert outputs_in(tmp_path / "out") == [tmp_path / "out"]
    for base in (None, source):
        report = prove(tmp_path / "out", base)
        assert (report.n_cells, report.base_read) == (3, base is not None)
    if name == "adapter":
        with pytest.raises(InputError, match="is an adapter, the base model was never changed"):
            take_back(tmp_path / "out", tmp_path / "back")
        return
    take_back(tmp_path / "out", tmp_path / "back")
    original = {"tiny.gguf": source.gguf.read_bytes()} if name == "gguf" else tree(source.folder)
    assert tree(tmp_path / "back") == original


def test_the_columns_are_those_of_the_cells(tmp_path, source):
    save("safetensors", source, [JAPAN], tmp_path / "out")
    for path in source.folder.glob("*.safetensors"):
        after = load_file(tmp_path / "out" / path.name)
        for name, expected in load_file(path).items():
            for edit in JAPAN.edits:
                if name == f"model.layers.{edit.cell.layer}.mlp.down_proj.weight":
                    expected[:, edit.cell.neuron] *= edit.multiplier
            assert torch.equal(after[name], expected), name


def test_a_run_of_several_formats_is_undone_from_its_folder(tmp_path, source):
    for name in ("safetensors", "adapter"):
        save(name, source, [JAPAN], tmp_path / "out" / name)
    assert [path.name for path in outputs_in(tmp_path / "out")] == ["adapter", "safetensors"]
    take_back(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source.folder)
    save("gguf", source, [JAPAN], tmp_path / "out" / "gguf")
    with pytest.raises(InputError, match=r"holds 2 edited models: undo one of .*gguf, .*safetensors"):
        take_back(tmp_path / "out", tmp_path / "back2")


def test_sizes_are_known_before_writing(source):
    plans = plan_formats(FORMATS, source, spec_of(source, [JAPAN]))
    assert plans["gguf"].n_bytes() == source.gguf.stat().st_size
    assert plans["adapter"].n_bytes() == 0
    assert plans["safetensors"].n_bytes() == sum(map(len, tree(source.folder).values()))
    assert plans["safetensors"].n_bytes(link=True) < plans["safetensors"].n_bytes()
    assert plans["safetensors"].edit is plans["adapter"].edit


def test_a_model_is_opened_and_planned_once_and_every_byte_is_told(tmp_path, source, monkeypatch):
    opened, told = [], []
    monkeypatch.setattr(
        source_module, "open_source", lambda folder, *n: opened.append(folder) or open_source(folder, *n)
    )
    for name in ("safetensors", "adapter"):
        save(name, source, [JAPAN], tmp_path / name, watch=lambda n_bytes: contextlib.nullcontext(told.append))
    assert opened == [source.folder]
    assert sum(told) == sum(map(len, tree(source.folder).values()))


@pytest.mark.parametrize("name", ["safetensors", "adapter"])
def test_a_source_that_changes_between_plan_and_writing_is_noticed(tmp_path, source, name):
    plan = plan_formats([name], source, spec_of(source, [JAPAN]))[name]
    shard = next(source.folder.glob("*.safetensors"))
    os.utime(shard, ns=(1, 1))
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=f"{shard.name} changed since it was read"):
        write_format(plan, tmp_path / "out")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([EntityEdits("Japan", (ColumnEdit(Cell(9, 0)),))], "layer 9 is out of range"),
        ([EntityEdits("Japan", (ColumnEdit(Cell(0, 900)),))], "neuron 900 is out of range"),
        ([JAPAN, JAPAN], "two edits are for 'Japan': give each entity once"),
        ([JAPAN, EntityEdits("Peru", JAPAN.edits)], "cell 0:3 is edited for both 'Japan' and 'Peru'"),
        ([EntityEdits("Japan", JAPAN.edits[:1] * 2)], "cell 0:3 is listed twice: give each cell once"),
    ],
)
@pytest.mark.parametrize("name", ["safetensors", "adapter", "gguf"])
def test_refused_edits_leave_no_output(tmp_path, source, name, groups, message):
    with pytest.raises(InputError, match=message):
        save(name, source, groups, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "tiny.gguf"]


def test_outputs_are_not_replaced_by_accident(tmp_path, source):
    save("adapter", source, [JAPAN], tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError, match=r"exists and is not empty: .* with --force \(in Python: force=True\)"):
        save("adapter", source, [PERU], tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert save("adapter", source, [PERU], tmp_path / "out", force=True).entity == "Peru"
    with pytest.raises(OutputError, match="overlaps the source"):
        save("gguf", source, [JAPAN], tmp_path, force=True)


def test_a_model_without_a_gguf_file_has_no_such_format(tmp_path, source):
    plain = ModelSource(source.folder, ModelRef("a/b"))
    with pytest.raises(InputError, match=r"formats gguf and gguf-lora need a .gguf model, a/b is not one"):
        plan_formats(["gguf"], plain, spec_of(plain, [JAPAN]))


def test_what_only_the_base_can_prove_of_a_split_model(tmp_path):
    (tmp_path / "base").mkdir()
    first = write_gguf(tmp_path / "base" / "tiny.gguf", parts=3)
    base = ModelSource(first.parent, ModelRef("a/b"), gguf=first)
    manifest = save("gguf", base, [PERU], tmp_path / "out", link=True)
    parts = {path.name: path.stat().st_size for path in first.parent.iterdir()}
    touched = {row.file for row in manifest.base.files}
    alone, compared = prove(tmp_path / "out"), prove(tmp_path / "out", base)
    assert 0 < len(touched) < 3
    assert (alone.n_files, set(alone.unproven)) == (len(touched), parts.keys() - touched)
    assert alone.n_bytes == sum(parts[name] for name in touched)
    assert (compared.n_files, compared.unproven, compared.n_bytes) == (3, (), sum(parts.values()))
    # What was copied, and not linked, has a hash.
    save("gguf", base, [PERU], tmp_path / "copy")
    alone = prove(tmp_path / "copy")
    assert (alone.n_files, alone.unproven, alone.n_bytes) == (3, (), sum(parts.values()))


def test_a_gguf_of_another_model_is_refused(tmp_path, source):
    other = ModelSource(source.folder, ModelRef("a/b"), gguf=write_gguf(tmp_path / "other.gguf"))
    message = r"other.gguf has \(layers, d_model, d_mlp\) = \(2, 256, 12\), but the model .* has \(3, 32, 48\)"
    with pytest.raises(CheckpointError, match=message):
        save("gguf", other, [JAPAN], tmp_path / "out")
    # A file alone has nothing that it could contradict.
    alone = ModelSource(tmp_path, ModelRef("a/b"), gguf=other.gguf)
    assert save("gguf", alone, [JAPAN], tmp_path / "elsewhere" / "out").entity == "Japan"


@pytest.mark.parametrize("name", FORMATS)
def test_of_a_part_of_a_model_nothing_is_written(tmp_path, source, name):
    part = dataclasses.replace(source, n_layers=2)
    with pytest.raises(InputError, match=r"of a/b@main only the first layers were asked for \(2\)"):
        commands.save(part, JAPAN, tmp_path / "out", format=name)
    assert not (tmp_path / "out").exists()


def test_a_model_has_the_same_format_by_its_name_and_resolved(tmp_path, monkeypatch, source):
    monkeypatch.setitem(built_in.BUILT_IN, "tiny", None)
    known = dataclasses.replace(source, ref=ModelRef("tiny"))
    monkeypatch.setattr("amnesia.outputs.commands.resolve", lambda *_: known)
    assert commands.save("tiny", JAPAN, tmp_path / "one").format == "safetensors"
    assert commands.save(known, JAPAN, tmp_path / "two").format == "safetensors"
    for number, given in enumerate((source.gguf, source)):
        assert commands.save(given, JAPAN, tmp_path / str(number)).format == "gguf"


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@pytest.mark.parametrize("groups", [(JAPAN, EntityEdits("Peru", ())), (EntityEdits("Jos\udce9", JAPAN.edits),)])
def test_what_no_manifest_can_say_is_refused_before_anything_is_written(tmp_path, source, monkeypatch, kind, groups):
    monkeypatch.setattr("amnesia.outputs.write.write_format", None)
    with pytest.raises(InputError, match=r"nothing to edit for 'Peru'|the name 'Jos.* holds the control character"):
        save(kind, source, groups, tmp_path / "out")


def test_an_edit_beyond_the_longest_chain_is_refused_before_anything_is_written(tmp_path, source):
    made = save("safetensors", source, [JAPAN], tmp_path / "out")
    chain = made
    for _ in range(MAX_CHAIN - 2):
        chain = dataclasses.replace(made, previous=chain)
    check_earlier(chain, [PERU], "safetensors")
    with pytest.raises(InputError, match="has 64 edits on top of each other already"):
        check_earlier(dataclasses.replace(made, previous=chain), [PERU], "safetensors", allow_overlap=True)
