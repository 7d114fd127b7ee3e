"""Edits in place: exact, taken back exactly, refused where others would see them, and never left half-made."""

import os
import resource
import shutil

import pytest
import torch

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError, InputError, OutputError, VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.diff import diff
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.weights.manifest_file import read_manifest
from support.commands import done
from support.folders import tree
from support.gguf_edits import tiny
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf

PARIS = EntityEdits("Paris", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), 0.3)))
LIMA = EntityEdits("Lima", (ColumnEdit(Cell(0, 5)),))
ROME = EntityEdits("Rome", (ColumnEdit(Cell(1, 7), -1.7),))


def make(folder, kind):
    """A model in `folder`; returns what is edited, and its source."""
    if kind == "gguf":
        folder.mkdir()
        path = write_gguf(folder / "tiny.gguf")
        return path, ModelSource(folder, ModelRef("a/b"), gguf=path)
    path = save_tiny(folder, kind, dtype=torch.bfloat16)
    return path, ModelSource(path, ModelRef("a/b"))


def test_a_folder_with_the_name_of_a_built_in_model_is_edited_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "smollm2-135m")
    before = tree(tmp_path / "smollm2-135m")
    done("edit", "smollm2-135m", "--cell", "0:3", "--in-place")
    assert tree(tmp_path / "smollm2-135m") != before
    done("undo", "smollm2-135m", "--in-place")
    assert tree(tmp_path / "smollm2-135m") == before


def test_what_only_the_base_can_prove_is_named_and_all_names_come_back(tmp_path):
    source = save_tiny(tmp_path / "m")
    before = tree(source)
    for entity, cell in (("Paris", "0:3"), ("Rome", "1:4")):
        done("edit", source, "--cell", cell, "--entity", entity, "--in-place")
    told = done("verify", source)
    assert "2 columns in 2 tensors changed as declared" in told
    assert "not proven without --base: " in told and "only the edited tensors and the sizes are" in told
    said = done("undo", source, "--every-step", "-o", tmp_path / "back")
    assert said.startswith("Rome, Paris are back: ")
    assert tree(tmp_path / "back") == before


def test_what_lies_beside_a_gguf_and_is_no_file_of_it_is_nobodys_business(tmp_path):
    path = tiny(tmp_path / "models" / "tiny.gguf")
    original = path.read_bytes()
    (path.parent / "others").mkdir()
    (path.parent / "others" / "lost").symlink_to("nowhere")
    os.mkfifo(path.parent / "others" / "pipe")
    for number in (3, 4):
        edit_in_place(path, EditSpec((EntityEdits("Ada", (ColumnEdit(Cell(0, number)),)),), ModelRef("tiny")))
        prove(path.parent)
    take_back(path.parent, tmp_path / "undone", every_step=True)
    assert tree(tmp_path / "undone") == {"tiny.gguf": original}
    undo_in_place(path.parent)
    undo_in_place(path.parent)
    assert path.read_bytes() == original


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gguf"])
def test_equals_the_edited_copy_and_comes_back(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    _, base = make(tmp_path / "base", kind)
    before = tree(source.folder)
    save("gguf" if kind == "gguf" else "safetensors", source, [PARIS], tmp_path / "copy")
    manifest = edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert read_manifest(source.folder) == manifest
    after, copy = tree(source.folder), tree(tmp_path / "copy")
    copy.pop("Modelfile", None)  # An edit in place adds no file but the manifest.
    assert {**after, MANIFEST_NAME: b""} == {**copy, MANIFEST_NAME: b""}
    assert prove(source.folder).n_cells == prove(source.folder, base).n_cells == 2
    take_back(source.folder, tmp_path / "undone")
    assert tree(tmp_path / "undone") == before
    assert undo_in_place(source.folder) == manifest
    assert tree(source.folder) == before
    with pytest.raises(VerificationError, match="not a complete output"):
        undo_in_place(source.folder)


@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_an_edit_without_saved_columns_after_one_with_them_comes_back(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    states = []
    for neuron, multiplier in ((3, 0.3), (5, -1.0), (7, -1.0), (9, 0.7)):
        states.append(tree(source.folder))
        edit_in_place(
            path, EditSpec((EntityEdits(f"Name {neuron}", (ColumnEdit(Cell(0, neuron), multiplier),)),), ModelRef("a"))
        )
    for state in reversed(states):
        undo_in_place(source.folder)
        assert tree(source.folder) == state


@pytest.mark.parametrize("kept", [".git/lfs/objects/ab/cd/abcd", ".cache/huggingface/download/x.incomplete"])
@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_a_copy_of_the_weights_in_a_hidden_folder_is_refused_by_name(tmp_path, kind, kept):
    path, source = make(tmp_path / "model", kind)
    group = EntityEdits("Ada", (ColumnEdit(Cell(0, 3)),))
    copy = source.folder / kept
    copy.parent.mkdir(parents=True)
    edited = edit_in_place(path, EditSpec((group,), ModelRef("a/b"))).base.files[0].file
    undo_in_place(source.folder)
    shutil.copy(source.folder / edited, copy)
    before = tree(source.folder)
    with pytest.raises(InputError, match=rf"{copy.name} has the size of {edited}, .* with -o, or move it away"):
        edit_in_place(path, EditSpec((group,), ModelRef("a/b")))
    assert tree(source.folder) == before
    copy.write_bytes(b"a small file")
    edit_in_place(path, EditSpec((group,), ModelRef("a/b")))


@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_what_a_later_edit_took_back_is_not_counted_as_changed(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    _, base = make(tmp_path / "base", kind)
    for edits in ([Cell(0, 3)], [Cell(0, 3)], [Cell(1, 5)]):
        group = EntityEdits("Ada", tuple(ColumnEdit(cell) for cell in edits))
        edit_in_place(path, EditSpec((group,), ModelRef("a/b"), allow_overlap=True))
    for report in (prove(source.folder), prove(source.folder, base)):
        assert (report.n_cells, report.n_tensors, report.n_unchanged) == (1, 1, 1)
    found = diff(str(tmp_path / "base" / "tiny.gguf" if kind == "gguf" else base.folder), str(path)).edit
    assert found is not None and found.cells == ((Cell(1, 5), -1.0),)
    line = done("verify", source.folder)
    assert "1 column in 1 tensor changed as declared" in line
    assert "1 edited column beside these: now as before the edits" in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_edits_on_top_of_each_other(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    _, base = make(tmp_path / "base", kind)
    states = [tree(source.folder)]
    for group in (PARIS, ROME, EntityEdits("Oslo", (ColumnEdit(Cell(1, 9), 0.7),))):
        edit_in_place(path, EditSpec((group,), ModelRef("a/b")))
        states.append(tree(source.folder))
        prove(source.folder)
    with pytest.raises(InputError, match="already has it edited for 'Paris'"):
        edit_in_place(path, EditSpec((EntityEdits("Lima", (ColumnEdit(Cell(0, 3)),)),), ModelRef("a/b")))
    assert prove(source.folder).n_cells == prove(source.folder, base).n_cells == 4
    assert take_back(source.folder, tmp_path / "undone", every_step=True).entity == "Paris"
    assert tree(tmp_path / "undone") == states[0]
    assert take_back(source.folder, tmp_path / "once").entity == "Oslo"
    assert tree(tmp_path / "once") == states[2]
    for state in reversed(states[:-1]):
        undo_in_place(source.folder)
        assert tree(source.folder) == state


def test_unproven_bytes_are_said_to_be_unproven(tmp_path):
    path, source = make(tmp_path / "model", "llama")
    manifest = edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert {row.file for row in manifest.base.files} <= set(prove(source.folder).unproven)
    names = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    declared = {row.file: row.size for row in (*manifest.base.files, *manifest.untouched)}
    assert declared == {name: size for name, size in names.items() if name not in (MANIFEST_NAME, manifest.undo)}
    file = path / "LICENSE"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(VerificationError, match="LICENSE is missing"):
        prove(source.folder)
    file.write_bytes(content)
    file = path / manifest.tensors[0].file
    content = bytearray(file.read_bytes())
    offset = content.index(b"{")
    content[offset + 1 : offset + 2] = b" "
    file.write_bytes(content)
    with pytest.raises(AmnesiaError):
        prove(source.folder)


def test_shared_files_are_refused(tmp_path, monkeypatch):
    path, _ = make(tmp_path / "model", "llama")
    before = tree(path)
    for name in ("pytorch_model.bin", "adapter_config.json", "checkpoint-5/model.safetensors", "weights"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"\0weights")
        with pytest.raises(InputError, match=rf"{name}, which may be another copy of the weights"):
            edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
        (path / name).unlink()
    shard = next(iter(sorted(path.glob("model-*.safetensors"))))
    shard.rename(path / "kept")
    shard.symlink_to("kept")
    with pytest.raises(AmnesiaError, match=r"shared with other folders by a link|may be another copy"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    shard.unlink()
    (path / "kept").rename(shard)
    (path / "checkpoint-5").rmdir()
    for name in before:
        os.link(path / name, tmp_path / name.replace("/", "-"))
    with pytest.raises(OutputError, match="shared with other folders by a link, .*: edit into a new folder with -o"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").symlink_to(tmp_path)
    for change in (lambda: edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b"))), lambda: undo_in_place(path)):
        with pytest.raises(OutputError, match="cache of amnesia"):
            change()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OutputError, match="Hugging Face cache"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert tree(path) == before


@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_an_undo_of_shared_files_is_sent_to_a_new_folder(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    before = tree(source.folder)
    edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    shutil.copytree(source.folder, tmp_path / "shared", copy_function=os.link)
    with pytest.raises(OutputError, match="shared with other folders by a link, .*: undo into a new folder with -o"):
        undo_in_place(tmp_path / "shared")
    take_back(tmp_path / "shared", tmp_path / "back")
    assert tree(tmp_path / "back") == before


@pytest.mark.parametrize("name", ["b.gguf", "tiny.gguf.bak", "blob"])
def test_a_copy_beside_a_gguf_is_refused_by_name(tmp_path, name):
    path = write_gguf(tmp_path / "tiny.gguf")
    shutil.copy(path, tmp_path / name)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"{name} has the size of tiny.gguf, .* with -o, or move it away"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert tree(tmp_path) == before
    (tmp_path / name).write_bytes(b"another model")
    edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    shutil.copy(path, tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} has the size of tiny.gguf"):
        edit_in_place(path, EditSpec((LIMA,), ModelRef("a/b")))


def test_a_failing_disk_changes_nothing(tmp_path, monkeypatch):
    path, source = make(tmp_path / "model", "llama")
    before = tree(path)
    real, calls = os.pwritev, []

    def fail(descriptor, buffers, offset):
        calls.append(offset)
        if len(calls) in (2, 3):  # A write past the page cache is tried again by way of it.
            raise OSError(28, "No space left on device")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(OutputError, match="nothing was changed"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert tree(source.folder) == before


def test_a_text_beside_the_model_is_in_nobodys_way(tmp_path):
    path, _ = make(tmp_path / "model", "llama")
    (path / "notes.txt").write_text("mine")
    edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert prove(path).unproven[-1] == "notes.txt"
    undo_in_place(path)
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["llama", "gguf"])
def test_what_cannot_be_written_is_said_before_anything_is(tmp_path, kind):
    path, source = make(tmp_path / "model", kind)
    before = tree(source.folder)
    shards = [file for file in source.folder.iterdir() if file.suffix in (".safetensors", ".gguf")]
    for shard in shards:
        shard.chmod(0o444)
    with pytest.raises(OutputError, match="write-protected|cannot be written"):
        edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    assert tree(source.folder) == before
    for shard in shards:
        shard.chmod(0o644)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"the limit is 100 \(ulimit -f\)"):
            edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(source.folder) == before
    edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))


def test_a_model_edited_in_place_is_never_replaced(tmp_path):
    path, source = make(tmp_path / "model", "llama")
    _, other = make(tmp_path / "other", "llama")
    edit_in_place(path, EditSpec((PARIS,), ModelRef("a/b")))
    before = tree(path)
    with pytest.raises(OutputError, match="is a model that was edited in place"):
        save("safetensors", other, [ROME], path, force=True)
    assert tree(path) == before
    # A copy of it is an output like others.
    save("safetensors", source, [ROME], tmp_path / "copy")
    save("safetensors", other, [ROME], tmp_path / "copy", force=True)
    assert prove(tmp_path / "copy", other).n_cells == 1


def test_what_a_kill_after_a_finished_edit_left_is_no_file_of_the_model(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "m", dtype=torch.bfloat16)
    edit_in_place(source, EditSpec((PARIS,), ModelRef("m")))
    with monkeypatch.context() as patch:
        patch.setattr("amnesia.files.journal._sweep", lambda folder: None)
        edit_in_place(source, EditSpec((ROME,), ModelRef("m")))
    (left,) = source.glob(".amnesia-*")
    assert prove(source).n_cells == 3
    made = save("safetensors", ModelSource(source, ModelRef("m")), [LIMA], tmp_path / "out")
    assert made.left_out == () and not list((tmp_path / "out").rglob(left.name))
    # By its name alone nothing is left out: what is copied from elsewhere may be anybody's.
    shutil.copytree(left, source / f".amnesia-{'0' * 16}")
    with pytest.raises(VerificationError, match="may hold weights that were not edited"):
        prove(source)
