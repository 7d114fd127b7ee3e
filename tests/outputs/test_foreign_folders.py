"""Whatever lies beside a model, in it, and where the output goes: nothing but the output changes, and all in it is listed."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from support.commands import done, refused
from support.tiny import save_tiny

PARIS = EntityEdits("Paris", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), 0.3)))
# Names that this package, the Hub, trainers or people give to files, in folders that are there and in new ones.
NAMES = st.sampled_from(
    """
    amnesia.json .amnesia-journal .amnesia-journal-partial .amnesia-journal-old amnesia-undo.safetensors
    amnesia-base/amnesia.json amnesia-base/README.md amnesia-base/thesis.docx report.json report.html Modelfile
    .out.amnesia-partial .out.amnesia-old .out.amnesia-measured .amnesia-0123456789abcdef .amnesia-0123456789abcdef/new
    .amnesia-0123456789abcdef/mark thesis.docx .env notes/plan.txt LICENSE NOTICE README.md chat_template.jinja
    tokenizer.model tokenizer.json model.safetensors model-00001-of-00009.safetensors model.ckpt optimizer.pt
    adapter_config.json adapter_model.safetensors checkpoint-5/model.safetensors .git/config .cache/x safetensors/x
    """.split()
)
KINDS = ("text", "weights", "link", "link to a folder", "broken link", "pipe", "folder")
ENTRIES = st.lists(st.tuples(NAMES, st.sampled_from(KINDS)), max_size=4, unique_by=lambda entry: entry[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "model", extras=("README.md", "LICENSE"))


def put(folder, entries, precious, weights):
    """Fill a folder with foreign things, where nothing is in their way."""
    for name, kind in entries:
        path = folder / name
        if os.path.lexists(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # A file has the name of the folder.
        match kind:
            case "text":
                path.write_text(f"{name} is mine\n")
            case "weights":
                path.write_bytes(weights)
            case "link":
                path.symlink_to(precious / "file")
            case "link to a folder":
                path.symlink_to(precious)
            case "broken link":
                path.symlink_to(precious / "missing")
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()


def state(root):
    """Everything below a folder: name → kind, and bytes or what a link says."""
    found = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        content = str(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        found[path.relative_to(root).as_posix()] = (stat.S_IFMT(mode), content)
    return found


def outside(found, name):
    return {key: value for key, value in found.items() if key != name and not key.startswith(f"{name}/")}


def declared(folder):
    """The files that a manifest lists, by its JSON alone."""
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    copied = [] if manifest["format"] == "adapter" else [*manifest["base"]["files"], *manifest["untouched"]]
    kept = [f"amnesia-base/{name}" for name in manifest["replaced"]]
    return {MANIFEST_NAME, *(row["file"] for row in copied), *manifest["added"], *kept}


def source(root):
    return ModelSource(root / "model", ModelRef("a/b"))


def spec():
    return EditSpec((PARIS,), ModelRef("a/b"))


OPERATIONS = {
    "copy": lambda root, force: save("safetensors", source(root), [PARIS], root / "out", force=force),
    "link": lambda root, force: save("safetensors", source(root), [PARIS], root / "out", force=force, link=True),
    "adapter": lambda root, force: save("adapter", source(root), [PARIS], root / "out", force=force),
    "undo": lambda root, force: take_back(root / "model", root / "out", force=force),
    "verify": lambda root, force: prove(root / "model"),
    "edit in place": lambda root, force: edit_in_place(root / "model", spec()),
    "undo in place": lambda root, force: undo_in_place(root / "model"),
}


@pytest.mark.slow
@given(
    operation=st.sampled_from(list(OPERATIONS)),
    beside=ENTRIES,
    inside=ENTRIES,
    there=ENTRIES,
    older=st.sampled_from([None, "output", "in place"]),
    force=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_outside_the_output_changes_and_the_output_holds_what_it_declares(
    tmp_path_factory, model, operation, beside, inside, there, older, force
):
    root = tmp_path_factory.mktemp("place")
    precious = root / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    shard = next(path for path in sorted(model.glob("*.safetensors")) if b"layers.0.mlp.down_proj" in path.read_bytes())
    weights = shard.read_bytes()
    shutil.copytree(model, root / "model")
    if operation in ("undo", "verify", "undo in place"):
        edit_in_place(root / "model", spec())
    if older == "output":
        save("safetensors", ModelSource(model, ModelRef("a/b")), [PARIS], root / "out")
    elif older == "in place":
        shutil.copytree(model, root / "out")
        edit_in_place(root / "out", spec())
    for folder, entries in ((root, beside), (root / "model", inside), (root / "out", there)):
        put(folder, entries, precious, weights)
    before = state(root)
    try:
        OPERATIONS[operation](root, force)
    except AmnesiaError as error:
        assert "\n" not in str(error)
        assert state(root) == before
        return
    after = state(root)
    in_place = operation.endswith("in place")
    changed = "model" if in_place else "out" if operation != "verify" else "nothing"
    assert outside(after, changed) == outside(before, changed)
    if changed == "out":
        assert older is None or (force and older == "output" and not there)
        found = {key.removeprefix("out/"): value for key, value in after.items() if key.startswith("out/")}
        files = {name for name, (kind, _) in found.items() if not stat.S_ISDIR(kind)}
        assert all(stat.S_ISREG(kind) or stat.S_ISDIR(kind) for kind, _ in found.values())
        if operation == "undo":
            assert files == {path.relative_to(model).as_posix() for path in model.rglob("*")}
            assert all((model / name).read_bytes() == found[name][1] for name in files)
        else:
            assert files == declared(root / "out")
            assert weights not in [content for _, content in found.values()]
            assert not any(content == "precious" for _, content in found.values())
            prove(root / "out")
    if in_place:
        for name, value in outside(before, "nothing").items():
            path = Path(name)
            if (
                path.parts[0] == "model"
                and not path.name.startswith(("amnesia", "model-"))
                and "amnesia-base" not in name
            ):
                assert after.get(name) == value, name


@pytest.mark.parametrize("link", [".out.amnesia-partial", ".out.amnesia-old"])
def test_links_beside_an_output_lead_nobody_anywhere(tmp_path, model, link):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "amnesia.json").write_text("precious")
    (tmp_path / link).symlink_to("precious")
    done("edit", model, "--cell", "1:4", "-o", tmp_path / "out")
    done("edit", model, "--cell", "1:5", "-o", tmp_path / "out", "--force")
    assert (tmp_path / "precious" / "amnesia.json").read_text() == "precious"
    assert (tmp_path / link).is_symlink()
    assert not (tmp_path / "out").is_symlink()


def test_a_folder_with_something_else_in_it_is_refused_by_name(tmp_path, model):
    done("edit", model, "--cell", "1:4", "-o", tmp_path / "out")
    (tmp_path / "out" / "thesis.docx").write_text("years of work")
    before = state(tmp_path)
    assert "thesis.docx was not written by amnesia" in refused(
        "edit", model, "--cell", "1:4", "-o", tmp_path / "out", "--force"
    )
    assert state(tmp_path) == before


def test_a_link_out_of_the_model_is_refused_by_name(tmp_path, model):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "m" / "NOTICE").symlink_to("../secret")
    assert f"{tmp_path}/m/NOTICE is a link to {tmp_path}/secret" in refused(
        "edit", tmp_path / "m", "--cell", "1:4", "-o", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_an_adapter_beside_the_weights_is_left_out_with_a_word_and_never_accepted_in_an_output(tmp_path, model):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refused("edit", tmp_path / "m", "--cell", "1:4", "--in-place")
    done("edit", tmp_path / "m", "--cell", "1:4", "-o", tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert json.loads((tmp_path / "out" / MANIFEST_NAME).read_bytes())["left_out"] == ["adapter_config.json"]
    done("verify", tmp_path / "out")
    done("verify", tmp_path / "out", "--base", tmp_path / "m")
    for name in ("adapter_config.json", "model.ckpt", "optimizer.pt"):
        (tmp_path / "out" / name).write_text("{}")
        for base in ((), ("--base", tmp_path / "m")):
            assert f"{name} is no part of the output" in refused("verify", tmp_path / "out", *base)
        (tmp_path / "out" / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("content", ["pipe", "sparse"])
def test_commands_that_read_neither_wait_nor_run_out_of_memory(tmp_path, model, content):
    done("edit", model, "--cell", "1:4", "-o", tmp_path / "out")
    for name in (MANIFEST_NAME, ".amnesia-journal", "config.json"):
        folder = tmp_path / f"copy of {name}"
        shutil.copytree(tmp_path / "out", folder)
        (folder / name).unlink(missing_ok=True)
        if content == "pipe":
            os.mkfifo(folder / name)
        else:
            with (folder / name).open("wb") as file:
                file.truncate(2**38)
        refused("verify", folder)
        refused("undo", folder, "-o", tmp_path / "back")
        refused("replay", folder / MANIFEST_NAME, "-o", tmp_path / "again") if name == MANIFEST_NAME else None
        refused("undo", folder, "--in-place") if name != "config.json" else None
        refused("edit", folder, "--cell", "1:5", "--in-place")
        refused("edit", folder, "--cell", "1:5", "-o", tmp_path / "again")
        refused("edit", model, "--edit", folder / name, "-o", tmp_path / "again")
        refused("extract", "--recipe", folder / name)
        refused("localize", folder, "Paris")
        refused("localize", model, "Paris", "--prompts", folder / name)
        refused("run", "--model", model, "--entity", "x", "--popqa", folder / name, "-o", tmp_path / "again")
    assert not (tmp_path / "again").exists() and not (tmp_path / "back").exists()
