"""More than three thousand malformed inputs, or a twentieth of them, each through the operation that a user would call on it.

Each must end in a clean error of one line, or in a result that is proven correct. Either way nothing outside of the
output may change, no temporary folder may stay behind, and what a header claims must not cost memory.
"""

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError
from amnesia.files import journal
from amnesia.files.companions import UNDO_NAME
from amnesia.files.disk import JOURNAL_NAME
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs import in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import edits_from_file, save
from amnesia.recipe_file import load_recipe
from amnesia.sources.source import ModelSource
from amnesia.weights.edit_rows import edit_json
from support.damage import gguf, json_file, raw, safetensors, toml
from support.gguf_edits import direction, tiny
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf
from support.tiny_recipe import EVERY_KEY

# One block of a file, the tiny model and Python's own objects stay far below; a header that is believed does not.
MEMORY = 12 * 2**20
PARIS = EntityEdits("Paris", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), 0.3)))
ROME = EntityEdits("Rome", (ColumnEdit(Cell(1, 7), -1.7),))
EXPERT = EntityEdits("Paris", (ColumnEdit(Cell(1, 4, 2), 0.3), ColumnEdit(Cell(1, 4, 0))))


def write_journal(folder: Path) -> None:
    """Leave `folder` as an edit in place does that is killed after all of its writes."""

    class KilledError(BaseException):
        pass

    settle, unlink = journal._settle, Path.unlink

    def killed(path: Path, *args: object, **options: object) -> None:
        if path.name == JOURNAL_NAME:
            raise KilledError
        unlink(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        # What a process does when it dies: nothing more.
        patch.setattr(journal, "_settle", lambda path: settle(path) if not (path / JOURNAL_NAME).exists() else False)
        with pytest.raises(KilledError):
            in_place.edit_in_place(folder, EditSpec((PARIS,), ModelRef("a/b")))


# --- What is done with them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """The folders of one kind of input: the model as it is, the file that is damaged, and where outputs go."""

    root: Path
    damaged: Path
    base: Path
    out: Path


def use_model(place: Attempt, group: EntityEdits = PARIS) -> None:
    """Edit the damaged model; what is accepted must be proven against it, and come back."""
    source = ModelSource(place.damaged.parent, ModelRef("a/b"))
    save("safetensors", source, [group], place.out)
    assert prove(place.out, source).n_cells == 2
    prove(place.out)
    take_back(place.out, place.out / "back")
    assert tree(place.out / "back") == tree(source.folder)
    if group is PARIS:
        save("adapter", source, [group], place.out / "adapter")
        assert prove(place.out / "adapter", source).n_cells == 2


def use_gguf(place: Attempt) -> None:
    source = ModelSource(place.damaged.parent, ModelRef("a/b"), gguf=place.damaged)
    save("gguf", source, [PARIS], place.out)
    assert prove(place.out, source).n_cells == 2
    take_back(place.out, place.out / "back")
    assert (place.out / "back" / place.damaged.name).read_bytes() == place.damaged.read_bytes()


def use_output(place: Attempt) -> None:
    """Verify and undo an output of which one file is damaged; what comes back must be the base's own bytes."""
    folder = place.damaged.parent
    errors = {}
    for name, operation in {
        "prove": lambda: prove(folder),
        "prove with the base": lambda: prove(folder, source_of(place.base)),
        "undo": lambda: take_back(folder, place.out, every_step=True),
    }.items():
        try:
            operation()
        except AmnesiaError as error:
            errors[name] = error
    original = tree(place.base)
    restored = tree(place.out)
    assert bool(restored) == ("undo" not in errors)
    assert all(original[name] == content for name, content in restored.items())
    for error in errors.values():
        raise error


def source_of(folder: Path) -> ModelSource:
    return ModelSource(folder, ModelRef("a/b"), gguf=next(iter(folder.glob("*.gguf")), None))


def use_adapter(place: Attempt) -> None:
    folder = place.damaged.parent
    # With the base every byte is compared, so that no damage is ever accepted.
    with pytest.raises(AmnesiaError) as caught:
        prove(folder, source_of(place.base))
    prove(folder)
    if place.damaged.name != MANIFEST_NAME:
        pytest.fail("a damaged adapter was accepted without the base")
    raise caught.value


def use_in_place(place: Attempt) -> None:
    """Take an interrupted edit back; what is accepted must be the folder from before the edit."""
    folder = place.damaged.parent
    before = tree(folder)
    try:
        journal.recover(folder)
    except AmnesiaError:
        assert tree(folder) == before
        raise
    assert tree(folder) == tree(place.base)


def use_undo_in_place(place: Attempt) -> None:
    folder = place.damaged.parent
    before = tree(folder)
    try:
        in_place.undo_in_place(folder)
    except AmnesiaError:
        assert tree(folder) == before
        raise
    original = tree(place.base)
    assert all(original[name] == content for name, content in tree(folder).items())


def use_edit_file(place: Attempt) -> None:
    groups = edits_from_file(place.damaged)
    assert groups and all(group.entity and group.edits for group in groups)
    save("safetensors", source_of(place.base), list(groups), place.out)
    prove(place.out, source_of(place.base))


def use_recipe(place: Attempt) -> None:
    recipe = load_recipe(place.damaged)
    assert recipe.facts and recipe.controls and recipe.edit.formats


# --- The kinds --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of input: how it is made in a folder (returns the file to damage and the base), damaged and used."""

    name: str
    count: int
    make: Callable[[Path], tuple[Path, Path]]
    damage: Callable[[random.Random, bytes], bytes]
    use: Callable[[Attempt], None]
    # The damaged folder itself is the output.
    in_place: bool = False


def model_file(name: str, model_type: str = "llama", **options: object) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        folder = save_tiny(root / "model", model_type, **{"max_shard_size": "1GB", "extras": ("a.txt",), **options})
        return folder / name, folder

    return make


def gguf_file(**options: object) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        (root / "model").mkdir()
        path = write_gguf(root / "model" / "tiny.gguf", **options)
        return path, path.parent

    return make


def output_file(name: str, form: str, steps: int = 1) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        _, base = (gguf_file() if form == "gguf" else model_file("config.json"))(root)
        folder = base
        for number, group in enumerate((PARIS, ROME)[:steps]):
            save(form, source_of(folder), [group], root / f"step{number}")
            folder = root / f"step{number}"
        return folder / name, base

    return make


def wider_file(name: str, tensor_type: str | None) -> Callable[[Path], tuple[Path, Path]]:
    """A file of a GGUF with a direction, whose tensor is stored in a wider type or in its own."""

    def make(root: Path) -> tuple[Path, Path]:
        path = tiny(root / "model" / "tiny.gguf")
        group = EntityEdits("Ada", (direction(0, (5, 40, 77)), ColumnEdit(Cell(1, 3))))
        save("gguf", source_of(path.parent), [group], root / "out of it", tensor_type=tensor_type)
        return root / "out of it" / name, path.parent

    return make


def in_place_file(name: str, prepare: Callable[[Path], object]) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        _, base = model_file("config.json")(root)
        shutil.copytree(base, root / "copy")
        prepare(root / "copy")
        return root / "copy" / name, base

    return make


def text_file(name: str, content: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        _, base = model_file("config.json")(root)
        (root / name).write_text(content, encoding="utf-8")
        return root / name, base

    return make


EDIT_FILE = json.dumps(
    {"entity": "Paris", "verdict": "strong", "edits": [edit_json(edit) for edit in PARIS.edits], "target": {}}
)
OTHER = {"entity": "Rome", "verdict": "strong", "edits": [{"layer": 2, "neuron": 5, "multiplier": -2.0}]}
JOINT_FILE = json.dumps({"entities": [json.loads(EDIT_FILE), OTHER]})
KINDS = (
    Kind("safetensors header", 400, model_file("model.safetensors"), safetensors, use_model),
    Kind(
        "safetensors header with experts",
        120,
        model_file("model.safetensors", "mixtral", fused=True),
        safetensors,
        lambda place: use_model(place, EXPERT),
    ),
    Kind("index", 200, model_file("model.safetensors.index.json", max_shard_size="40KB"), json_file, use_model),
    Kind("config", 160, model_file("config.json"), json_file, use_model),
    Kind(
        "config with experts",
        120,
        model_file("config.json", "qwen3_moe", moe_intermediate_size=16),
        json_file,
        lambda place: use_model(place, EXPERT),
    ),
    Kind("gguf", 400, gguf_file(), gguf, use_gguf),
    Kind("gguf with an alignment", 120, gguf_file(alignment=64), gguf, use_gguf),
    Kind("part of a gguf", 80, gguf_file(parts=3), gguf, use_gguf),
    Kind("manifest", 160, output_file(MANIFEST_NAME, "safetensors"), json_file, use_output),
    Kind("manifest of two edits", 80, output_file(MANIFEST_NAME, "safetensors", 2), json_file, use_output),
    Kind("manifest of a gguf", 120, output_file(MANIFEST_NAME, "gguf", 2), json_file, use_output),
    Kind(
        "manifest in place",
        80,
        in_place_file(
            MANIFEST_NAME, lambda folder: in_place.edit_in_place(folder, EditSpec((PARIS,), ModelRef("a/b")))
        ),
        json_file,
        use_undo_in_place,
        in_place=True,
    ),
    Kind("manifest of directions", 100, wider_file(MANIFEST_NAME, None), json_file, use_output),
    Kind("manifest of a wider gguf", 100, wider_file(MANIFEST_NAME, "q8_0"), json_file, use_output),
    Kind("saved tensors of a wider gguf", 100, wider_file(UNDO_NAME, "f16"), safetensors, use_output),
    Kind("saved columns", 80, output_file(UNDO_NAME, "safetensors"), safetensors, use_output),
    Kind(
        "journal",
        200,
        in_place_file(JOURNAL_NAME, write_journal),
        lambda rng, content: raw(rng, content, len(content)),
        use_in_place,
        in_place=True,
    ),
    Kind("adapter weights", 120, output_file("adapter_model.safetensors", "adapter"), safetensors, use_adapter),
    Kind("adapter settings", 80, output_file("adapter_config.json", "adapter"), json_file, use_adapter),
    Kind("edit file", 200, text_file("edit.json", EDIT_FILE), json_file, use_edit_file),
    Kind("edit file of several entities", 120, text_file("edit.json", JOINT_FILE), json_file, use_edit_file),
    Kind("recipe", 400, text_file("recipe.toml", EVERY_KEY), toml, use_recipe),
)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`; folders and links have no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def test_three_thousand_inputs():
    assert sum(kind.count for kind in KINDS) >= 3000


def some_of(kind: Kind) -> list[int]:
    """Numbers of a twentieth of the inputs of a kind, the same in every run."""
    return sorted(random.Random(kind.name).sample(range(kind.count), max(8, kind.count // 20)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_sample_of_malformed_inputs(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_inputs(kind, some_of(kind), tmp_path, monkeypatch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_malformed_inputs(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_inputs(kind, range(kind.count), tmp_path, monkeypatch)


def check_inputs(kind: Kind, numbers: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "outside").write_text("of no concern to anyone")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    damaged, base = kind.make(tmp_path)
    intact = damaged.read_bytes()
    place = Attempt(tmp_path, damaged, shutil.copytree(base, tmp_path / "base"), tmp_path / "out" / "model")
    place.out.parent.mkdir()
    original = tree(damaged.parent)
    refused = 0
    for number in numbers:
        rng = random.Random(f"{kind.name} {number}")
        content = kind.damage(rng, intact)
        while content == intact:
            content = kind.damage(rng, intact)
        damaged.write_bytes(content)
        before = tree(tmp_path)
        tracemalloc.start()
        try:
            kind.use(place)
        except AmnesiaError as error:
            refused += 1
            assert "\n" not in str(error) and 0 < len(str(error)) < 2000, number
        except BaseException as error:
            error.add_note(f"input {number} of kind {kind.name!r}")
            raise
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY, number
        after = tree(tmp_path)
        inside = (str(damaged.parent.relative_to(tmp_path)) if kind.in_place else "out") + "/"
        for names in (before, after):
            for name in [name for name in names if name.startswith(inside)]:
                del names[name]
        before.pop("out", None)
        after.pop("out", None)
        assert before == after, number
        assert {path.name for path in place.out.parent.iterdir()} <= {"model"}, number
        shutil.rmtree(place.out.parent)
        place.out.parent.mkdir()
        if kind.in_place:
            shutil.rmtree(damaged.parent)
            for name, content in original.items():
                path = damaged.parent / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content or b"")
        else:
            damaged.write_bytes(intact)
    # Most damage is noticed; a kind of which everything were accepted would test nothing.
    assert refused > len(numbers) // 4
