"""More than a thousand malformed inputs, or a tenth of them, each through the operation that a user would call on it.

Each must end in a clean error of one line, or in a result that is proven correct. Either way nothing outside of the
output may change, no temporary folder may stay behind, and what a header claims must not cost memory.
"""

import json
import random
import re
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError
from amnesia.files import journal
from amnesia.files.disk import JOURNAL_NAME
from amnesia.files.staging import MANIFEST_NAME
from amnesia.outputs import in_place
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.write import edits_from_file, save
from amnesia.recipe import load_recipe
from amnesia.sources.source import ModelSource
from amnesia.weights.edit_rows import edit_json
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf

# One block of a file, the tiny model and Python's own objects stay far below; a header that is believed does not.
MEMORY = 12 * 2**20
PARIS = EntityEdits("Paris", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), 0.3)))
ROME = EntityEdits("Rome", (ColumnEdit(Cell(1, 7), -1.7),))
EXPERT = EntityEdits("Paris", (ColumnEdit(Cell(1, 4, 2), 0.3), ColumnEdit(Cell(1, 4, 0))))
RECIPE = """
description = "what it is for"
[model]
id = "smollm2-135m"
revision = "main"
[entity]
name = "Japan"
aliases = ["Nippon", "Nihon"]
[localize]
baseline = "contrast"
n_prompts = 10
layers = "0-2"
[edit]
max_cells = 4
multiplier = "auto"
min_multiplier = -8.0
format = ["safetensors", "adapter"]
[[cells]]
layer = 1
neuron = 4
expert = 2
multiplier = -2.0
[[facts]]
prompt = "{entity} is"
answer = "big"
[[facts]]
prompt = "the flag of {entity} is"
answer = "white"
split = "held_out"
[[controls.facts]]
entity = "Peru"
prompt = "{entity} is"
answer = "high"
split = "search"
[scoring]
min_nats = 1.0
max_rank = 10
[accept]
max_target = 0.2
min_control = 0.95
"""


# --- How inputs are damaged -------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
STRINGS = (
    "",
    "x" * 5000,
    "../../outside",
    "/etc/passwd",
    "a\nb",
    "a\0b",
    "\ud800",
    "C:\\x",
    "NaN",
    "__metadata__",
    "é",
)
DEEP = "\x00deep\x00"
VALUES = (
    *NUMBERS, -1, True, False, None, -0.5, 1e308, float("nan"), float("inf"), 10**400, 10**5000,
    *STRINGS, [], {}, [[]], {"a": 1}, [None], list(range(3)), DEEP,
)  # fmt: skip


def raw(rng: random.Random, content: bytes, end: int) -> bytes:
    """One to three changes of the bytes before `end`."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, min(end, len(damaged))))
        match rng.randrange(7):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                number = max(0, min(2**64 - 1, rng.choice(NUMBERS) - rng.randrange(2)))
                damaged[place : place + 8] = struct.pack("<Q", number)
            case 2:
                damaged[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) & (2**32 - 1))
            case 3:
                del damaged[place : place + rng.randint(1, 40)]
            case 4:
                damaged[place:place] = rng.randbytes(rng.randint(1, 40))
            case 5:
                damaged[place:place] = damaged[place : place + rng.randint(1, 200)]
            case 6:
                del damaged[rng.choice([place, len(damaged) - 1]) :]
    return bytes(damaged)


def places_of(value: object) -> list[tuple[object, object]]:
    """Every (container, key) in a JSON value."""
    rows = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, item in rows for place in [(value, key), *places_of(item)]]


def to_json(value: object) -> bytes:
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 9000 + "]" * 9000)
    return text.encode("utf-8", "surrogatepass")


def dumped(rng: random.Random, document: object) -> bytes:
    """A JSON value with one to three values replaced, removed, renamed, repeated or exchanged."""
    import sys

    document = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        places = places_of(document)
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1 | 2:
                container[key] = rng.choice(VALUES)
            case 3:
                del container[key]
            case 4 if isinstance(container, dict):
                container[rng.choice(STRINGS)] = container.pop(key)
            case 4:
                container.insert(key, container[key])
            case 5:
                other, name = rng.choice(places)
                if name in range(len(other)) if isinstance(other, list) else name in other:
                    container[key] = json.loads(json.dumps(other[name]))
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        content = to_json(document)
    finally:
        sys.set_int_max_str_digits(limit)
    if rng.random() < 0.1 and b'"' in content:
        content = content.replace(b"{", b'{"same": 1, "same": 2, ', 1)
    return content


def json_file(rng: random.Random, content: bytes) -> bytes:
    """A damaged JSON file: mostly its values, sometimes its bytes."""
    return raw(rng, content, len(content)) if rng.random() < 0.3 else dumped(rng, json.loads(content))


def safetensors(rng: random.Random, content: bytes) -> bytes:
    """A damaged header: its bytes, or its values under a length that is right."""
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.4:
        return raw(rng, content, 8 + length)
    header = dumped(rng, json.loads(content[8 : 8 + length]))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def gguf(rng: random.Random, content: bytes) -> bytes:
    """A damaged header: anywhere, or in the numbers that follow a name (types, lengths, dimensions, offsets)."""
    end = len(content) - 2 * 12 * 256  # Well before the last tensors, beyond the header.
    names = [match.end() for match in re.finditer(rb"general\.\w+|llama\.\w+|blk\.\d\.ffn_\w+\.weight|split", content)]
    if rng.random() < 0.35:
        return raw(rng, content, min(names[-1] + 40, end))
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 2)):
        place = rng.choice(names) + 4 * rng.randrange(8)
        size = rng.choice((4, 8))
        number = max(0, min(2 ** (8 * size) - 1, rng.choice(NUMBERS) - rng.randrange(2)))
        damaged[place : place + size] = number.to_bytes(size, "little")
    return bytes(damaged)


def toml(rng: random.Random, content: bytes) -> bytes:
    """A damaged recipe: values replaced, lines removed, repeated or exchanged, or other bytes."""
    if rng.random() < 0.2:
        return raw(rng, content, len(content))
    lines = content.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0 | 1 if "=" in lines[place]:
                values = ["-1", "0", "1", "1e400", "nan", "inf", "9" * 5000, "true", '""', '"../x"', "[]", "[1, [2]]"]
                values += ["{}", "[[]]", '"{entity}"', "1979-05-27", '"' + "x" * 3000 + '"', '"\\u0000"', "[" * 3000]
                lines[place] = lines[place].split("=")[0] + "= " + rng.choice(values)
            case 0 | 1 | 2:
                del lines[place]
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 4:
                lines[place] = lines[place].replace(rng.choice("aeilnr"), rng.choice(["", "x", '"', "]", "\n", "é"]), 1)
        lines = lines or [""]
    return "\n".join(lines).encode()


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
    Kind("safetensors header", 200, model_file("model.safetensors"), safetensors, use_model),
    Kind(
        "safetensors header with experts",
        60,
        model_file("model.safetensors", "mixtral", fused=True),
        safetensors,
        lambda place: use_model(place, EXPERT),
    ),
    Kind("index", 100, model_file("model.safetensors.index.json", max_shard_size="40KB"), json_file, use_model),
    Kind("config", 80, model_file("config.json"), json_file, use_model),
    Kind(
        "config with experts",
        60,
        model_file("config.json", "qwen3_moe", moe_intermediate_size=16),
        json_file,
        lambda place: use_model(place, EXPERT),
    ),
    Kind("gguf", 200, gguf_file(), gguf, use_gguf),
    Kind("gguf with an alignment", 60, gguf_file(alignment=64), gguf, use_gguf),
    Kind("part of a gguf", 40, gguf_file(parts=3), gguf, use_gguf),
    Kind("manifest", 80, output_file(MANIFEST_NAME, "safetensors"), json_file, use_output),
    Kind("manifest of two edits", 40, output_file(MANIFEST_NAME, "safetensors", 2), json_file, use_output),
    Kind("manifest of a gguf", 60, output_file(MANIFEST_NAME, "gguf", 2), json_file, use_output),
    Kind(
        "manifest in place",
        40,
        in_place_file(
            MANIFEST_NAME, lambda folder: in_place.edit_in_place(folder, EditSpec((PARIS,), ModelRef("a/b")))
        ),
        json_file,
        use_undo_in_place,
        in_place=True,
    ),
    Kind("saved columns", 40, output_file("amnesia-undo.safetensors", "safetensors"), safetensors, use_output),
    Kind(
        "journal",
        100,
        in_place_file(JOURNAL_NAME, write_journal),
        lambda rng, content: raw(rng, content, len(content)),
        use_in_place,
        in_place=True,
    ),
    Kind("adapter weights", 60, output_file("adapter_model.safetensors", "adapter"), safetensors, use_adapter),
    Kind("adapter settings", 40, output_file("adapter_config.json", "adapter"), json_file, use_adapter),
    Kind("edit file", 100, text_file("edit.json", EDIT_FILE), json_file, use_edit_file),
    Kind("edit file of several entities", 60, text_file("edit.json", JOINT_FILE), json_file, use_edit_file),
    Kind("recipe", 200, text_file("recipe.toml", RECIPE), toml, use_recipe),
)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`; folders and links have no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def test_a_thousand_inputs():
    assert sum(kind.count for kind in KINDS) >= 1000


def some_of(kind: Kind) -> list[int]:
    """Numbers of a tenth of the inputs of a kind, the same in every run."""
    return sorted(random.Random(kind.name).sample(range(kind.count), max(8, kind.count // 10)))


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
