"""Outputs of which something else was changed since: no further edit is built upon them, as nobody could prove it."""

import pytest

from amnesia.errors import VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.proofs import check_unaltered
from amnesia.weights.gguf.container import read_model
from amnesia.weights.safetensors import read_weight_files
from support.commands import done, refused
from support.folders import tree
from support.gguf_edits import tiny
from support.tiny import save_tiny


def _output(folder, kind):
    """An output, the model in it, and where the data of its embeddings begin."""
    if kind == "gguf":
        done("edit", tiny(folder / "models" / "tiny.gguf"), "--cell", "0:3", "-o", folder / "out")
        path = folder / "out" / "tiny.gguf"
        return path, path, read_model(path).find("token_embd.weight")[1].offset
    done("edit", save_tiny(folder / "model", "llama"), "--cell", "0:3", "-o", folder / "out")
    path = folder / "out"
    name, tensor = read_weight_files(path).find("model.embed_tokens.weight")
    return path, path / name, tensor.offset


@pytest.mark.parametrize("kind", ["llama", "gguf"])
@pytest.mark.parametrize("way", ["copy", "in place"])
def test_a_changed_tensor_that_no_edit_touched_is_refused(tmp_path, kind, way):
    model, file, place = _output(tmp_path, kind)
    check_unaltered(model)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    before = tree(tmp_path)
    where = ("-o", tmp_path / "next") if way == "copy" else ("--in-place",)
    said = refused("edit", model, "--cell", "1:5", *where)
    assert said.startswith(f"error: {tmp_path / 'out'} was changed since its edit") and file.name in said
    assert f"move {MANIFEST_NAME} out of it" in said
    assert tree(tmp_path) == before
    (tmp_path / "out" / MANIFEST_NAME).rename(tmp_path / "moved.json")
    done("edit", model, "--cell", "1:5", *where)
    done("verify", tmp_path / ("next" if way == "copy" else "out"))


def test_a_changed_setting_is_refused(tmp_path):
    model, _, _ = _output(tmp_path, "llama")
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(VerificationError, match=r"was changed since its edit.*config\.json"):
        check_unaltered(model)


def test_a_file_that_came_later_is_not_the_outputs_business(tmp_path):
    model, _, _ = _output(tmp_path, "llama")
    (model / "notes.txt").write_text("Tell Ada.")
    done("edit", model, "--cell", "1:5", "-o", tmp_path / "next")
    done("verify", tmp_path / "next")
