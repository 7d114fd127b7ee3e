"""Files that lie beside the model because of an edit: a changed one is told by `verify`, and never replaced."""

import contextlib
import json
import shutil

import pytest

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import VerificationError
from amnesia.files.manifest_form import manifest_text
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.commands import save, undo, verify
from amnesia.outputs.in_place import undo_in_place
from amnesia.weights.manifest_file import read_manifest
from support.checkpoints import write_output
from support.commands import refused, succeed
from support.folders import tree
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf
from support.tiny_text import save_tiny_live

EDIT = ("--cell", "1:4", "--multiplier", 0.3)
FILES = {
    "safetensors": ("amnesia-undo.safetensors",),
    "adapter": ("README.md", "adapter_config.json", "adapter_model.safetensors"),
    "gguf": ("amnesia-undo.safetensors",),
    "gguf-lora": ("README.md", "lora.gguf"),
}


@pytest.fixture(scope="module", params=FILES)
def made(request, tmp_path_factory):
    """A format, a model for it, and an output of the command."""
    folder = tmp_path_factory.mktemp("made")
    is_gguf = request.param.startswith("gguf")
    (folder / "m").mkdir()
    model = write_gguf(folder / "m" / "tiny.gguf") if is_gguf else save_tiny_live(folder / "m")
    succeed("edit", model, *EDIT, "--format", request.param, "-o", folder / "out")
    return request.param, model, folder / "out"


def test_the_manifest_knows_every_file_that_it_lists_and_force_replaces_them(made, tmp_path):
    name, model, output = made
    folder = shutil.copytree(output, tmp_path / "out")
    assert {*FILES[name]} <= {row.file for row in read_manifest(folder).written}
    assert read_manifest(folder).names_written == tuple(row.file for row in read_manifest(folder).written)
    before = tree(folder)
    succeed("edit", model, *EDIT, "--format", name, "-o", folder, "--force")
    assert tree(folder) == before


def test_a_changed_file_is_not_replaced_and_fails_the_proof(made, tmp_path):
    name, model, output = made
    for file in FILES[name]:
        for change in (lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda _: b"years of work"):
            folder = shutil.copytree(output, tmp_path / "out", dirs_exist_ok=True)
            path = folder / file
            path.write_bytes(change(path.read_bytes()))
            before = tree(folder)
            said = refused("edit", model, *EDIT, "--format", name, "-o", folder, "--force")
            assert f"{path} was changed since amnesia wrote it: --force" in said
            assert tree(folder) == before
            if file == "README.md":  # People go on writing it.
                succeed("verify", folder)
            else:
                assert refused("verify", folder)
            shutil.rmtree(folder)


@pytest.mark.slow
def test_a_changed_file_that_proves_nothing_of_the_weights_is_told_too(tmp_path):
    source = save_tiny(tmp_path / "source")
    added = {"report.json": b"{}", "README.md": b"a card"}
    output = tmp_path / "out"
    write_output(source, output, [ColumnEdit(Cell(0, 3))], added=added)
    verify(output)
    for name, content, said in (
        ("README.md", b"a tome", None),  # People go on writing it.
        ("report.json", b"{ }", "has 3 bytes, amnesia.json declares 2, it was changed since it was written: put it"),
    ):
        original = (output / name).read_bytes()
        (output / name).write_bytes(content)
        for base in (None, source):
            with pytest.raises(VerificationError, match=f"{name} {said}") if said else contextlib.nullcontext():
                verify(output, base)
        with pytest.raises(VerificationError, match="it would be lost: undo into a new folder with -o"):
            undo_in_place(output)
        assert (output / name).read_bytes() == content
        undo(output, tmp_path / "back")  # It has neither of them.
        assert tree(tmp_path / "back") == tree(source)
        shutil.rmtree(tmp_path / "back")
        (output / name).write_bytes(original)
    kept = output / "amnesia-base" / "README.md"
    original = kept.read_bytes()
    kept.write_bytes(b"years of work")
    for refusing in (verify, undo_in_place, lambda folder: undo(folder, tmp_path / "back")):
        with pytest.raises(VerificationError):
            refusing(output)
    assert not (tmp_path / "back").exists()
    kept.write_bytes(original)
    verify(output, source)
    undo_in_place(output)
    assert tree(output) == tree(source)


def test_what_an_edit_in_place_has_brought_is_known(tmp_path):
    source = save_tiny(tmp_path / "source")
    before = tree(source)
    for entity, cell in (("Paris", "1:4"), ("Rome", "0:3")):
        succeed("edit", source, "--cell", cell, "--multiplier", 0.3, "--entity", entity, "--in-place")
        manifest = read_manifest(source)
        assert {row.file: row.size for row in manifest.written} == {
            name: (source / name).stat().st_size for name in manifest.names_written
        }
        verify(source)
    kept = source / "amnesia-base" / MANIFEST_NAME
    content = kept.read_bytes()
    kept.write_bytes(content + b"\n")
    assert refused("verify", source)
    kept.write_bytes(content)
    for _ in range(2):
        undo_in_place(source)
    assert tree(source) == before


def test_outputs_from_before_their_files_were_known_are_proven_and_replaced(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    edits = EntityEdits("Japan", (ColumnEdit(Cell(1, 4), 0.3),))
    for name in ("safetensors", "adapter"):
        output = tmp_path / name
        save(model, edits, output, format=name)
        document = json.loads((output / MANIFEST_NAME).read_bytes())
        assert document.pop("written")
        (output / MANIFEST_NAME).write_text(manifest_text(document), encoding="utf-8")
        verify(output)
        save(model, edits, output, format=name, force=True)
        assert read_manifest(output).written
