"""Adapters against PEFT: they load without a warning, wrap only edited layers, and merge to the edited weights."""

import json
import logging
import os
import re
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import CheckpointError, InputError, NumericalError, OutputError, VerificationError
from amnesia.outputs.proofs import prove
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.weights.adapter import CONFIG_NAME, RANKS, WEIGHTS_NAME, adapter_rank, selection, write_adapter
from amnesia.weights.checkpoint import open_source, write_edited
from support.commands import done
from support.tiny import D_MLP, D_MODEL, MODEL_TYPES, save_tiny, tiny_model, write_with

# Layers with different numbers of cells, among them more than the smallest rank.
EDITS = (ColumnEdit(Cell(0, 3)), *(ColumnEdit(Cell(2, neuron)) for neuron in range(0, 40, 4)))


def write(source, folder, writer=write_adapter, edits=EDITS, **options):
    folder.mkdir()
    return write_with(writer, open_source(source), edits, folder, **options)


def load_base(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def attach(base, folder, caplog):
    """The model with the adapter; any warning of PEFT is an error."""
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        # PEFT asks transformers for an attribute that has a new name; that has nothing to do with the adapter.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        model = PeftModel.from_pretrained(base, folder)
    assert [record for record in caplog.records if record.name.startswith("peft")] == []
    return model


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merged_equals_edited(tmp_path, caplog, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    write(source, tmp_path / "edited", write_edited)
    write(source, tmp_path / "adapter")
    model = attach(load_base(source, dtype), tmp_path / "adapter", caplog)
    wrapped = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    shape = open_source(source).shape
    assert wrapped == [f"base_model.model.{shape.out_proj_path(layer)}" for layer in (0, 2)]
    merged = dict(model.merge_and_unload().named_parameters())
    edited = dict(load_base(tmp_path / "edited", dtype).named_parameters())
    assert merged.keys() == edited.keys()
    assert all(parameter.dtype == dtype for parameter in merged.values())
    assert all(torch.equal(merged[name], edited[name]) for name in edited)


def test_equals_ia3_with_the_same_scales(tmp_path, caplog):
    """PEFT's IA³ scales the input of a module by a vector: an independent statement of the same edit."""
    source = save_tiny(tmp_path / "source", "qwen2")
    edits = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 5), 0.5), ColumnEdit(Cell(1, 6), -3.0))
    write(source, tmp_path / "adapter", edits=edits)
    config = IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ia3 = get_peft_model(load_base(source, torch.float32), config).eval()
    for edit in edits:
        vector = ia3.base_model.model.model.layers[edit.cell.layer].mlp.down_proj.ia3_l["default"]
        vector.data[0, edit.cell.neuron] = edit.multiplier
    adapted = attach(load_base(source, torch.float32), tmp_path / "adapter", caplog).eval()
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        expected, found = ia3(input_ids=ids).logits, adapted(input_ids=ids).logits
        plain = load_base(source, torch.float32).eval()(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("multiplier", [-1.5, 0.3, 0.5, -7.3, 1e-3, 2.0])
def test_merged_equals_edited_bit_for_bit_whatever_the_multiplier(tmp_path, caplog, dtype, multiplier):
    source = save_tiny(tmp_path / "source", dtype=dtype, max_shard_size="1GB")
    tensors = load_file(source / "model.safetensors")
    # Numbers of every size that the type has, the smallest among them.
    tensors["model.layers.0.mlp.down_proj.weight"] *= 2.0 ** -torch.arange(D_MODEL)[:, None]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    edits = [ColumnEdit(Cell(layer, neuron), multiplier) for layer in (0, 2) for neuron in range(0, D_MLP, 2)]
    write(source, tmp_path / "edited", write_edited, edits=edits)
    write(source, tmp_path / "adapter", edits=edits)
    model = attach(load_base(source, dtype), tmp_path / "adapter", caplog)
    assert_merges_to(model, tmp_path / "edited", dtype)


def test_the_files_are_as_documented(tmp_path):
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    manifest = write(source, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    assert config["r"] == config["lora_alpha"] == 16
    assert config["target_modules"] == ["mlp.down_proj"]
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([0, 2], "layers")
    assert config["bias"] == "none"
    assert config["fan_in_fan_out"] is False
    assert not {"rank_pattern", "alpha_pattern", "use_rslora", "use_dora"} & config.keys()
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    prefix = "base_model.model.model.layers.0.mlp.down_proj"
    assert len(tensors) == 4
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    assert a.shape == (16, D_MLP) and b.shape == (D_MODEL, 16)
    assert a.nonzero().tolist() == [[0, 3]] and a[0, 3] == 1
    assert b[:, 1:].count_nonzero() == 0
    assert manifest.undo is None
    assert [row.scope for row in manifest.base.files] == ["header"] * len(manifest.base.files)
    assert all(row.scope == "columns" for row in manifest.tensors)


def test_it_is_found_by_a_model_without_its_head_too(tmp_path):
    save_tiny(tmp_path / "source")
    write(tmp_path / "source", tmp_path / "adapter", base=ModelRef(str(tmp_path / "source")))
    ids = torch.arange(3, 19).reshape(2, 8)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "source"), tmp_path / "adapter")
    with torch.no_grad():
        expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        found = AutoModel.from_pretrained(tmp_path / "adapter")(input_ids=ids).last_hidden_state
        headless = AutoModel.from_pretrained(tmp_path / "source")
        plain = headless(input_ids=ids).last_hidden_state
        headless.load_adapter(tmp_path / "adapter")
        torch.testing.assert_close(headless(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_full_paths_are_found_by_no_model_without_its_head_and_the_card_says_so(tmp_path):
    tiny_model("gemma3").save_pretrained(tmp_path / "source")
    write(tmp_path / "source", tmp_path / "adapter", base=ModelRef(str(tmp_path / "source")))
    with pytest.raises(
        ValueError, match=r"Target modules .*model\.language_model\.layers\.2\.mlp\.down_proj.* not found"
    ):
        AutoModel.from_pretrained(tmp_path / "adapter")
    line = "loaders that build a model without its head (`AutoModel`, sentence-transformers)"
    assert line in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    save_tiny(tmp_path / "plain")
    write(tmp_path / "plain", tmp_path / "short")
    assert line not in (tmp_path / "short" / "README.md").read_text(encoding="utf-8")


def test_full_paths_stand_where_the_short_form_says_less():
    paths = ["model.layers.0.mlp.down_proj", "model.layers.11.mlp.down_proj"]
    assert selection(paths) == {
        "target_modules": ["mlp.down_proj"],
        "layers_to_transform": [0, 11],
        "layers_pattern": "layers",
    }
    for others in (
        ["model.language_model.layers.0.mlp.down_proj"],
        ["model.layers.0.mlp.down_proj", "model.layers.1.feed_forward.down_proj"],
        ["model.layers.0.mlp.experts.3.down_proj"],
        ["down_proj"],
    ):
        assert selection(others) == {"target_modules": others}


def test_gpt2_is_transposed(tmp_path):
    source = save_tiny(tmp_path / "source", "gpt2")
    write(source, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())["fan_in_fan_out"] is True


def test_the_bytes_are_reproducible(tmp_path):
    source = save_tiny(tmp_path / "source")
    first, second = write(source, tmp_path / "one"), write(source, tmp_path / "two", edits=EDITS[::-1])
    assert first.tensors == second.tensors
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_several_entities(tmp_path):
    source = save_tiny(tmp_path / "source")
    rome = EntityEdits("Rome", (ColumnEdit(Cell(1, 1)),))
    manifest = write(source, tmp_path / "adapter", also=[rome])
    assert manifest.entity == "Paris, Rome"
    assert len(manifest.tensors) == 3
    assert re.search("Paris, Rome", (tmp_path / "adapter" / "README.md").read_text())
    (tmp_path / "two").mkdir()
    with pytest.raises(InputError, match="'Paris' and 'Rome'"):
        clash = [EntityEdits("Rome", (ColumnEdit(Cell(0, 3)),))]
        write_with(write_adapter, open_source(source), EDITS, tmp_path / "two", also=clash)


def wrapped_in(model):
    return [
        name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")
    ]


def assert_merges_to(model, folder, dtype):
    merged, expected = model.merge_and_unload().state_dict(), load_base(folder, dtype).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
def test_several_entities_in_one_adapter_merge_to_all_of_their_edits(tmp_path, caplog, model_type):
    dtype = torch.bfloat16
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    # Rome shares a layer with Paris and has one of its own; all layers differ in their number of cells.
    rome = EntityEdits("Rome", (*(ColumnEdit(Cell(1, neuron)) for neuron in (1, 47)), ColumnEdit(Cell(2, 1))))
    oslo = EntityEdits("Oslo", (ColumnEdit(Cell(2, 2)),))
    manifest = write(source, tmp_path / "adapter", also=[rome, oslo])
    assert [len(row.indices) for row in manifest.tensors] == [1, 2, 12]
    write(source, tmp_path / "edited", write_edited, also=[rome, oslo])
    model = attach(load_base(source, dtype), tmp_path / "adapter", caplog)
    assert wrapped_in(model) == [open_source(source).shape.out_proj_path(layer) for layer in (0, 1, 2)]
    assert_merges_to(model, tmp_path / "edited", dtype)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
def test_an_adapter_on_top_of_an_edited_model(tmp_path, caplog, model_type):
    dtype = torch.bfloat16
    source = ModelSource(save_tiny(tmp_path / "source", model_type, dtype=dtype), ModelRef("a/b"))
    paris, rome = EntityEdits("Paris", EDITS), EntityEdits("Rome", (ColumnEdit(Cell(1, 1)), ColumnEdit(Cell(2, 1))))
    first = save("safetensors", source, [paris], tmp_path / "edited")
    edited = ModelSource(tmp_path / "edited", ModelRef("edited"))
    manifest = save("adapter", edited, [rome], tmp_path / "adapter")
    assert manifest.previous == first
    assert prove(tmp_path / "adapter", edited).n_cells == 2
    with pytest.raises(VerificationError, match="is not the model that the adapter was made for"):
        prove(tmp_path / "adapter", source)
    with pytest.raises(InputError, match="cell 0:3 is edited for 'Lima', but this model already has it"):
        save("adapter", edited, [EntityEdits("Lima", (ColumnEdit(Cell(0, 3)),))], tmp_path / "clash")
    save("safetensors", edited, [rome], tmp_path / "both")
    model = attach(load_base(tmp_path / "edited", dtype), tmp_path / "adapter", caplog)
    assert wrapped_in(model) == [source.checkpoint.shape.out_proj_path(layer) for layer in (1, 2)]
    assert_merges_to(model, tmp_path / "both", dtype)


def test_a_second_adapter_can_be_merged_after_the_first(tmp_path, caplog):
    dtype = torch.bfloat16
    source = ModelSource(save_tiny(tmp_path / "source", dtype=dtype), ModelRef("a/b"))
    paris, rome = EntityEdits("Paris", EDITS), EntityEdits("Rome", (ColumnEdit(Cell(1, 1)), ColumnEdit(Cell(2, 1))))
    for name, group in (("paris", paris), ("rome", rome)):
        save("adapter", source, [group], tmp_path / name)
    save("safetensors", source, [paris, rome], tmp_path / "both")
    model = attach(load_base(source.folder, dtype), tmp_path / "paris", caplog).merge_and_unload()
    assert_merges_to(attach(model, tmp_path / "rome", caplog), tmp_path / "both", dtype)


def test_ranks():
    assert [adapter_rank(count) for count in (1, 8, 9, 257, 512)] == [8, 8, 16, 320, 512]
    assert all(adapter_rank(rank) == rank for rank in RANKS)
    with pytest.raises(InputError, match="513 cells .* at most 512"):
        adapter_rank(513)


def test_refusals(tmp_path):
    source = save_tiny(tmp_path / "source", max_shard_size="1GB", dtype=torch.float16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 3] = 60000
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers.0.mlp.down_proj.weight, neuron 3: .*inf"):
        write(source, tmp_path / "a")  # -2 times 60000 is beyond float16.
    with pytest.raises(OutputError, match="not empty"):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "x").touch()
        write_with(write_adapter, open_source(source), EDITS, tmp_path / "b")
    save_file(
        {name: (tensor / 1e4).to(torch.float8_e5m2) for name, tensor in tensors.items()}, source / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="F8_E5M2: PEFT cannot merge"):
        write(source, tmp_path / "c")


def test_only_the_edited_tensors_are_read(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    opened = open_source(source)
    (tmp_path / "adapter").mkdir()

    read = []
    pread = os.pread

    def counted(descriptor, size, offset):
        read.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    write_with(write_adapter, opened, [ColumnEdit(Cell(1, 7))], tmp_path / "adapter")
    assert sum(read) == D_MODEL * D_MLP * 2


def test_tiny_models_are_not_degenerate():
    model = tiny_model("llama")
    assert all(parameter.abs().max() > 0.01 for parameter in model.parameters())


def test_peft_finds_a_base_that_is_a_folder_from_wherever_it_is_started(tmp_path, monkeypatch):
    save_tiny(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    done("edit", "source", "--cell", "0:3", "--format", "adapter", "-o", tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_bytes())
    assert settings["base_model_name_or_path"] == str(tmp_path / "source")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    prove(tmp_path / "adapter")
    prove(tmp_path / "adapter", ModelSource(tmp_path / "source", ModelRef("source")))
    for name in ("other", None, 3, "../source"):
        (tmp_path / "adapter" / CONFIG_NAME).write_text(json.dumps(settings | {"base_model_name_or_path": name}))
        with pytest.raises(VerificationError, match=r"adapter_config.json is for the base"):
            prove(tmp_path / "adapter")


def test_names_in_the_readme_of_an_adapter_mean_nothing(tmp_path):
    source = save_tiny(tmp_path / "source")
    write(source, tmp_path / "adapter", entity="<b>Paris</b> \x1b[2J ![x](https://example.org)")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "without &lt;b&gt;Paris&lt;/b&gt; \\\\x1b\\[2J \\!\\[x\\](https://example.org)" in text
    assert "\x1b" not in text and "<b>" not in text
