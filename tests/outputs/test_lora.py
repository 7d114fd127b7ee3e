"""LoRA files of llama.cpp: read by the gguf package, their factors are the declared edit, and nothing else."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import CheckpointError, InputError, VerificationError
from amnesia.live.loading import load_lora
from amnesia.outputs.commands import save, undo, verify
from amnesia.outputs.replay import replay
from amnesia.weights.manifest_file import read_manifest
from support.folders import tree
from support.gguf_edits import D_MLP, DOWN, delta, direction, tiny
from support.tiny_gguf import llama_gguf
from support.tiny_text import save_tiny_live, tiny_tokenizer

CELLS = (ColumnEdit(Cell(0, 3), -4.0), ColumnEdit(Cell(0, 470)), ColumnEdit(Cell(1, 11), 0.0))
DIRECTIONS = (direction(0), direction(1, seed=1), direction(1, tuple(range(0, D_MLP, 4)), seed=2))


def written(path, *edits, **options):
    return save(path, EntityEdits("Ada", edits), path.parent / "out", format="gguf-lora", **options)


def product(folder, layer):
    """B·A of one layer, float64, as llama.cpp multiplies it: by alpha / rank."""
    reader = GGUFReader(folder / "lora.gguf")
    found = {tensor.name: tensor.data.astype(float) for tensor in reader.tensors}
    a, b = (found[f"{DOWN.format(layer)}.lora_{factor}"] for factor in "ab")
    return b @ a * (reader.fields["adapter.lora.alpha"].contents() / len(a))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q5_K", "IQ2_S"])
def test_the_product_of_the_factors_is_the_edit(tmp_path, kind):
    path = tiny(tmp_path / "base.gguf", GGMLQuantizationType[kind])
    manifest = written(path, *CELLS, *DIRECTIONS)
    assert (manifest.format, [row.place.layer for row in manifest.tensors]) == ("gguf-lora", [0, 1])
    base = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    wanted = {0: delta(DIRECTIONS[0]), 1: delta(*DIRECTIONS[1:])}
    for edit in CELLS:
        column = base[DOWN.format(edit.cell.layer)][:, edit.cell.neuron].astype(float)
        wanted[edit.cell.layer][:, edit.cell.neuron] += (edit.multiplier - 1) * column
    for layer, change in wanted.items():
        np.testing.assert_allclose(product(tmp_path / "out", layer), change, rtol=1e-6, atol=1e-7)
    for base in (None, path):
        (report,) = verify(tmp_path / "out", base).values()
        assert (report.format, report.n_tensors, report.base_read) == ("gguf-lora", 2, base is not None)


def test_the_file_is_what_the_gguf_package_writes(tmp_path):
    written(tiny(tmp_path / "base.gguf"), *DIRECTIONS)
    path = tmp_path / "out" / "lora.gguf"
    writer = GGUFWriter(tmp_path / "again.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for tensor in GGUFReader(path).tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
        assert 8 in tensor.data.shape, "the rank that alpha equals"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_any_changed_byte_is_found_and_the_base_too(tmp_path):
    path = tiny(tmp_path / "base.gguf")
    written(path, *CELLS, DIRECTIONS[0])
    lora = tmp_path / "out" / "lora.gguf"
    content = lora.read_bytes()
    for place in (*range(0, len(content), len(content) // 150), len(content) - 1):
        lora.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises((VerificationError, CheckpointError)):
            verify(tmp_path / "out")
    lora.write_bytes(content + b"\0")
    with pytest.raises(VerificationError, match="in size, by \\+1 bytes"):
        verify(tmp_path / "out")
    lora.write_bytes(content)
    shutil.copy(lora, tmp_path / "out" / "more.gguf")
    with pytest.raises(VerificationError, match=r"disagree on the file more\.gguf"):
        verify(tmp_path / "out")
    (tmp_path / "out" / "more.gguf").unlink()
    with pytest.raises(VerificationError, match="is not the model that the adapter was made for"):
        verify(tmp_path / "out", tiny(tmp_path / "other.gguf"))
    other = bytearray(path.read_bytes())
    (down,) = (row for row in GGUFReader(path).tensors if row.name == DOWN.format(0))
    other[int(down.data_offset + down.n_bytes) - 1] ^= 1  # Of a block without edited columns.
    path.write_bytes(bytes(other))
    with pytest.raises(
        VerificationError, match="is not the model that .* has another blk.0.ffn_down.weight: give .* then"
    ):
        verify(tmp_path / "out", path)


def test_manifests_of_another_edit_are_refused(tmp_path):
    written(tiny(tmp_path / "base.gguf"), *DIRECTIONS[:2])
    place = tmp_path / "out" / "amnesia.json"
    document = json.loads(place.read_text(encoding="utf-8"))
    document["tensors"] = document["tensors"][:1]
    place.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(VerificationError, match="tensors that do not follow from its edits"):
        verify(tmp_path / "out")


def test_it_is_made_again_from_its_manifest_and_needs_no_undo(tmp_path):
    path = tiny(tmp_path / "base.gguf")
    written(path, *CELLS, *DIRECTIONS)
    replay(tmp_path / "out", tmp_path / "again", base=str(path))
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    with pytest.raises(InputError, match="is an adapter, the base model was never changed"):
        undo(tmp_path / "out", tmp_path / "original")
    save(path, EntityEdits("Ada", CELLS), tmp_path / "out", format="gguf-lora", force=True)
    assert len(read_manifest(tmp_path / "out").tensors) == 2


def test_what_no_adapter_can_hold_is_refused_and_nothing_is_written(tmp_path):
    path = tiny(tmp_path / "base.gguf")
    save(path, EntityEdits("Ada", CELLS), tmp_path / "edited")
    with pytest.raises(InputError, match="is an edited GGUF, on which no adapter is made"):
        save(tmp_path / "edited" / path.name, EntityEdits("Eve", DIRECTIONS), tmp_path / "out", format="gguf-lora")
    with pytest.raises(InputError, match="at most 512 per layer"):
        written(path, *[ColumnEdit(Cell(0, neuron)) for neuron in range(D_MLP)], direction(0))
    with pytest.raises(InputError, match=r"multiplier 1e\+39 of cell 0:3 .* beyond"):
        written(path, ColumnEdit(Cell(0, 3), 1e39))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_with_it_answers_as_the_edited_model(tmp_path):
    folder = save_tiny_live(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = llama_gguf(tmp_path / "m.gguf", model, tokenizer=tiny_tokenizer())
    edits = EntityEdits("Ada", (ColumnEdit(Cell(0, 3), -2.0), ColumnEdit(Cell(1, 11))))
    save(path, edits, tmp_path / "lora", format="gguf-lora")
    save(folder, edits, tmp_path / "edited")
    ids = torch.tensor([[1, 5, 9, 33]])
    with torch.no_grad():
        found = load_lora(folder, tmp_path / "lora" / "lora.gguf", "m").model(ids).logits
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")(ids).logits
        assert not torch.allclose(model(ids).logits, wanted, atol=1e-3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    (tmp_path / "lora" / "lora.gguf").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="is no LoRA file that amnesia wrote"):
        load_lora(folder, tmp_path / "lora" / "lora.gguf", "m")
