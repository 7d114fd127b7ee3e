"""Outputs made again from their manifests are the same, byte for byte."""

import hashlib
import itertools
import json
import shutil

import pytest
import torch

from amnesia.files.staging import MANIFEST_NAME
from support.commands import call, done, refused
from support.folders import files_in
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf


@pytest.fixture
def source(tmp_path):
    return save_tiny(tmp_path / "source", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["safetensors", "adapter"])
def test_every_byte_comes_again(tmp_path, source, name):
    cells = ("--cell", "0:3", "--cell", "2:40", "--multiplier", "-1.7", "--entity", "Japan")
    done("edit", source, *cells, "--format", name, "-o", tmp_path / "out")
    manifest = shutil.copy(tmp_path / "out" / "amnesia.json", tmp_path / "moved.json")
    assert "2 columns in 2 tensors as recorded" in done("replay", manifest, "--base", source, "-o", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "out")
    line = refused("replay", tmp_path / "out", "-o", tmp_path / "third")
    assert "source was a folder or file of the machine on which it was edited: give its place with --base" in line


def test_a_gguf_comes_again(tmp_path):
    gguf = write_gguf(tmp_path / "tiny.gguf")
    done("edit", gguf, "--cell", "0:3", "-o", tmp_path / "out")
    done("replay", tmp_path / "out", "--base", gguf, "-o", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "out")


def test_the_model_is_named_before_it_is_looked_for(tmp_path, source):
    done("edit", source, "--cell", "0:3", "-o", tmp_path / "out")
    result = call("replay", tmp_path / "out", "--base", tmp_path / "gone", "-o", tmp_path / "again")
    first, error = result.stderr.splitlines()
    assert first == f"finding the model that was edited, {tmp_path / 'gone'}"
    assert error.startswith("error: ") and result.exit_code == 2


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safetensors", "adapter"])
def test_edits_on_top_of_each_other_come_again_from_the_first_base(tmp_path, source, name):
    done("edit", source, "--cell", "0:3", "--multiplier", "-1.7", "--entity", "Japan", "-o", tmp_path / "one")
    done("edit", tmp_path / "one", "--cell", "1:4", "--entity", "Peru", "--format", name, "-o", tmp_path / "two")
    done("replay", tmp_path / "two", "--base", tmp_path / "one", "-o", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    done("replay", tmp_path / "two", "--base", source, "-o", tmp_path / "third")
    made, recorded = files_in(tmp_path / "third"), files_in(tmp_path / "two")
    if name == "adapter":  # PEFT's own settings say where the base lies, which is nowhere by now.
        place = str(tmp_path / "one").encode()
        config = recorded["adapter_config.json"]
        recorded["adapter_config.json"] = moved = config.replace(place, b"one")
        for old, new in ((digest(config), digest(moved)), (f'"size": {len(config)}\n', f'"size": {len(moved)}\n')):
            assert recorded[MANIFEST_NAME].count(old.encode()) == 1
            recorded[MANIFEST_NAME] = recorded[MANIFEST_NAME].replace(old.encode(), new.encode())
    assert made == recorded
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_adapter_comes_again_from_the_hub(hub, tmp_path, source):
    hub.add_repo("org/base", files_in(source))
    done("edit", "org/base", "--cell", "0:3", "--format", "adapter", "-o", tmp_path / "out")
    hub.reset()
    done("replay", tmp_path / "out", "-o", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "out")
    assert 0 < hub.down < sum(len(content) for content in hub.files("org/base").values()) / 3


def test_another_base_is_refused(tmp_path, source):
    done("edit", source, "--cell", "0:3", "-o", tmp_path / "out")
    other = save_tiny(tmp_path / "other", dtype=torch.bfloat16, seed=1)
    line = refused("replay", tmp_path / "out", "--base", other, "-o", tmp_path / "again")
    assert "the base is not the one that was edited" in line
    assert not (tmp_path / "again").exists()


def test_manifests_that_are_none(tmp_path):
    for document, message in (
        ({"format_version": 5}, "make the output again with this version"),
        ({"format_version": 6}, "lacks"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(document), encoding="utf-8")
        assert message in refused("replay", tmp_path / "bad.json", "-o", tmp_path / "out")
    assert "cannot be read (No such file" in refused("replay", tmp_path / "none.json", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_gguf_beside_the_base_is_nobodys_business(tmp_path):
    (tmp_path / "models").mkdir()
    done("edit", write_gguf(tmp_path / "models" / "b.gguf"), "--cell", "1:5", "--in-place")
    gguf = write_gguf(tmp_path / "models" / "a.gguf")
    done("edit", gguf, "--cell", "0:3", "-o", tmp_path / "one")
    done("edit", tmp_path / "one" / "a.gguf", "--cell", "1:4", "-o", tmp_path / "two")
    assert "2 columns in 2 tensors" in done("verify", tmp_path / "two", "--base", gguf)
    done("replay", tmp_path / "two", "--base", gguf, "-o", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "two")


@pytest.mark.slow
def test_edits_on_top_of_each_other_come_again_from_any_step_and_by_themselves_from_the_hub(hub, tmp_path, source):
    hub.add_repo("org/base", files_in(source))
    made = ("org/base", *(tmp_path / name for name in ("one", "two", "three")))
    for number, (base, output) in enumerate(itertools.pairwise(made)):
        done("edit", base, "--cell", f"{number}:3", "--entity", f"entity {number}", "-o", output)
    for base in ((), *(("--base", path) for path in made[:3])):
        done("replay", made[3], *base, "--force", "-o", tmp_path / "again")
        assert files_in(tmp_path / "again") == files_in(made[3])
