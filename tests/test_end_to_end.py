"""Edit, verify, undo through the command line, with a comparison of all bytes that uses nothing of the package."""

import json
import struct

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from support.commands import done
from support.folders import files_in
from support.tiny import MODEL_TYPES, save_tiny


def changed_tensors(before, after):
    """Names of tensors with other bytes, read by hand from the safetensors format."""
    (length,) = struct.unpack("<Q", before[:8])
    assert before[: 8 + length] == after[: 8 + length]
    header = json.loads(before[8 : 8 + length])
    header.pop("__metadata__", None)
    data, other = before[8 + length :], after[8 + length :]
    spans = {name: slice(*row["data_offsets"]) for name, row in header.items()}
    return {name for name, span in spans.items() if data[span] != other[span]}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edit_verify_undo(tmp_path, model_type, dtype):
    source = save_tiny(tmp_path / "source", model_type, dtype=dtype)
    original = files_in(source)
    cells = ("--cell", "0:3", "--cell", "2:40", "--cell", "2:7", "--entity", "Japan")
    done("edit", source, *cells, "-o", tmp_path / "edited")
    edited = files_in(tmp_path / "edited")
    assert edited.keys() - original.keys() == {"amnesia.json"}
    changed = set()
    for name, content in original.items():
        if edited[name] != content:
            changed |= changed_tensors(content, edited[name])
    assert len(changed) == 2
    assert all(".0." in name or ".2." in name for name in changed)

    assert "3 columns in 2 tensors" in done("verify", tmp_path / "edited", "--base", source)
    done("undo", tmp_path / "edited", "-o", tmp_path / "back")
    assert files_in(tmp_path / "back") == original == files_in(source)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_merged_adapter_is_the_edited_model(tmp_path, model_type):
    source = save_tiny(tmp_path / "source", model_type, dtype=torch.bfloat16)
    for name in ("safetensors", "adapter"):
        done("edit", source, "--cell", "0:3", "--cell", "2:40", "--format", name, "-o", tmp_path / name)
    done("verify", tmp_path / "adapter", "--base", source)
    base = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "safetensors", dtype="auto").state_dict()
    assert merged.keys() == edited.keys()
    for name, tensor in edited.items():
        assert torch.equal(merged[name], tensor), name


@pytest.mark.slow
def test_two_edits_on_top_of_each_other(tmp_path):
    source = save_tiny(tmp_path / "source")
    done("edit", source, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "one")
    options = ("--multiplier", "-1.7", "--entity", "Peru")
    done("edit", tmp_path / "one", "--cell", "1:4", *options, "-o", tmp_path / "two")
    assert "2 columns" in done("verify", tmp_path / "two", "--base", source)
    done("undo", tmp_path / "two", "-o", tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(tmp_path / "one")
    done("undo", tmp_path / "two", "--every-step", "-o", tmp_path / "base")
    assert files_in(tmp_path / "base") == files_in(source)
