"""Folders and files as they are named: the one that is meant, a name that says something else, and one that is no text."""

import json
import os
import shutil
from pathlib import Path

import pytest

from amnesia.errors import InputError
from amnesia.files.strict_json import json_bytes
from support.commands import call, done, refused, succeed
from support.folders import tree
from support.gguf_edits import tiny as tiny_gguf
from support.tiny import save_tiny

BAD = os.fsdecode(b"b\xff")
EDIT = ("--cell", "1:3", "--entity", "Paris")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "m")
    (folder / "g").mkdir()
    tiny_gguf(folder / "g" / "A.gguf")
    return folder


@pytest.fixture
def model(models, tmp_path):
    return Path(shutil.copytree(models / "m", tmp_path / "m"))


@pytest.fixture
def gguf(models, tmp_path):
    return Path(shutil.copytree(models / "g", tmp_path / "g")) / "A.gguf"


def test_a_file_beside_the_edited_one_is_not_taken_for_it(gguf, tmp_path):
    other, original = gguf.with_name("B.gguf"), gguf.read_bytes()
    succeed("edit", gguf, *EDIT, "--in-place")
    other.write_bytes(original)  # No edit in place would begin beside it.
    before = tree(gguf.parent)
    for command in (
        ("verify", other),
        ("undo", other, "--in-place"),
        ("undo", other, "-o", tmp_path / "u"),
        ("record", other, "-o", tmp_path / "r.html"),
    ):
        said = refused(*command)
        assert (
            f"{other} is none of the weights of the output {gguf.parent}, which are A.gguf: give one of these" in said
        )
    assert tree(gguf.parent) == before and not (tmp_path / "u").exists() and not (tmp_path / "r.html").exists()
    assert "changed as declared" in done("verify", gguf)
    succeed("undo", gguf, "--in-place")
    assert gguf.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["config.json", "amnesia.json", "README.md"])
def test_a_file_that_is_no_weights_is_not_taken_for_its_output(model, tmp_path, name):
    succeed("edit", model, *EDIT, "-o", tmp_path / "out")
    before = tree(tmp_path)
    for command in ("verify",), ("undo", "--in-place"), ("undo", "-o", tmp_path / "u"):
        said = refused(command[0], tmp_path / "out" / name, *command[1:])
        assert "is none of the weights of the output" in said and "model-00001-of-" in said and "more: give one" in said
    assert tree(tmp_path) == before
    for shard in sorted((tmp_path / "out").glob("model-*.safetensors")):
        assert "changed as declared" in done("verify", shard)


def test_weights_of_an_adapter_are_its_own(model, gguf, tmp_path):
    succeed("edit", model, *EDIT, "--format", "adapter", "-o", tmp_path / "a")
    succeed("edit", gguf, *EDIT, "--format", "gguf-lora", "-o", tmp_path / "l")
    for path in (tmp_path / "a" / "adapter_model.safetensors", tmp_path / "l" / "lora.gguf"):
        assert "changed as declared" in done("verify", path)
    assert "which are adapter_model.safetensors: give" in refused("verify", tmp_path / "a" / "adapter_config.json")


@pytest.mark.parametrize("kind", ["model", "gguf"])
def test_nothing_is_edited_in_place_where_something_lies_in_the_place_of_the_originals(kind, tmp_path, request):
    path = request.getfixturevalue(kind)
    folder = path if kind == "model" else path.parent
    (folder / "amnesia-base").mkdir()
    (folder / "amnesia-base" / "README.md").write_text("mine")
    before = tree(folder)
    said = refused("edit", path, *EDIT, "--in-place")
    assert f"{folder / 'amnesia-base' / 'README.md'} lies where edits keep files of the base" in said
    assert said.endswith("would refuse the edited model: move it away") and tree(folder) == before
    succeed("edit", path, *EDIT, "-o", tmp_path / "out")
    done("verify", tmp_path / "out", "--base", path)
    succeed("undo", tmp_path / "out", "-o", tmp_path / "u")
    (folder / "amnesia-base" / "README.md").unlink()
    (folder / "amnesia-base").rmdir()
    assert (tree(tmp_path / "u").items() >= tree(folder).items()) if kind == "model" else tree(tmp_path / "u")
    succeed("edit", path, *EDIT, "--in-place")
    (folder / "amnesia-base").mkdir()
    (folder / "amnesia-base" / "README.md").write_text("mine")
    before = tree(folder)
    for options in (("--in-place",), ("-o", tmp_path / "further")):
        assert "amnesia-base/README.md is not declared in amnesia.json" in refused(
            "edit", path, "--cell", "0:1", *options
        )
    assert tree(folder) == before and not (tmp_path / "further").exists()


def test_names_that_are_no_text_are_said_at_once(model, gguf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, BAD)
    shutil.copytree(model, f"{BAD}.d/m")
    shutil.copy(gguf, f"{BAD}.gguf")
    before = tree(tmp_path)
    for named, *command in (
        (BAD, "edit", BAD, *EDIT, "-o", "o"),
        (BAD, "edit", BAD, *EDIT, "--in-place"),
        (BAD, "edit", BAD, *EDIT, "--format", "adapter", "-o", "o"),
        (f"{tmp_path}/{BAD}.d/m", "edit", f"{BAD}.d/m", *EDIT, "--format", "adapter", "-o", "o"),
        (f"{BAD}.gguf", "edit", f"{BAD}.gguf", *EDIT, "-o", "o"),
        (f"{BAD}.gguf", "edit", f"{BAD}.gguf", *EDIT, "--format", "gguf-lora", "-o", "o"),
        (BAD, "localize", BAD, "Japan", "-o", "o"),
        (f"{BAD}.d/m", "layers", f"{BAD}.d/m", "Japan", "-o", "o"),
        (BAD, "atlas", BAD, "Japan", "--no-plots", "--no-directions", "-o", "o"),
    ):
        said = refused(*command)
        assert said == (f"error: {named!a} is not UTF-8, which JSON and tokenizers need: rename the folder or file")
    assert not (tmp_path / "o").is_file()
    shutil.rmtree("o", ignore_errors=True)  # The empty folder of the atlas.
    assert tree(tmp_path) == before
    succeed("edit", f"{BAD}.d/m", *EDIT, "-o", f"{BAD}.out")  # No file says where it lies.
    assert call("verify", f"{BAD}.out", "--base", BAD).exit_code == 0
    assert "is not UTF-8" in refused("edit", f"{BAD}.out", "--cell", "0:1", "-o", "o")


def test_json_names_the_text_that_is_none():
    with pytest.raises(
        InputError, match=r"^'b\\udcff' is not UTF-8, which JSON needs: rename the folder or file of th"
    ):
        json_bytes({"a": 1.0, "files": {BAD: 1}, "c": "d"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"a": float("nan")})


def test_a_folder_that_is_called_as_a_gguf_is_a_folder(model, gguf, tmp_path):
    path = model.rename(tmp_path / "x.gguf")
    before = tree(path)
    succeed("edit", path, *EDIT, "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "amnesia.json").read_bytes())["format"] == "safetensors"
    succeed("edit", path, *EDIT, "--in-place")
    succeed("undo", path, "--in-place")
    assert tree(path) == before
    said = refused("edit", path, *EDIT, "--format", "gguf", "-o", tmp_path / "o")
    assert f"{path} is a folder: give the path of a .gguf file" in said
    assert "0 of 30 tensors differ" in done("diff", path, path)
    assert f"{path}2.gguf does not exist" in refused("edit", f"{path}2.gguf", *EDIT, "-o", tmp_path / "o")
    os.mkfifo(tmp_path / "f.gguf")
    assert "f.gguf is no regular file" in refused("edit", tmp_path / "f.gguf", *EDIT, "-o", tmp_path / "o")


def test_a_lora_is_no_model_whatever_is_asked(gguf, tmp_path):
    lora = tmp_path / "l"
    succeed("edit", gguf, *EDIT, "--format", "gguf-lora", "-o", lora)
    said = "l is a LoRA of llama.cpp, not a model: give the .gguf model that it is for"
    assert said in refused("edit", lora, *EDIT, "-o", tmp_path / "o") and said in refused("diff", lora, gguf)
    of_type = "lora.gguf is of type 'adapter', not a model: give the model's own .gguf file"
    assert of_type in refused("diff", gguf, lora / "lora.gguf") and of_type in refused("diff", lora / "lora.gguf", gguf)
    assert "0 of 2 tensors differ" in done("diff", lora / "lora.gguf", lora / "lora.gguf")


def test_a_journal_that_is_no_file_is_to_be_removed(model):
    before = tree(model)
    journal = model / ".amnesia-journal"
    for make in (lambda: os.mkfifo(journal), lambda: journal.symlink_to("nowhere"), journal.mkdir):
        make()
        for command in (("edit", model, *EDIT, "--in-place"), ("undo", model, "--in-place")):
            assert f"{journal} is no regular file, and so no journal of an edit in place: remove it" in refused(
                *command
            )
        line = refused("verify", model)
        assert f"{journal} is no regular file, and so no journal of an edit in place: remove it" in line
        journal.rmdir() if journal.is_dir() else journal.unlink()
    assert tree(model) == before


def test_a_base_that_was_undone_since_is_to_be_as_it_was(model, tmp_path):
    succeed("edit", model, *EDIT, "--in-place")
    succeed("edit", model, "--cell", "0:1", "--format", "adapter", "-o", tmp_path / "a")
    done("verify", tmp_path / "a", "--base", model)
    succeed("undo", model, "--in-place")
    said = refused("verify", tmp_path / "a", "--base", model)
    assert said.endswith(
        "is not the model that the adapter was made for: give m as it was then, with the edit for 'Paris'"
    )


def test_a_tilde_is_the_home_folder_only_in_front(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "./~")
    shutil.copytree(save_tiny(tmp_path / "other", seed=1), tmp_path / "home")
    assert "0 of 30 tensors differ" in done("diff", "./~", "m") and "0 of 30 tensors differ" in done(
        "diff", "~", "other"
    )
    said = refused("edit", "~nobody-is-called-so/m", *EDIT, "-o", "o")
    assert "model '~nobody-is-called-so/m' does not exist" in said


def test_another_base_is_answered_with_what_to_give(gguf, model, tmp_path):
    succeed("edit", gguf, *EDIT, "-o", tmp_path / "out")
    *rest, last = gguf.read_bytes()
    gguf.write_bytes(bytes([*rest, last ^ 1]))
    said = refused("replay", tmp_path / "out", "--base", gguf, "-o", tmp_path / "again")
    assert said.endswith("is not the file that was edited (A.gguf): give that with --base (in Python: base=...)")
    said = refused("undo", model, "--in-place")
    assert said.endswith(f"{model} is not a complete output of amnesia, give one")
