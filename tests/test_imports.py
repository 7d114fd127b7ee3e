"""Imports point down the floors of the house, none in a circle, and what needs no model loads no torch."""

import ast
import functools
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
# The rooms, and the modules that stand beside them, from the ground up: each imports only from the floors below.
FLOORS = (
    "errors numbers plain_text progress vector",
    "domain",
    "architectures edits files",
    "edit_checks",
    "guessing",
    "recipe weights",
    "facts sources",
    "recipe_file",
    "live outputs servers",
    "evaluation localization directions",
    "choice mining stress",
    "experiments probes",
    "api report trials",
    "compare hub pipeline record",
    "bench queue transfer ui",
    "cli",
    "__main__",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "amnesia").rglob("*.py"))
    if path.name != "__init__.py"
}
NO_TORCH = (
    "domain",
    "edits",
    "edit_checks",
    "recipe",
    "recipe_file",
    "files",
    "weights",
    "facts",
    "outputs",
    "servers",
    "hub",
    "record",
    "cli",
    "amnesia.report.page",
)
MAX_LINES = 400
MAX_BODY = 60  # Lines of a function without its signature and docstring.


def room_of(module):
    return module.split(".")[1]


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path):
    """Modules of the package that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "amnesia":
            names = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= names or {node.module}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "amnesia" for alias in node.names), path.name
    return found - {"amnesia"}


def test_every_room_has_a_floor():
    assert sorted(FLOOR) == sorted({room_of(module) for module in MODULES})


def test_imports_point_down():
    pairs = [(module, other) for module, path in MODULES.items() for other in imported(path)]
    assert len(pairs) > len(MODULES)
    between = [(one, other) for one, other in pairs if room_of(one) != room_of(other)]
    assert [(one, other) for one, other in between if FLOOR[room_of(other)] >= FLOOR[room_of(one)]] == []


def test_the_map_in_readme_has_all_rooms_each_above_what_it_imports():
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Develop")[2].split("```")[1]
    lines = [line.partition("  ")[0] for line in block.strip().splitlines()]
    height = {name.strip(" /").removesuffix(".py"): -row for row, line in enumerate(lines) for name in line.split(",")}
    assert sorted(height) == sorted(FLOOR.keys() - {"__main__"})
    for module in MODULES.keys() - {"amnesia.__main__"}:
        own, others = room_of(module), {room_of(other) for other in imported(MODULES[module])}
        assert not {other for other in others - {own} if height[other] >= height[own]}, module


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({module: imported(path) for module, path in MODULES.items()}).prepare()


def test_modules_are_short():
    n_lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: n for module, n in n_lines.items() if n > MAX_LINES} == {}


def test_files_of_tests_are_as_short():
    paths = (ROOT / "tests").rglob("*.py")
    n_lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert "tests/test_imports.py" in n_lines
    assert [name for name, n in n_lines.items() if n > MAX_LINES] == []


def test_functions_are_short():
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                assert body[-1].end_lineno - body[0].lineno < MAX_BODY, f"{module}: {node.name}"


def test_rooms_say_what_they_know_and_do_nothing():
    for path in (ROOT / "amnesia").rglob("*/__init__.py"):
        assert ast.get_docstring(tree(path)) and len(tree(path).body) == 1, path


def defined(path):
    """Names of the functions and classes of a module."""
    return {getattr(node, "name", None) for node in tree(path).body}


def test_rooms_are_described_in_a_few_lines_and_have_the_front_doors_that_they_name():
    for path in (ROOT / "amnesia").rglob("*/__init__.py"):
        text = ast.get_docstring(tree(path))
        assert 3 <= len(text.splitlines()) <= 6, path
        room = ".".join(path.parent.relative_to(ROOT).parts)
        doors = re.findall(r"`([^`]+)`", text.partition("Front door")[2])
        assert doors, path
        for module, name in (f"{room}.{door}".rsplit(".", 1) for door in doors):
            assert f"{module}.{name}" in MODULES or name in defined(MODULES[module]), f"{path}: {module}.{name}"


def loaded_by(code):
    command = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import amnesia",
        "from amnesia import load_recipe, resolve, save, undo, verify",
        "from amnesia.cli.main import main\nmain(['--help'], standalone_mode=False)",
        "from amnesia.cli.main import main\nmain(['edit', '--help'], standalone_mode=False)",
        "\n".join(f"import {module}" for module in MODULES if room_of(module) in NO_TORCH or module in NO_TORCH),
    ],
    ids=["package", "its functions on files", "help", "help of a command", "editing bytes"],
)
def test_no_heavy_library_is_loaded(code):
    assert not loaded_by(code) & {"torch", "transformers", "peft", "huggingface_hub", "accelerate"}


@pytest.mark.slow
def test_a_command_loads_the_modules_of_others_only_when_they_are_asked_for():
    loaded = loaded_by("from amnesia.cli.main import main\nmain(['edit', '--help'], standalone_mode=False)")
    assert "amnesia.cli.edit" in loaded
    assert not loaded & {
        "amnesia.cli.experiments",
        "amnesia.cli.publish",
        "amnesia.experiments.figures",
        "tomllib",
        "gguf",
    }


def test_every_command_is_found():
    defined = set()
    for module in (importlib.import_module(name) for name in MODULES if room_of(name) == "cli"):
        defined |= {name for name, value in vars(module).items() if type(value) is click.Command}
    main = importlib.import_module("amnesia.cli.main").main
    with click.Context(main) as context:
        assert set(main.list_commands(context)) == defined
        assert all(main.get_command(context, name).name == name for name in defined)


def test_the_python_interface_is_found_late():
    import amnesia

    assert set(amnesia.__all__) <= set(dir(amnesia))
    for name in amnesia.__all__:
        found = getattr(amnesia, name)
        assert found.__name__ == name and found.__module__.startswith("amnesia.")
        # A dataclass without one gets its signature.
        assert found.__doc__ and not found.__doc__.startswith(f"{name}("), name
    with pytest.raises(AttributeError, match="has no attribute 'forget'"):
        amnesia.forget  # noqa: B018


def test_all_that_python_offers_is_listed():
    import amnesia
    from amnesia import errors

    assert set(amnesia.__all__) == set(amnesia._HOME)
    own = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert own == {name for name in amnesia.__all__ if name.endswith("Error")}
    modules = {path.stem for path in (ROOT / "amnesia").iterdir()}
    assert not modules & set(amnesia.__all__), "importing a module would hide what has its name"
