"""What an edited copy shares with its source, what it copies, and what it leaves behind."""

import os

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec
from amnesia.errors import InputError
from amnesia.files import disk
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import undo_in_place
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME, add_file, needed_bytes, open_source, write_edited
from amnesia.weights.plan import Plan
from support.checkpoints import EDITS, edit
from support.folders import tree
from support.tiny import save_tiny, write_with


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
