"""Mixtures of experts: edits of single experts on disk, against the same edit of the fused parameters in memory."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits, Place
from amnesia.errors import AmnesiaError, CheckpointError, InputError, LayoutError, VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.live.model import apply_edits, edited, freeze, wrap
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import edits_from_cells, edits_from_file, save
from amnesia.recipe_file import parse_recipe
from amnesia.sources.source import ModelSource
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.manifest_file import manifest_bytes, parse_manifest, read_manifest, write_manifest
from support.checkpoints import weights
from support.commands import call
from support.folders import tree
from support.tiny import MOE_TYPES, N_EXPERTS, as_read, save_tiny, tiny_model
from support.tiny_gguf import write_gguf
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live, tiny_live

# The multipliers are single-precision numbers, so that torch means the same by them.
PARIS = EntityEdits(
    "Paris", (ColumnEdit(Cell(1, 5, 2)), ColumnEdit(Cell(1, 5, 3), -1.5), ColumnEdit(Cell(1, 11, 2), 0.5))
)
ROME = EntityEdits("Rome", (ColumnEdit(Cell(1, 9, 0), 0.1), ColumnEdit(Cell(1, 6, 2))))
# Layers 0 and 2 have no experts.
MIXED = {"moe_intermediate_size": 16, "mlp_only_layers": [0], "decoder_sparse_step": 2}


def make(folder, model_type, **options):
    settings = MIXED if model_type == "qwen3_moe" else {}
    return ModelSource(save_tiny(folder, model_type, **settings, **options), ModelRef("a/b"))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_the_edited_files_load_as_the_model_edited_in_memory(tmp_path, model_type, fused, dtype):
    source = make(tmp_path / "source", model_type, fused=fused, dtype=dtype)
    save("safetensors", source, [PARIS], tmp_path / "out")
    # The oracle knows nothing of files: it multiplies the fused parameter of plain transformers.
    model = load(source.folder)
    ids = torch.arange(3, 67)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for edit in PARIS.edits:
            column = model.model.layers[1].mlp.experts.down_proj[edit.cell.expert, :, edit.cell.neuron]
            column.copy_(column * edit.multiplier)
        found = load(tmp_path / "out")
        after = found(input_ids=ids).logits
        expected = model(input_ids=ids).logits
    assert not torch.allclose(before, after, atol=0.1)
    # Equal up to the order in which the outputs of experts are added.
    assert torch.allclose(expected, after, atol=1e-4 if dtype == torch.float32 else 0.1)
    expected, parameters = dict(model.named_parameters()), dict(found.named_parameters())
    assert parameters.keys() == expected.keys()
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)
    # On disk nothing else changed: two matrices, or two slices of one tensor.
    old, new = weights(source.folder), weights(tmp_path / "out")
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert old.keys() == new.keys()
    assert len(changed) == (1 if fused else 2)
    assert all(".layers.1." in name and (fused or re.search(r"experts\.[23]\.", name)) for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_verify_and_undo(tmp_path, model_type, fused):
    source = make(tmp_path / "source", model_type, fused=fused)
    manifest = save("safetensors", source, [PARIS], tmp_path / "one")
    assert parse_manifest(manifest_bytes(manifest)) == manifest == read_manifest(tmp_path / "one")
    assert [row.name.endswith(("[2]", "[3]")) for row in manifest.tensors] == [fused, fused]
    save("safetensors", ModelSource(tmp_path / "one", ModelRef("one")), [ROME], tmp_path / "two")
    for base in (None, source):
        assert (prove(tmp_path / "one", base).n_cells, prove(tmp_path / "one", base).n_tensors) == (3, 2)
        assert (prove(tmp_path / "two", base).n_cells, prove(tmp_path / "two", base).n_tensors) == (5, 3)
    take_back(tmp_path / "two", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "one")
    take_back(tmp_path / "two", tmp_path / "base", every_step=True)
    assert tree(tmp_path / "base") == tree(source.folder)


@pytest.mark.parametrize("fused", [False, True])
def test_one_changed_byte_of_another_expert_is_found(tmp_path, fused):
    source = make(tmp_path / "source", "mixtral", fused=fused)
    save("safetensors", source, [PARIS], tmp_path / "out")
    # A shard that the edit touched, and in it the last byte, which belongs to another expert or tensor.
    name = read_manifest(tmp_path / "out").tensors[0].file
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    for base in (None, source):
        with pytest.raises(VerificationError):
            prove(tmp_path / "out", base)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_in_place_equals_the_copy_and_comes_back(tmp_path, model_type, fused):
    source = make(tmp_path / "source", model_type, fused=fused)
    base = make(tmp_path / "base", model_type, fused=fused)
    before = tree(source.folder)
    save("safetensors", source, [PARIS], tmp_path / "copy")
    manifest = edit_in_place(source.folder, EditSpec((PARIS,), ModelRef("a/b")))
    assert {**tree(source.folder), MANIFEST_NAME: b""} == {**tree(tmp_path / "copy"), MANIFEST_NAME: b""}
    assert prove(source.folder).n_cells == prove(source.folder, base).n_cells == 3
    take_back(source.folder, tmp_path / "undone")
    assert tree(tmp_path / "undone") == before
    assert undo_in_place(source.folder) == manifest
    assert tree(source.folder) == before


def test_layers_with_and_without_experts_in_one_edit(tmp_path):
    source = make(tmp_path / "source", "qwen3_moe")
    group = edits_from_cells(["0:40", "1:3:15", "2:7"], -1.0, "Paris")
    manifest = save("safetensors", source, [group], tmp_path / "out")
    assert [row.name for row in manifest.tensors] == [
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.experts.3.down_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    ]
    assert prove(tmp_path / "out", source).n_cells == 3
    live = wrap(freeze(load(source.folder)), None)
    apply_edits(live, group.edits)
    expected = live.model.state_dict()
    found = load(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1:16:3", "expert 16 is out of range: layer 1 of .* has experts 0–3"),
        ("1:3:16", "neuron 16 is out of range: each expert of layer 1 of .* has neurons 0–15"),
        ("1:3", "cell 1:3 names no expert: layer 1 of .* has experts 0–3; write it as LAYER:EXPERT:NEURON"),
        ("0:1:3", "cell 0:1:3 names an expert: layer 0 of .* has none that can be edited; write it as 0:3"),
        ("0:48", "neuron 48 is out of range: layer 0 of .* has neurons 0–47"),
    ],
)
def test_cells_that_do_not_exist(tmp_path, cell, message):
    source = make(tmp_path / "source", "qwen3_moe")
    with pytest.raises(InputError, match=message):
        save("safetensors", source, [edits_from_cells([cell], -1.0, None)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_overlap_is_told_by_expert(tmp_path):
    source = make(tmp_path / "source", "mixtral")
    first = edits_from_cells(["1:2:5"], -1.0, "Paris")
    other, same = edits_from_cells(["1:3:5"], -1.0, "Rome"), edits_from_cells(["1:2:5"], -2.0, "Rome")
    save("safetensors", source, [first, other], tmp_path / "both")
    with pytest.raises(InputError, match="cell 1:2:5 is edited for both 'Paris' and 'Rome'"):
        save("safetensors", source, [first, same], tmp_path / "out")
    with pytest.raises(InputError, match="cell 1:2:5 is edited for 'Tokyo', but this model already has it edited"):
        group = edits_from_cells(["1:2:5"], -1.0, "Tokyo")
        save("safetensors", ModelSource(tmp_path / "both", ModelRef("both")), [group], tmp_path / "out")


def test_edit_files_recipes_and_the_command_line_name_experts(tmp_path):
    source = make(tmp_path / "source", "mixtral")
    path = tmp_path / "edit.json"
    path.write_text(json.dumps({"entity": "Paris", "edits": [edit_json(edit) for edit in PARIS.edits]}))
    assert edits_from_file(path) == (PARIS,)
    recipe = parse_recipe(
        "cells = [{ layer = 1, expert = 2, neuron = 5 }, { layer = 0, neuron = 3 }]\n"
        'model.id = "m"\nentity.name = "Paris"\n[[facts]]\nprompt = "{entity} is"\nanswer = "big"\n'
        '[[controls.facts]]\nentity = "Rome"\nprompt = "{entity} is"\nanswer = "old"\n'
    )
    assert [edit.cell for edit in recipe.edit.cells] == [Cell(1, 5, 2), Cell(0, 3)]
    arguments = ["edit", source.folder, "--edit", path, "-o", tmp_path / "a"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "3 columns in 2 tensors edited" in result.stdout
    with pytest.raises(AmnesiaError, match="edits.expert"):
        path.write_text('{"entity": "Paris", "edits": [{"layer": 1, "neuron": 1, "multiplier": -1, "expert": -1}]}')
        edits_from_file(path)


@pytest.mark.parametrize("cells", [["1:2:5"], ["0:40", "2:7"]])
def test_adapters_are_refused_also_for_layers_without_experts(tmp_path, cells):
    source = make(tmp_path / "source", "qwen3_moe")
    with pytest.raises(CheckpointError, match="is a mixture of experts: PEFT .* write the format safetensors"):
        save("adapter", source, [edits_from_cells(cells, -1.0, "Paris")], tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_adapter_that_claims_an_expert_is_not_believed(tmp_path):
    source = ModelSource(save_tiny(tmp_path / "source"), ModelRef("a/b"))
    manifest = save("adapter", source, [edits_from_cells(["1:5"], -1.0, "Paris")], tmp_path / "adapter")
    entry = replace(manifest.tensors[0], place=Place(1, 2))
    claims = replace(manifest, edits=(EntityEdits("Paris", (ColumnEdit(Cell(1, 5, 2)),)),), tensors=(entry,))
    write_manifest(as_read(claims), tmp_path / "adapter")
    for base in (None, source, make(tmp_path / "moe", "mixtral")):
        with pytest.raises(AmnesiaError):
            prove(tmp_path / "adapter", base)


def test_the_same_expert_stored_twice_is_refused(tmp_path):
    source = make(tmp_path / "source", "mixtral", max_shard_size="1GB")
    path = source.folder / "model.safetensors"
    stored = load_file(path)
    stored["model.layers.1.mlp.experts.down_proj"] = torch.zeros(N_EXPERTS, 32, 48)
    save_file(stored, path)
    with pytest.raises(LayoutError, match="has 2 output projections below model.layers.1.: expected one"):
        save("safetensors", source, [PARIS], tmp_path / "out")


@pytest.mark.slow
def test_what_needs_hooks_is_refused_in_one_line_and_evaluation_is_not(tmp_path):
    live = tiny_live("mixtral")
    with pytest.raises(LayoutError, match="transformers fuses in memory"), edited(live, PARIS.edits):
        pass
    folder = save_tiny_live(tmp_path / "model", "mixtral")
    for command in (["localize", str(folder), "Japan"], ["extract", str(folder), "--recipe", "recipe.toml"]):
        (tmp_path / "recipe.toml").write_text(
            'model.id = "m"\nentity.name = "Japan"\n[[facts]]\nprompt = "{entity} is"\nanswer = "big"\n'
            '[[controls.facts]]\nentity = "Rome"\nprompt = "{entity} is"\nanswer = "old"\n'
        )
        arguments = [str(tmp_path / item) if item.endswith(".toml") else item for item in command]
        result = call(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "is a mixture of experts, which transformers fuses" in result.stderr.splitlines()[-1]
    save("safetensors", ModelSource(folder, ModelRef("m")), [PARIS], tmp_path / "out")
    (tmp_path / "recipe.toml").write_text(recipe_text(tiny_live("mixtral"), folder))
    arguments = ["evaluate", folder, tmp_path / "out", "--recipe", tmp_path / "recipe.toml", "--json"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    prompts = json.loads(result.stdout)["prompts"]
    assert any(row["before"]["logprob"] != row["after"]["logprob"] for row in prompts)


def test_gguf_refuses_cells_of_experts(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match="cell 1:2:5 names an expert: layer 1 of tiny.gguf has none"):
        group = edits_from_cells(["1:2:5"], -1.0, "Paris")
        save("gguf", ModelSource(tmp_path, ModelRef("m"), gguf=path), [group], tmp_path / "out")


def test_a_model_in_memory_is_edited_too():
    model = tiny_model("mixtral")
    before = model.model.layers[1].mlp.experts.down_proj.detach().clone()
    apply_edits(wrap(model, None), PARIS.edits)
    before[2, :, 5] *= -1
    before[3, :, 5] *= -1.5
    before[2, :, 11] *= 0.5
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj, before)


@pytest.mark.slow
def test_released_experts_of_qwen3_vl_moe_lie_the_other_way_round(tmp_path):
    source = ModelSource(save_tiny(tmp_path / "source", "qwen3_vl_moe"), ModelRef("a/b"))
    shape = source.checkpoint.shape
    width, d_model = shape.experts_in(1)[1], shape.d_model
    name, axis = shape.tensor(1, 2)
    assert (name, axis) == ("model.language_model.layers.1.mlp.experts.down_proj[2]", 1)
    shutil.copytree(source.folder, tmp_path / "released")
    for path in (tmp_path / "released").glob("*.safetensors"):
        tensors = load_file(path)
        for key in [key for key in tensors if key.endswith("experts.down_proj")]:
            assert tensors[key].shape[1:] == (d_model, width)
            tensors[key] = tensors[key].transpose(1, 2).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
    released = ModelSource(tmp_path / "released", ModelRef("a/b"))
    assert released.checkpoint.shape.tensor(1, 2) == (name, 0)
    found = {}
    for at, model in (("there", source), ("here", released)):
        save("safetensors", model, [PARIS], tmp_path / at)
        prove(tmp_path / at, model)
        for key, tensor in weights(tmp_path / at).items():
            turned = tensor.transpose(1, 2) if at == "here" and key.endswith("experts.down_proj") else tensor
            assert torch.equal(found.setdefault(key, turned), turned), key
