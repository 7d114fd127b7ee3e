"""Directions whose manifests or bytes were damaged are refused, and what is without damage is the same every time."""

import zlib
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.errors import AmnesiaError, VerificationError
from amnesia.files.disk import hash_file
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.vector import Vector
from amnesia.weights.adapter import WEIGHTS_NAME, write_adapter
from amnesia.weights.checkpoint import UNDO_NAME, add_file, open_source
from amnesia.weights.manifest_file import manifest_bytes, parse_manifest, read_manifest, write_manifest
from amnesia.weights.safetensors import read_header
from support.checkpoints import tell_otherwise
from support.direction_edits import ONE, SEVERAL, edit
from support.folders import tree
from support.tiny import D_MLP, D_MODEL, save_tiny


def set_edit(**changes):
    return lambda document: document["edits"][0].update(changes)


def vector(size, value=1.0):
    return Vector.of(np.full(size, value)).text


DAMAGES = {
    "base64": (set_edit(read="!!!!"), "`read` is not Base64"),
    "length": (set_edit(read=Vector.of([1.0]).text[:-4]), "`read` is not Base64|has 3 bytes|no float32"),
    "numbers": (set_edit(key=vector(15)), "of 16 columns with 15 numbers as `key`"),
    "write": (set_edit(write=vector(D_MODEL + 1)), "writes 33 numbers|lists tensors that do not follow"),
    "nan": (set_edit(spread=vector(16, np.nan)), "holds NaN or infinity"),
    "order": (set_edit(columns=[1, 0, *range(2, 16)]), "expected ascending numbers"),
    "twice": (set_edit(columns=[0, 0, *range(2, 16)]), "expected ascending numbers"),
    "range": (set_edit(columns=[*range(15), D_MLP]), "has column 48|lists tensors that do not follow"),
    "negative": (set_edit(columns=[-1, *range(1, 16)]), "has -1 as edits.columns"),
    "other": (set_edit(read=vector(16)), "differs|would not give the original|lacks|another"),
    "multiplier": (set_edit(multiplier=0.5), "differs|another|would not give the original"),
    "one": (set_edit(multiplier=1.0), "changes nothing"),
    "layer": (set_edit(layer=9), "of layer 0, in which its edits change nothing"),
    "place": (lambda document: document["tensors"][0].update(layer=7), "of layer 7, in which its edits change nothing"),
    "other place": (
        lambda document: document["tensors"][0].update(layer=1),
        "do not follow from its edits|does not list the tensors",
    ),
    "no place": (lambda document: document["tensors"][0].update(part="cells"), "in which its edits change nothing"),
    "of": (set_edit(of="cell"), "has a direction of 'cell', expected layer or stream"),
    "unknown key": (set_edit(neuron=3), "unknown key 'neuron'"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("directions")
    source = save_tiny(folder / "source", dtype=torch.bfloat16)
    edit(source, folder / "out")
    edit(source, folder / "adapter", writer=write_adapter)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("output", ["out", "adapter"])
def test_damaged_manifests_are_refused_in_one_line(originals, tmp_path, name, output):
    change, message = DAMAGES[name]
    work = copytree(originals / output, tmp_path / "work")
    tell_otherwise(work, change)
    with pytest.raises(AmnesiaError, match=message) as caught:
        verify(work, originals / "source")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edits", [ONE, SEVERAL])
def test_the_wrong_base_of_an_adapter_is_told_from_a_damaged_adapter(originals, tmp_path, edits):
    """A direction adds the same to every model, so that the adapter itself fits a model of other numbers, too."""
    edit(originals / "source", tmp_path / "adapter", edits, write_adapter)
    other = copytree(originals / "source", tmp_path / "other")
    for path in other.glob("*.safetensors"):
        save_file({name: tensor * 1.25 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    verify(tmp_path / "adapter", originals / "source")
    with pytest.raises(
        VerificationError, match=r"other is not the model that .* another model\.layers\.0\..*: give a/b"
    ):
        verify(tmp_path / "adapter", other)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_of_another_direction_is_refused_without_the_base(originals, tmp_path, part):
    """Even when its manifest gives the hash of what is there."""
    work = copytree(originals / "adapter", tmp_path / "work")
    tensors = load_file(work / WEIGHTS_NAME)
    name = f"base_model.model.model.layers.0.mlp.down_proj.{part}.weight"
    tensors[name][0, 0] += 1
    save_file(tensors, work / WEIGHTS_NAME, metadata={"format": "pt"})
    manifest = read_manifest(work)
    header = read_header(work / WEIGHTS_NAME).tensors[name.replace("lora_A", "lora_B")]
    first = replace(manifest.tensors[0], after=hash_file(work / WEIGHTS_NAME, header.offset, header.size))
    write_manifest(replace(manifest, tensors=(first, *manifest.tensors[1:])), work)
    with pytest.raises(VerificationError, match=f"another .*{part}"):
        verify(work)


@pytest.mark.parametrize("with_base", [True, False])
def test_a_changed_byte_is_found(originals, tmp_path, with_base):
    work = copytree(originals, tmp_path / "work")
    entry = read_manifest(work / "out").tensors[0]
    tensor = open_source(work / "out").weights.headers[entry.file].tensors[entry.name]
    path = work / "out" / entry.file
    content = bytearray(path.read_bytes())
    content[tensor.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"layers.0.mlp.down_proj.weight"):
        verify(work / "out", work / "source" if with_base else None)


@pytest.mark.parametrize("damage", ["gone", "not compressed", "short", "long", "another"])
def test_lost_originals_are_missed(originals, tmp_path, damage):
    work = copytree(originals / "out", tmp_path / "work")
    saved = load_file(work / UNDO_NAME)
    key = "model.layers.0.mlp.down_proj.weight:directions"
    bits = zlib.decompress(saved.pop(key).numpy().tobytes())
    content = {
        "not compressed": bits,
        "short": zlib.compress(bits[:-1]),
        "long": zlib.compress(bits + bytes(10**6)),
        "another": zlib.compress(bytes([bits[0] ^ 1]) + bits[1:]),
    }
    if damage != "gone":
        saved[key] = torch.frombuffer(bytearray(content[damage]), dtype=torch.uint8)
    save_file(saved, work / UNDO_NAME)
    message = {
        "gone": "was not saved",
        "another": "does not become the original|is not what the declared edit makes|differs from",
    }
    for read in (
        lambda: undo(work, tmp_path / "undone"),
        lambda: verify(work),
        lambda: verify(work, originals / "source"),
    ):
        with pytest.raises(VerificationError, match=message.get(damage, "are damaged")) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_bytes_are_the_same_every_time(originals, tmp_path):
    manifest = read_manifest(originals / "out")
    assert parse_manifest(manifest_bytes(manifest)) == manifest
    edit(originals / "source", tmp_path / "again")
    assert tree(tmp_path / "again") == tree(originals / "out")
    assert add_file(manifest, tmp_path / "again", "report.json", b"{}").edits == manifest.edits
