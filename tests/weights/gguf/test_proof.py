"""Outputs of GGUF files: proven, also in parts and with edits on top of each other, and every damage found."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amnesia.edits import EntityEdits
from amnesia.errors import CheckpointError, InputError, VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.weights.gguf.proof import undo_gguf
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.gguf_edits import (
    F32,
    Q4_1,
    Q4_K,
    Q8_0,
    changed_bytes,
    edits,
    proven,
    tensors,
    undo,
    write,
)
from support.tiny import as_read
from support.tiny_gguf import (
    write_gguf,
)


def test_split_models_are_edited_part_by_part(tmp_path: Path):
    (tmp_path / "base").mkdir()
    write_gguf(tmp_path / "base" / "tiny.gguf", Q4_K, parts=3)
    parts = sorted((tmp_path / "base").iterdir())
    before = {part.name: part.read_bytes() for part in parts}
    steps: list[int] = []
    manifest = write(parts[2], tmp_path / "out", *edits("0:7"), link=True, progress=steps.append)
    output = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.gguf")}
    touched = {name for name in output if output[name] != before[name]}
    assert output.keys() == before.keys()
    assert touched == {manifest.tensors[0].file} == {file.file for file in manifest.base.files}
    for part in parts:
        assert (tmp_path / "out" / part.name).samefile(part) == (part.name not in touched)
    assert sum(steps) == sum(len(before[name]) for name in touched)
    for base in (None, tmp_path / "base", parts[0], parts[1]):
        assert proven(tmp_path / "out", base) == manifest
    restored = undo(tmp_path / "out", tmp_path / "back")
    assert {path.name: path.read_bytes() for path in restored.iterdir()} == before
    assert {part.name: part.read_bytes() for part in parts} == before
    # A part that was copied, not linked, is proven by its hash.
    write(parts[0], tmp_path / "copy", *edits("0:7"))
    other = tmp_path / "copy" / min(before.keys() - touched)
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError, match=f"{other.name} differs from its source"):
        proven(tmp_path / "copy")
    (tmp_path / "no").mkdir()
    with pytest.raises(VerificationError, match=f"{other.name} with its rows put back is not the file"):
        undo_gguf(tmp_path / "copy", tmp_path / "no")
    other.write_bytes(content)
    assert {row.file: row.sha256 for row in proven(tmp_path / "copy").untouched} == {
        name: hashlib.sha256(before[name]).hexdigest() for name in before.keys() - touched
    }


def test_several_entities_and_an_edit_on_top_of_an_edit(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", F32)
    also = (EntityEdits("Bob", tuple(edits("1:2"))),)
    write(source, tmp_path / "one", *edits("0:1", multiplier=-1.3), also=also)
    one = tmp_path / "one" / "tiny.gguf"
    with pytest.raises(
        InputError, match="cell 1:2 is edited for 'Eve', but this model already has it edited for 'Bob'"
    ):
        write(one, tmp_path / "no", *edits("1:2"), entity="Eve")
    second = write(one, tmp_path / "two", *edits("0:5", multiplier=-1.7), entity="Eve")
    third = write(tmp_path / "two" / "tiny.gguf", tmp_path / "three", *edits("1:7", multiplier=0.3), entity="Fay")
    assert [step.entity for step in third.history()] == ["Fay", "Eve", "Ada, Bob"]
    proven(tmp_path / "three")
    for base in ("two", "one"):
        proven(tmp_path / "three", tmp_path / base)
    proven(tmp_path / "three", source)
    original = bytearray(source.read_bytes())
    original[-1] ^= 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny.gguf").write_bytes(original)
    with pytest.raises(VerificationError, match="which the edit does not explain"):
        proven(tmp_path / "three", tmp_path / "other")
    # Undoing one step after the other gives each folder back, to the byte and with everything in it.
    for later, earlier in [("three", "two"), ("two", "one")]:
        restored = undo(tmp_path / later, tmp_path / f"{later}-undone")
        expected = {path.relative_to(tmp_path / earlier): path for path in (tmp_path / earlier).rglob("*")}
        found = {path.relative_to(restored): path for path in restored.rglob("*")}
        assert found.keys() == expected.keys()
        for name, path in found.items():
            assert path.is_dir() or path.read_bytes() == expected[name].read_bytes(), name
        proven(restored)
    assert second.previous == read_manifest(tmp_path / "one")
    assert (undo(tmp_path / "one", tmp_path / "origin") / "tiny.gguf").read_bytes() == source.read_bytes()


def test_a_cell_that_two_entities_share_needs_leave(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    also = (EntityEdits("Bob", tuple(edits("0:1", multiplier=2.0))),)
    with pytest.raises(InputError, match="0:1 is edited for both 'Ada' and 'Bob'"):
        write(source, tmp_path / "no", *edits("0:1"), also=also)
    write(source, tmp_path / "out", *edits("0:1"), also=also, allow_overlap=True)
    proven(tmp_path / "out", source)
    name = "blk.0.ffn_up.weight"
    assert np.array_equal(tensors(tmp_path / "out" / "tiny.gguf")[name][1], -2 * tensors(source)[name][1])


def test_a_manifest_that_describes_other_bytes_is_not_continued(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    write(source, tmp_path / "out", *edits("0:1"))
    (tmp_path / "out" / "tiny.gguf").write_bytes(source.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"declares an edit of blk\.0\.ffn_up\.weight, but the tensor has other bytes"
    ):
        write(tmp_path / "out" / "tiny.gguf", tmp_path / "two", *edits("0:2"))


@pytest.mark.slow
def test_every_damage_of_an_output_is_found(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q4_1)
    manifest = write(source, tmp_path / "out", *edits("0:3"))
    output = tmp_path / "out" / "tiny.gguf"
    good = output.read_bytes()
    edited = changed_bytes(source, output)
    rng = np.random.default_rng(0)
    places = {*rng.integers(0, len(good), size=60).tolist(), *edited.tolist(), edited[0] - 1, edited[-1] + 3}
    for place, base in itertools.product(sorted(places), (None, source)):
        output.write_bytes(good[:place] + bytes([good[place] ^ 0x80]) + good[place + 1 :])
        with pytest.raises(VerificationError):
            proven(tmp_path / "out", base)
    output.write_bytes(good[:-1])
    with pytest.raises(VerificationError):
        proven(tmp_path / "out")
    output.write_bytes(source.read_bytes())
    for base in (None, source):
        with pytest.raises(VerificationError, match="sha256"):
            proven(tmp_path / "out", base)
    (tmp_path / "back").mkdir()
    with pytest.raises(VerificationError, match="sha256 after"):
        undo_gguf(tmp_path / "out", tmp_path / "back")
    output.write_bytes(good)
    assert proven(tmp_path / "out") == manifest
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    with pytest.raises(VerificationError, match="not a complete output"):
        proven(tmp_path / "out")


def test_another_base_and_manifests_that_lie_are_found(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    manifest = write(source, tmp_path / "out", *edits("0:3", "1:4"))
    other = tmp_path / "other" / "tiny.gguf"
    other.parent.mkdir()
    other.write_bytes(source.read_bytes()[:-1] + b"\x55")
    with pytest.raises(
        VerificationError, match=f"at byte {source.stat().st_size - 1}, which the edit does not explain"
    ):
        proven(tmp_path / "out", other)
    entry, second = manifest.tensors
    lies = [
        replace(manifest, tensors=(replace(entry, place=second.place), replace(second, place=entry.place))),
        replace(manifest, tensors=(replace(entry, place=replace(entry.place, first=1)), manifest.tensors[1])),
        replace(manifest, edits=(EntityEdits("Ada", tuple(edits("0:4", "1:4"))),)),
        replace(manifest, edits=(EntityEdits("Ada", tuple(edits("0:3", "1:4", multiplier=-2.0))),)),
        replace(manifest, tensors=(replace(entry, axis=1), manifest.tensors[1])),
        replace(manifest, tensors=(replace(entry, name="token_embd.weight"), manifest.tensors[1])),
        replace(manifest, tensors=manifest.tensors[:1]),
        replace(manifest, tensors=(replace(entry, before="0" * 64), manifest.tensors[1])),
        replace(manifest, tensors=(replace(entry, after="0" * 64), manifest.tensors[1])),
        replace(manifest, edits=(EntityEdits("Ada", tuple(edits("0:3", "1:99"))),)),
        replace(manifest, edits=(EntityEdits("Ada", tuple(edits("0:3", "0:4", "1:4"))),)),
        replace(manifest, base=replace(manifest.base, files=(replace(manifest.base.files[0], sha256="0" * 64),))),
        replace(manifest, base=replace(manifest.base, files=(replace(manifest.base.files[0], size=7),))),
        replace(manifest, format="safetensors"),
    ]
    for lie in lies:
        write_manifest(as_read(lie), tmp_path / "out")
        for base in (None, source):
            with pytest.raises(VerificationError) as caught:
                proven(tmp_path / "out", base)
            assert "\n" not in str(caught.value)
