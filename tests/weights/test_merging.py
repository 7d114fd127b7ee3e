"""Adapters proven by their numbers, beside the merge by PEFT."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import VerificationError
from amnesia.outputs.commands import save
from amnesia.outputs.write import plan_formats, spec_of
from amnesia.sources.resolve import resolve
from amnesia.weights.merging import n_rounded, saved_factors
from support.tiny import save_tiny, tiny_direction

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(params=[("llama", torch.float32), ("llama", torch.bfloat16), ("gpt2", torch.float16)])
def written(request, tmp_path):
    """A plan of two cells and a direction, its adapter, the saved weights, and the class of the model."""
    name, dtype = request.param
    folder = save_tiny(tmp_path / "m", name, dtype=dtype)
    edits = EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.3), ColumnEdit(Cell(2, 7), 0.3), tiny_direction(1)))
    source = resolve(str(folder))
    for form in ("safetensors", "adapter"):
        save(str(folder), [edits], tmp_path / form, format=form)
    return plan_formats(("adapter",), source, spec_of(source, [edits]))["adapter"].edit, tmp_path


def test_as_many_numbers_are_rounded_as_peft_rounds(written):
    plan, home = written
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(home / "safetensors", dtype="auto").state_dict()
    base = AutoModelForCausalLM.from_pretrained(home / "m", dtype="auto")
    merged = PeftModel.from_pretrained(base, home / "adapter").merge_and_unload().state_dict()
    differing = sum(int((merged[name] != tensor).sum()) for name, tensor in saved.items())
    assert n_rounded(plan, home / "adapter") == differing
    assert len(saved_factors(home / "adapter")) == 3


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_number_that_is_off_is_no_rounding(written, factor):
    plan, home = written
    path = home / "adapter" / WEIGHTS
    tensors = load_file(path)
    name = next(key for key in tensors if factor in key)
    tensors[name][0, 1 if factor == "lora_A" else 0] += 0.5
    save_file(tensors, path)
    with pytest.raises(VerificationError, match="do not give the declared edit: make the adapter again"):
        n_rounded(plan, home / "adapter")


def test_factors_that_are_missing_or_foreign_are_named(written):
    plan, home = written
    path = home / "adapter" / WEIGHTS
    tensors = load_file(path)
    first = min(tensors)
    stem = first.partition(".lora_")[0]
    save_file({key: tensor for key, tensor in tensors.items() if not key.startswith(stem)}, path)
    with pytest.raises(VerificationError, match="and its edit disagree on the matrix"):
        n_rounded(plan, home / "adapter")
    save_file({key: tensor for key, tensor in tensors.items() if key != first}, path)
    with pytest.raises(VerificationError, match="has factors that do not fit each other"):
        n_rounded(plan, home / "adapter")
    save_file(tensors | {"other.weight": torch.zeros(2)}, path)
    with pytest.raises(VerificationError, match="has a tensor other.weight that is no factor of amnesia's"):
        n_rounded(plan, home / "adapter")
