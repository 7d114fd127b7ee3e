"""The edited copy against torch, byte for byte; refusals; and what a crash leaves behind."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError, CheckpointError, InputError, LayoutError, OutputError
from amnesia.files import disk
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import undo_in_place
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME, add_file, needed_bytes, open_source, write_edited
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.plan import Plan
from support.checkpoints import weights, write_output
from support.folders import ROOT, tree
from support.tiny import D_MLP, D_MODEL, MODEL_TYPES, N_LAYERS, save_tiny, write_with

EDITS = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 47), 0.5), ColumnEdit(Cell(2, 0), -3.0))


def edit(source, output, edits=EDITS, entity="Paris", **options):
    return write_output(source, output, edits, entity=entity, **{"base": ModelRef("a/b", "main"), **options})


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


def test_links_share_untouched_files_and_copy_touched_ones(tmp_path):
    source = save_tiny(tmp_path / "source")
    manifest = edit(source, tmp_path / "out", link=True)
    touched = {row.file for row in manifest.base.files}
    for name in tree(source):
        assert (tmp_path / "out" / name).samefile(source / name) == (name not in touched)
    plan = Plan.of(open_source(source), EditSpec(manifest.edits, ModelRef("a/b")))
    sizes = {name: len(content) for name, content in tree(source).items()}
    assert needed_bytes(plan) == sum(sizes.values())
    assert needed_bytes(plan, link=True) == sum(sizes[name] for name in touched)


def test_links_do_not_share_what_an_earlier_edit_has_brought(tmp_path):
    """Neither what is kept for the undo nor reports: an undo in place writes and removes them."""
    source = save_tiny(tmp_path / "source")
    edit(source, tmp_path / "one", added={"report.json": b"{}", "README.md": b"card"})
    second = edit(tmp_path / "one", tmp_path / "two", [ColumnEdit(Cell(1, 3), 0.3)], "Rome", link=True)
    own = {UNDO_NAME, MANIFEST_NAME, "README.md", f"{BASE_FOLDER}/README.md", "report.json", "LICENSE"}
    kept = {MANIFEST_NAME, UNDO_NAME, f"{BASE_FOLDER}/README.md"}
    copied = {row.file for row in second.base.files} | own
    for name in tree(tmp_path / "one"):
        path = tmp_path / "two" / BASE_FOLDER / name if name in kept else tmp_path / "two" / name
        assert path.samefile(tmp_path / "one" / name) == (name not in copied), name
    plan = Plan.of(open_source(tmp_path / "one"), EditSpec(second.edits, ModelRef("a/b"), allow_overlap=True))
    before = tree(tmp_path / "one")
    assert needed_bytes(plan, link=True) == sum(len(content) for name, content in before.items() if name in copied)
    undo_in_place(tmp_path / "two")
    assert tree(tmp_path / "two") == tree(tmp_path / "one") == before


def test_a_disk_that_shares_blocks(tmp_path, monkeypatch):
    """Where files can be cloned, nothing but the touched shards is read, and the output is the same."""
    source = save_tiny(tmp_path / "source")
    copied = edit(source, tmp_path / "copied")

    def clone(reader, writer):
        os.sendfile(writer, reader, 0, os.fstat(reader).st_size)
        return True

    monkeypatch.setattr(disk, "_reflink", clone)
    shared = edit(source, tmp_path / "shared")
    assert {**tree(tmp_path / "shared"), MANIFEST_NAME: b""} == {**tree(tmp_path / "copied"), MANIFEST_NAME: b""}
    assert (shared.base, shared.tensors) == (copied.base, copied.tensors)
    sizes = [(row.file, row.size) for row in copied.untouched]
    assert [(row.file, row.size, row.sha256) for row in shared.untouched] == [(*row, None) for row in sizes]
    assert all(row.sha256 is not None for row in copied.untouched)
    for output in ("shared", "copied"):
        verify(tmp_path / output, source)
        undo(tmp_path / output, tmp_path / f"{output} back")
        assert tree(tmp_path / f"{output} back") == tree(source)


def test_snapshots_of_the_hubs_cache_give_real_files(tmp_path):
    blobs = save_tiny(tmp_path / "models--a--b" / "blobs")
    source = tmp_path / "models--a--b" / "snapshots" / "0123"
    for name in tree(blobs):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(blobs / name)
    before = tree(blobs)
    edit(source, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert tree(blobs) == before


# What lies in model folders on the Hub and after training, beside the files that a model needs.
OTHER_FILES = """
optimizer.pt optimizer.bin scheduler.pt scaler.pt rng_state.pth rng_state_0.pth training_args.bin trainer_state.json
model.ckpt model.pth model.pt pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json
pytorch_model_fsdp.bin consolidated.00.pt consolidated.00.pth consolidated.safetensors consolidated.safetensors.index.json
original/consolidated.00.pth original/params.json params.json tf_model.h5 flax_model.msgpack rust_model.ot
global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt global_step500/mp_rank_00_model_states.pt zero_to_fp32.py
latest onnx/model.onnx onnx/model.onnx_data onnx/decoder_model_merged.onnx openvino_model.bin openvino_model.xml
ggml-model-q4_0.bin model.gguf model-q4_k_m.gguf model-fp16.safetensors model.fp16.safetensors model_ema.safetensors
fp16/model.safetensors model-00001-of-00009.safetensors adapter_config.json adapter_model.safetensors adapter_model.bin
checkpoint-500/model.safetensors checkpoint-500/config.json coreml/model.mlpackage/weights/weight.bin model.tflite
model.npz model.zip model.tar.gz weights.pkl model.pdparams modeling_llama.py tokenizer/model.safetensors
amnesia-base/model.safetensors amnesia-undo.safetensors .env edit.json steve_jobs.toml thesis.docx eval_results.json
runs/events.out.tfevents.1 assets/logo.png ckpt/model tokenizer.bin config.json.bak LICENSES/weights README.md.bin
LICENSE_KEY.txt license.key licenses.json LICENSE-TOKEN NOTICE.env notice_of_dismissal.txt vocab.key tokenizer.secret.json
""".split()  # fmt: skip
COPIED = """
config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json merges.txt vocab.txt tokenizer.model spiece.model tekken.json qwen.tiktoken preprocessor_config.json
processor_config.json video_preprocessor_config.json chat_template.json chat_template.jinja
additional_chat_templates/tools.jinja README.md LICENSE LICENSE.txt NOTICE USE_POLICY.md COPYING .gitattributes
Licence.md LICENSE-MODEL Notice.txt THIRD_PARTY_NOTICES.md USAGE_POLICY tokenizer.4.0.0.json
""".split()  # fmt: skip


def test_only_what_a_model_needs_is_copied_and_the_rest_is_listed(tmp_path):
    source = save_tiny(tmp_path / "source", extras=())
    shards = {name for name in tree(source) if name.startswith("model")}
    config = (source / "config.json").read_bytes()
    for name in (*OTHER_FILES, *COPIED):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"\nwords" if name.endswith(".model") else b"words")
    (source / "config.json").write_bytes(config)
    manifest = edit(source, tmp_path / "out")
    assert {*tree(tmp_path / "out")} == {*COPIED, *shards, MANIFEST_NAME, UNDO_NAME}
    assert {*manifest.left_out} == {*tree(source)} - {*COPIED, *shards}
    assert {*manifest.left_out} >= {*OTHER_FILES}
    verify(tmp_path / "out", source)
    undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == {
        name: content for name, content in tree(source).items() if name in {*COPIED, *shards}
    }


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
    "name", ["NOTICE", "LICENSE.bin", "vocab.txt", "README.md", "tokenizer.model", "chat_template.jinja"]
)
def test_weights_under_the_name_of_a_text_are_not_copied(tmp_path, name):
    source = save_tiny(tmp_path / "source")
    shard = next(path for path in sorted(source.iterdir()) if path.suffix == ".safetensors")
    (source / name).write_bytes(shard.read_bytes())
    manifest = edit(source, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()
    assert name in manifest.left_out


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


def test_added_files_keep_what_they_replace(tmp_path):
    source = save_tiny(tmp_path / "source")
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = write_with(write_edited, open_source(source), EDITS, folder, link=True)
    original = (source / "README.md").read_bytes()
    for content in (b"card", b"better card"):
        manifest = add_file(manifest, folder, "README.md", content)
        manifest = add_file(manifest, folder, "report.json", content)
        assert (folder / "README.md").read_bytes() == (folder / "report.json").read_bytes() == content
    assert (folder / BASE_FOLDER / "README.md").read_bytes() == original == (source / "README.md").read_bytes()
    assert manifest.replaced == ("README.md",)
    assert "report.json" in manifest.added
    for name in (MANIFEST_NAME, UNDO_NAME, "../x", "model-00001-of-00002.safetensors", f"{BASE_FOLDER}/x", "notes.txt"):
        with pytest.raises(InputError, match="cannot be added"):
            add_file(manifest, folder, name, b"")


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
