"""`verify` accepts what was written and names the first thing that was tampered with."""

import json
from dataclasses import replace
from shutil import copyfile, copytree

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError, InputError, VerificationError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import edit_in_place
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.weights.adapter import CONFIG_NAME, WEIGHTS_NAME, write_adapter
from amnesia.weights.checkpoint import UNDO_NAME, open_source, write_edited
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support import commands
from support.checkpoints import tell_otherwise, write_output
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf

EDITS = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 47), 0.1), ColumnEdit(Cell(2, 0), -3.0))


def edit(source, output, edits=EDITS, entity="Paris", writer=write_edited, **options):
    added = {"README.md": b"card", "report.json": b"{}"} if writer is write_edited else {}
    return write_output(source, output, edits, writer, entity=entity, added=added, **options)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verification")
    source = save_tiny(folder / "source")
    edit(source, folder / "out")
    edit(source, folder / "adapter", writer=write_adapter)
    edit(folder / "out", folder / "second", [ColumnEdit(Cell(1, 1), -1.5)], "Rome")
    return folder


@pytest.fixture
def work(originals, tmp_path):
    """A copy that a test may damage."""
    return copytree(originals, tmp_path / "work")


def refused(folder, base, message):
    with pytest.raises(VerificationError, match=message) as caught:
        verify(folder, base)
    assert "\n" not in str(caught.value)


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def down_proj(folder, layer):
    weights = open_source(folder).weights
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    file = weights.location[name]
    return folder / file, weights.headers[file].tensors[name]


def test_accepts_what_was_written(originals):
    report = verify(originals / "out", originals / "source")
    assert (report.format, report.entity, report.n_cells, report.n_tensors) == ("safetensors", "Paris", 3, 2)
    assert report.base_read and report.unproven == ()
    names = [path for path in (originals / "source").rglob("*") if path.is_file()]
    assert report.n_files == len(names)
    assert report.n_bytes == sum(path.stat().st_size for path in names)
    alone = verify(originals / "out")
    assert not alone.base_read
    assert (alone.n_files, alone.n_bytes, alone.unproven) == (report.n_files, report.n_bytes, ())
    for base in (None, originals / "source"):
        adapter = verify(originals / "adapter", base)
        assert (adapter.format, adapter.n_cells, adapter.n_files) == ("adapter", 3, 2)


def test_accepts_a_chain_against_each_of_its_bases(originals):
    assert verify(originals / "second", originals / "source").n_cells == 4
    assert verify(originals / "second", originals / "out").n_cells == 1
    assert verify(originals / "second").n_cells == 4


def test_accepts_linked_outputs_and_overlaps(work):
    edit(work / "source", work / "linked", link=True)
    assert verify(work / "linked", work / "source").n_cells == 3
    alone = verify(work / "linked")
    touched = {row.file for row in read_manifest(work / "linked").base.files}
    names = {path.relative_to(work / "source").as_posix() for path in (work / "source").rglob("*") if path.is_file()}
    assert (alone.n_files, set(alone.unproven)) == (len(touched), names - touched)
    edit(work / "linked", work / "overlap", [ColumnEdit(Cell(2, 47), -1.7)], "Rome", allow_overlap=True)
    for base in (None, work / "source", work / "linked"):
        verify(work / "overlap", base)


@pytest.mark.parametrize("with_base", [True, False])
def test_names_the_column_that_differs(work, with_base):
    path, tensor = down_proj(work / "out", 0)
    flip(path, tensor.offset + 4 * (48 * 5 + 4))
    if with_base:
        refused(work / "out", work / "source", r"tensor model.layers.0.mlp.down_proj.weight, row 5, column 4")
    else:
        refused(work / "out", None, "tensor model.layers.0.mlp.down_proj.weight whose sha256")


@pytest.mark.parametrize("with_base", [True, False])
def test_notices_other_bytes_of_the_touched_shard(work, with_base):
    path, tensor = down_proj(work / "out", 0)
    flip(path, path.stat().st_size - 1 if tensor.offset + tensor.size < path.stat().st_size else tensor.offset - 1)
    with pytest.raises(AmnesiaError):
        verify(work / "out", work / "source" if with_base else None)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("name", ["LICENSE", "additional_chat_templates/short.jinja", "amnesia-base/README.md"])
def test_notices_other_files(work, name, with_base):
    flip(work / "out" / name, 3)
    refused(work / "out", work / "source" if with_base else None, f"{name} d(iffers|oes not become)")


def untouched_shard(folder):
    return next(folder / row.file for row in read_manifest(folder).untouched if row.file.startswith("model-"))


def test_notices_an_untouched_shard(work):
    shard = untouched_shard(work / "out")
    flip(shard, shard.stat().st_size - 1)
    refused(work / "out", work / "source", f"{shard.name} differs .* at tensor ")
    refused(work / "out", None, f"{shard.name} does not become the original .* bytes differ")


@pytest.mark.parametrize("fault", ["missing", "truncated", "longer"])
@pytest.mark.parametrize("link", [False, True])
def test_notices_files_of_another_size_without_the_base(work, fault, link):
    edit(work / "source", work / "new", link=link)
    edit(work / "new", work / "newer", [ColumnEdit(Cell(1, 1), -1.5)], "Rome", link=link)
    path = work / "newer" / "additional_chat_templates" / "short.jinja"
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(content[:-1] if fault == "truncated" else content + b"x")
    message = (
        "short.jinja is missing" if fault == "missing" else rf"short.jinja has \d+ bytes, .* declares {len(content)}"
    )
    refused(work / "newer", None, message)
    for every_step in (True, False):
        with pytest.raises(VerificationError, match=message):
            undo(work / "newer", work / "back", every_step=every_step)
        assert not (work / "back").exists()


def test_files_that_others_added_are_unproven(work):
    (work / "out" / "notes.txt").write_text("x")
    assert verify(work / "out").unproven == ("notes.txt",)


def test_files_that_no_copy_gets_stay_beside_a_model_that_is_edited_in_place(work):
    for name in ("modeling_x.py", "picture.png"):
        (work / "source" / name).write_bytes(b"x")
    copytree(work / "source", work / "edited")
    edit_in_place(work / "edited", EditSpec((EntityEdits("Paris", EDITS),), ModelRef("a/b")))
    assert verify(work / "edited", work / "source").n_files > 0


def test_notices_a_file_of_the_model_that_the_manifest_does_not_list(work):
    def forget(manifest):
        manifest["untouched"] = [row for row in manifest["untouched"] if row["file"] != "generation_config.json"]

    tell_otherwise(work / "out", forget)
    refused(work / "out", work / "source", "does not list generation_config.json")
    told = []
    undo(work / "out", work / "back", notice=told.append)
    assert not (work / "back" / "generation_config.json").exists()
    assert len(told) == 1 and told[0].startswith("generation_config.json of ")


def test_notices_missing_and_added_files(work):
    (work / "out" / "extra.txt").write_text("x")
    refused(work / "out", work / "source", "extra.txt")
    (work / "out" / "extra.txt").unlink()
    (work / "out" / "LICENSE").unlink()
    refused(work / "out", work / "source", "LICENSE is missing")
    (work / "second" / "report.json").unlink(missing_ok=True)
    (work / "second" / "amnesia-base" / "report.json").unlink()
    refused(work / "second", None, "report.json is missing")
    (work / "out" / UNDO_NAME).unlink()
    refused(work / "out", None, f"{UNDO_NAME} is missing")


def test_notices_an_undo_file_that_would_not_restore(work):
    flip(work / "out" / UNDO_NAME, (work / "out" / UNDO_NAME).stat().st_size - 1)
    refused(work / "out", work / "source", r"down_proj.weight, row 31, column 47: the output is damaged")
    refused(work / "out", None, "neuron 47 is not what the declared edit makes of its original")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(edits=m["edits"][:1]), "of layer 2, in which its edits change nothing"),
        (lambda m: m["edits"][0].update(neuron=4), "differs from|does not become the original|is not what"),
        (lambda m: m["edits"][1].update(multiplier=0.2), "differs from|is not what the declared edit makes"),
        (lambda m: m["edits"].append({"entity": "Rome", "layer": 1, "neuron": 0, "multiplier": -1.0}), "do not follow"),
        (lambda m: m.update(tensors=m["tensors"][:1]), "do not follow from its edits"),
        (lambda m: m["tensors"][0].update(layer=2), "do not follow"),
        (lambda m: m["tensors"][0].update(part="cells"), "do not follow"),
        (lambda m: m["tensors"][0].update(first=1), "do not follow"),
        (lambda m: m["tensors"][0].update(axis=0), "do not follow"),
        (lambda m: m["tensors"][0]["sha256"].update(after="0" * 64), "sha256"),
        (lambda m: m.update(undo=None), "does not invert exactly"),
        (lambda m: m["added"].append("NOTICE"), "NOTICE is missing"),
    ],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_manifests_that_do_not_tell_the_truth(work, change, message, with_base):
    tell_otherwise(work / "out", change)
    refused(work / "out", work / "source" if with_base else None, message)


@pytest.mark.parametrize("changes", [{"multiplier": 1.5}, {"multiplier": -1.0000000000000002}, {"entity": "Lyon"}])
@pytest.mark.parametrize("name", ["out", "adapter", "second"])
def test_edits_that_were_changed_since_are_noticed(work, name, changes):
    """Without the base nothing else tells the multiplier of an adapter's cell: its column of B is a product."""
    path = work / name / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    document["edits"][0].update(changes)
    path.write_text(json.dumps(document))
    refused(work / name, None, "has other edits than its edits_sha256 says")
    assert "has other edits" in commands.refused("verify", work / name)


def test_another_base_is_noticed(work):
    other = save_tiny(work / "other", seed=1)
    refused(work / "out", other, "would not give the original|differs")
    refused(
        work / "adapter",
        other,
        "is not the model that .*, which has another model.layers.0.mlp.*: give .* as it was then",
    )
    refused(work / "out", work / "second", "does not build on")
    refused(work / "adapter", work / "out", "not the model that the adapter was made for")


def test_a_folder_without_manifest_is_not_accepted(work):
    (work / "out" / MANIFEST_NAME).unlink()
    refused(work / "out", work / "source", "not a complete output")


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_notices_changed_adapters(work, with_base, name):
    base = work / "source" if with_base else None
    path = work / "adapter" / name
    content = path.read_bytes()
    for offset in (len(content) - 1, len(content) // 2, len(content) // 3):
        flip(path, offset)
        with pytest.raises(AmnesiaError):
            verify(work / "adapter", base)
        path.write_bytes(content)
    (work / "adapter" / "stray").touch()
    (work / "adapter" / "README.md").unlink()
    refused(work / "adapter", base, "disagree on the file stray")
    (work / "adapter" / "stray").unlink()
    path = work / "adapter" / WEIGHTS_NAME
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    refused(work / "adapter", base, "I32|differs")


def test_gguf_outputs_are_sent_elsewhere(work):
    write_manifest(replace(read_manifest(work / "out"), format="gguf"), work / "out")
    with pytest.raises(InputError, match="gguf file"):
        verify(work / "out")


def test_no_other_model_lies_beside_an_edited_gguf_but_where_it_is_edited_in_place(tmp_path):
    (tmp_path / "m").mkdir()
    source, out = write_gguf(tmp_path / "m" / "tiny.gguf"), tmp_path / "out"
    commands.done("edit", source, "--cell", "0:3", "-o", out)
    (out / "notes.txt").write_text("mine")
    commands.done("verify", out)
    for name in ("other.gguf", "old/model.bin"):
        (out / name).parent.mkdir(exist_ok=True)
        copyfile(source, out / name)
        for base in ((), ("--base", source)):
            line = commands.refused("verify", out, *base)
            assert f"{name} is no part of the output, and may hold weights that were not edited" in line
        (out / name).unlink()
    source.with_name("other.gguf").write_bytes(source.read_bytes()[:-1])
    commands.done("edit", source, "--cell", "0:3", "--in-place")
    commands.done("verify", source.parent)


@pytest.mark.parametrize("missing", ["tiny.gguf", "Modelfile"])
def test_nobody_is_told_to_remove_what_may_be_the_edited_weights_under_another_name(tmp_path, missing):
    (tmp_path / "m").mkdir()
    source, out = write_gguf(tmp_path / "m" / "tiny.gguf"), tmp_path / "out"
    commands.done("edit", source, "--cell", "0:3", "-o", out)
    (out / missing).rename(out / "other.gguf")
    line = commands.refused("verify", out)
    assert f"{out / missing} is missing, but amnesia.json declares it: put it back (other.gguf, which" in line
    assert "remove it" not in line
    (out / "other.gguf").rename(out / missing)
    commands.done("verify", out)


@pytest.mark.parametrize(
    ("architecture", "kind", "tensor", "accepted"),
    [
        ("clip", "mmproj", "mm.0.weight", True),
        ("clip", None, "v.blk.0.attn_q.weight", True),
        ("clip", "mmproj", "blk.0.ffn_down.weight", False),
        ("llama", "model", "mm.0.weight", False),
    ],
)
def test_a_projector_beside_an_edited_gguf_is_no_other_model(tmp_path, architecture, kind, tensor, accepted):
    (tmp_path / "m").mkdir()
    source, out = write_gguf(tmp_path / "m" / "tiny.gguf"), tmp_path / "out"
    commands.done("edit", source, "--cell", "0:3", "-o", out)
    writer = GGUFWriter(out / "mmproj-tiny.gguf", architecture)
    if kind is not None:
        writer.add_type(kind)
    writer.add_tensor(tensor, np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if accepted:
        commands.done("verify", out)
        commands.done("verify", out, "--base", source)
        (out / "mmproj-tiny.gguf").write_bytes((out / "mmproj-tiny.gguf").read_bytes()[:100])
    assert "mmproj-tiny.gguf is no part of the output" in commands.refused("verify", out)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_manifests_never_pass_for_another_edit(originals, data):
    """Whatever a manifest is turned into: a clean error, or a manifest that tells the same story."""
    path = originals / "adapter" / MANIFEST_NAME
    original = path.read_bytes()
    document = json.loads(original)
    numbers = [("edits", 0, "layer"), ("edits", 1, "neuron"), ("edits", 2, "multiplier"), ("tensors", 0, "axis")]
    numbers += [("tensors", 0, "layer")]
    keys = data.draw(st.sampled_from(numbers))
    place = document
    for key in keys[:-1]:
        place = place[key]
    value = data.draw(st.integers(-3, 60) | st.floats() | st.none() | st.text(max_size=3))
    place[keys[-1]] = value
    # 0 and 0.0 are equal, but a layer must be a whole number: what looks the same is accepted, what is equal may be.
    same, equal = json.dumps(json.loads(original)) == json.dumps(document), json.loads(original) == document

    def change(manifest):
        manifest.update(document)

    tell_otherwise(originals / "adapter", change)
    try:
        verify(originals / "adapter", originals / "source")
    except AmnesiaError as error:
        assert "\n" not in str(error)
        assert not same
    else:
        assert equal
    finally:
        path.write_bytes(original)
