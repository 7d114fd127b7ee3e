"""Manifests: what is written can be read, and what cannot have been written is refused in one line."""

import hashlib
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits, Place, join_cells
from amnesia.errors import InputError, VerificationError
from amnesia.files.manifest_form import is_as_written, manifest_text
from amnesia.files.staging import MANIFEST_NAME, MAX_HASHED
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit, UntouchedFile, WrittenFile
from amnesia.weights.manifest_file import manifest_bytes, parse_manifest, read_manifest, write_manifest
from support.tiny import as_read

HASH = "0123456789abcdef" * 4


def example(**changes):
    manifest = Manifest(
        format="safetensors",
        base=Base(ModelRef("Qwen/Qwen2.5-7B", "main"), (BaseFile("model-00001-of-00002.safetensors", 1000, HASH),)),
        edits=(
            EntityEdits("Paris", (ColumnEdit(Cell(2, 10941)), ColumnEdit(Cell(2, 7), 0.5))),
            EntityEdits("東京", (ColumnEdit(Cell(3, 1), -3.0),)),
        ),
        tensors=(
            TensorEdit(
                "model.layers.2.mlp.down_proj.weight",
                "model-00001-of-00002.safetensors",
                1,
                Place(2),
                HASH,
                HASH[::-1],
                multipliers={7: 0.5, 10941: -1.0},
            ),
        ),
        untouched=(
            UntouchedFile("config.json", 7, HASH),
            UntouchedFile("model-00002-of-00002.safetensors", 900),
        ),
        undo="amnesia-undo.safetensors",
        added=("amnesia-undo.safetensors", "report.json"),
        replaced=("README.md",),
        written=(WrittenFile("README.md", 4, HASH), WrittenFile("amnesia-base/README.md", 9)),
        left_out=("pytorch_model.bin",),
        recipe='[entity]\nname = "Paris"\n',
        scores={"target": 0.1, "control": None},
    )
    return replace(manifest, **changes)


def test_round_trip(tmp_path):
    manifest = example(previous=example(undo=None))
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.entity == "Paris, 東京"
    assert [step.undo for step in manifest.history()] == ["amnesia-undo.safetensors", None]


def test_files_beside_the_model_are_listed_as_they_are_when_the_manifest_is_written(tmp_path):
    (tmp_path / "report.json").write_bytes(b"{}")
    with (tmp_path / "amnesia-undo.safetensors").open("wb") as file:
        file.truncate(MAX_HASHED + 1)
    manifest = write_manifest(example(), tmp_path)
    assert manifest.written == read_manifest(tmp_path).written
    assert {*manifest.written} == {
        WrittenFile("report.json", 2, hashlib.sha256(b"{}").hexdigest()),
        WrittenFile("amnesia-undo.safetensors", MAX_HASHED + 1),
    }


def test_a_manifest_from_before_there_were_hashes_of_these_files_is_read(tmp_path):
    manifest = example(written=())
    assert "written" not in json.loads(manifest_bytes(manifest))
    assert parse_manifest(manifest_bytes(manifest)) == manifest


def test_bytes_depend_on_nothing_but_the_content(tmp_path):
    first = as_read(example(scores={"a": 1, "b": 2}, edits=(EntityEdits("Paris", (ColumnEdit(Cell(2, 2), -1),)),)))
    second = as_read(
        example(scores={"b": 2.0, "a": 1.0}, edits=(EntityEdits("Paris", (ColumnEdit(Cell(2, 2), -1.0),)),))
    )
    assert manifest_bytes(first) == manifest_bytes(second)
    write_manifest(first, tmp_path)
    assert manifest_bytes(read_manifest(tmp_path)) == (tmp_path / MANIFEST_NAME).read_bytes()


def test_the_file_has_the_documented_fields():
    document = json.loads(manifest_bytes(example()))
    assert document["format_version"] == 6
    assert document["base"]["files"][0]["sha256"] == HASH
    assert document["edits"][0] == {"entity": "Paris", "layer": 2, "neuron": 10941, "multiplier": -1.0}
    assert document["tensors"][0]["sha256"] == {"before": HASH, "after": HASH[::-1], "scope": "tensor"}
    assert document["tensors"][0].keys() == {"name", "file", "axis", "layer", "sha256"}
    assert document["untouched"] == [
        {"file": "config.json", "size": 7, "sha256": HASH},
        {"file": "model-00002-of-00002.safetensors", "size": 900, "sha256": None},
    ]
    assert {"tool", "libraries", "undo", "recipe", "scores"} <= document.keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 1),
        (("format_version",), None),
        (("format_version",), True),
        (("format",), "pickle"),
        (("format",), ["gguf"]),
        (("base",), None),
        (("base", "files"), []),
        (("base", "files", 0, "file"), "../model.safetensors"),
        (("base", "files", 0, "file"), "/etc/passwd"),
        (("base", "files", 0, "file"), "a/../../b"),
        (("base", "files", 0, "file"), "C:/x"),
        (("base", "files", 0, "file"), "a\\b"),
        (("base", "files", 0, "file"), ""),
        (("base", "files", 0, "size"), -1),
        (("base", "files", 0, "size"), 10**30),
        (("base", "files", 0, "size"), 1.5),
        (("base", "files", 0, "sha256"), "g" * 64),
        (("edits",), []),
        (("edits", 0, "layer"), -1),
        (("edits", 0, "neuron"), "3"),
        (("edits", 0, "multiplier"), 10**400),
        (("edits", 0, "multiplier"), None),
        (("edits", 0, "entity"), ""),
        (("edits", 0, "multiplier"), 1.5),
        (("edits_sha256",), None),
        (("edits_sha256",), "0" * 64),
        (("tensors",), []),
        (("tensors", 0, "axis"), 2),
        (("tensors", 0, "layer"), 4),
        (("tensors", 0, "layer"), -2),
        (("tensors", 0, "layer"), "2"),
        (("tensors", 0, "expert"), 0),
        (("tensors", 0, "part"), "directions"),
        (("tensors", 0, "part"), "rows"),
        (("tensors", 0, "first"), -1),
        (("tensors", 0, "indices"), [7, 10941]),
        (("tensors", 0, "share"), "all"),
        (("tensors", 0, "file"), "other.safetensors"),
        (("tensors", 0, "name"), "\ud800"),
        (("untouched",), None),
        (("untouched", 0), {"file": "config.json", "size": 7}),
        (("untouched", 0, "file"), "../config.json"),
        (("untouched", 0, "file"), "model-00001-of-00002.safetensors"),
        (("untouched", 1, "file"), "config.json"),
        (("untouched", 0, "size"), -1),
        (("untouched", 0, "sha256"), "0"),
        (("undo",), ".."),
        (("undo",), "config.json"),
        (("added",), ["../x"]),
        (("added",), ["config.json"]),
        (("added",), ["adapter_config.json"]),
        (("replaced",), ["sub/precious.txt"]),
        (("replaced",), ["amnesia-base/model.ckpt"]),
        (("in_place",), None),
        (("replaced",), "README.md"),
        (("left_out",), [None]),
        (("written",), {}),
        (("written", 0, "file"), "config.json"),
        (("written", 0, "file"), "amnesia-base/report.json"),
        (("written", 1, "file"), "README.md"),
        (("written", 0, "size"), "4"),
        (("written", 0, "sha256"), "0"),
        (("scores",), []),
        (("scores", "target"), "0.1"),
        (("previous",), {}),
        (("recipe",), 3),
    ],
)
def test_wrong_values_are_named_in_one_line(tmp_path, path, value):
    document = json.loads(manifest_bytes(example()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(VerificationError) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"1" * 10_000,
        b'{"format_version": 1}',
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(VerificationError, match=MANIFEST_NAME):
        read_manifest(tmp_path)


def test_a_missing_manifest_means_an_incomplete_output(tmp_path):
    with pytest.raises(VerificationError, match="not a complete output"):
        read_manifest(tmp_path)


def test_unknown_and_missing_keys_are_refused():
    document = json.loads(manifest_bytes(example()))
    with pytest.raises(VerificationError, match="unknown key 'extra'"):
        parse_manifest(json.dumps(document | {"extra": 1}).encode())
    del document["undo"]
    with pytest.raises(VerificationError, match="lacks the key 'undo'"):
        parse_manifest(json.dumps(document).encode())


def test_values_that_could_not_be_read_back_are_not_written(tmp_path):
    for bad in (
        example(scores={"target": float("nan")}),
        example(edits=()),
        example(edits=(EntityEdits("Paris", ()),)),
        example(edits=(EntityEdits("A", (ColumnEdit(Cell(1, 1)),)), EntityEdits("A", (ColumnEdit(Cell(1, 2)),)))),
        example(undo="../x"),
        example(tensors=(replace(example().tensors[0], multipliers={7: 0.5, 10941: -2.0}),)),
        example(tensors=(replace(example().tensors[0], multipliers={7: 0.5, 8: -1.0}),)),
    ):
        with pytest.raises(VerificationError):
            write_manifest(bad, tmp_path)
        assert not (tmp_path / MANIFEST_NAME).exists()


def test_very_long_chains_are_refused():
    manifest = example()
    for _ in range(64):
        manifest = example(previous=manifest)
    with pytest.raises(VerificationError, match="more than 64 edits"):
        manifest_bytes(manifest)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_manifests_give_clean_errors(data):
    content = bytearray(manifest_bytes(example(previous=example())))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 20))
        content[start : start + length] = data.draw(st.binary(max_size=8))
    try:
        manifest = parse_manifest(bytes(content))
    except VerificationError as error:
        assert "\n" not in str(error)
    else:
        assert parse_manifest(manifest_bytes(manifest)) == manifest


def test_join_cells_sorts_and_names_both_entities():
    paris = EntityEdits("Paris", (ColumnEdit(Cell(3, 1)), ColumnEdit(Cell(1, 5))))
    rome = EntityEdits("Rome", (ColumnEdit(Cell(1, 5), 2.0),))
    assert list(join_cells([paris]).items()) == [(Cell(1, 5), -1.0), (Cell(3, 1), -1.0)]
    with pytest.raises(InputError, match=r"1:5 .*'Paris' and 'Rome'"):
        join_cells([paris, rome])
    assert join_cells([paris, rome], allow_overlap=True) == {Cell(1, 5): -2.0, Cell(3, 1): -1.0}
    with pytest.raises(InputError, match="cancel out"):
        join_cells([paris, EntityEdits("Rome", (ColumnEdit(Cell(1, 5)),))], allow_overlap=True)


@pytest.mark.slow
def test_a_manifest_of_many_tensors_is_refused_without_long_work():
    document = example().to_json()
    document["edits"] = [{"entity": "Paris", "layer": 2, "neuron": n, "multiplier": -1.0} for n in range(20_000)]
    rows = json.dumps(document["edits"], sort_keys=True, separators=(",", ":"))
    document["edits_sha256"] = hashlib.sha256(rows.encode()).hexdigest()
    row = document["tensors"][0]
    document["tensors"] = [row | {"name": f"t{n}", "first": n} for n in range(20_000)]
    start = time.process_time()
    with pytest.raises(VerificationError, match="two of layer 2 for the same part"):
        parse_manifest(json.dumps(document).encode())
    assert time.process_time() - start < 5
    # Other layers are other parts.
    edits = tuple(EntityEdits(f"e{n}", (ColumnEdit(Cell(n, 0)),)) for n in range(10_000))
    document["edits"] = [row for group in edits for row in _rows(group)]
    rows = json.dumps(document["edits"], sort_keys=True, separators=(",", ":"))
    document["edits_sha256"] = hashlib.sha256(rows.encode()).hexdigest()
    document["tensors"] = [row | {"name": f"t{n}", "layer": n, "part": "cells"} for n in range(10_000)]
    start = time.process_time()
    assert len(parse_manifest(json.dumps(document).encode()).tensors) == 10_000
    assert time.process_time() - start < 5


def _rows(group):
    return [
        {"entity": group.entity, "layer": edit.cell.layer, "neuron": edit.cell.neuron, "multiplier": -1.0}
        for edit in group.edits
    ]


def test_the_form_of_a_manifest_is_known_without_reading_it():
    content = manifest_bytes(example(previous=example(undo=None)))
    assert is_as_written(content)
    document = json.loads(content)
    for changed in (
        document | {"notes": "mine"},
        document | {"previous": document["previous"] | {"notes": "mine"}},
        document | {"tensors": [row | {"notes": "mine"} for row in document["tensors"]]},
        document | {"edits": [row | {"notes": "mine"} for row in document["edits"]]},
        document | {"written": [row | {"notes": "mine"} for row in document["written"]]},
        {key: value for key, value in document.items() if key != "undo"},
        [document],
    ):
        text = manifest_text(changed).encode()
        assert not is_as_written(text)
        with pytest.raises(VerificationError):
            parse_manifest(text)
    for same in (content + b" ", content[1:], json.dumps(document, indent=1).encode(), b"\xff" + content):
        assert not is_as_written(same)
    assert not is_as_written(b"[" * 100_000)
