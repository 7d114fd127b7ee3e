"""Imports point one way, and what needs no model loads no torch."""

import ast
import importlib
import json
import subprocess
import sys

import click
import pytest

from support.folders import ROOT

# A module may import from the rows above its own, never from its own row or from below.
ROWS = (
    "errors locks own_outputs progress vector",
    "packaged streams",
    "arithmetic database domain encoding figures files gguf_file hub_errors layouts modelfile neutral numerals packing relations scratch shards statistics stress_settings svg variants",
    "labels",
    "edits gguf_blocks gguf_codes matching measurement_cache model phrases popqa prompts recipe report_figures report_terms report_view scores strict_json",
    "edit_rows passes",
    "forward",
    "damage directions gguf_layout gguf_rounding harness html interventions journal loading manifest quantization questions relearning safetensors_file stress",
    "manifest_file plan",
    "residue",
    "checkpoint gguf_pieces localization measurement",
    "sources",
    "adapter atlas choice columns evaluation gguf_edit injection layer_significance mining remote resistance robustness sweep",
    "gguf_widen",
    "card examination findings gguf_verify saving stress_results sufficiency undo verification",
    "console in_place notebook proofs publication report stress_findings",
    "pipeline stress_report",
    "results",
    "assessment base_repo behaviour replay upload_plan",
    "hub",
    "cli_entities cli_files cli_hub cli_science",
    "cli",
    "__main__",
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names.split()}
# Modules, and packages, which count as one.
FILES = {path.stem: [path] for path in (ROOT / "amnesia").glob("*.py") if path.stem != "__init__"}
FILES |= {path.parent.name: sorted(path.parent.glob("*.py")) for path in (ROOT / "amnesia").glob("*/__init__.py")}
MODULES = sorted(FILES)
NO_TORCH = (
    "cli in_place manifest checkpoint adapter gguf_edit gguf_verify saving proofs sources undo verification recipe "
    "remote publication card hub upload_plan replay html"
)


def imported(path):
    """Modules of the package that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "amnesia":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amnesia."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "amnesia" for alias in node.names), path.name
    return found


def test_every_module_has_a_row():
    assert sorted(ROW_OF) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_upwards(name):
    others = {other for path in FILES[name] for other in imported(path)} - ({name} if len(FILES[name]) > 1 else set())
    wrong = {other for other in others if ROW_OF[other] >= ROW_OF[name]}
    assert not wrong


def loaded_by(code):
    command = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import amnesia",
        "from amnesia.cli import main\nmain(['--help'], standalone_mode=False)",
        "from amnesia.cli import main\nmain(['edit', '--help'], standalone_mode=False)",
        "\n".join(f"import amnesia.{name}" for name in NO_TORCH.split()),
    ],
    ids=["package", "help", "help of a command", "editing bytes"],
)
def test_no_heavy_library_is_loaded(code):
    assert not loaded_by(code) & {"torch", "transformers", "peft", "huggingface_hub", "accelerate"}


def test_a_command_loads_the_modules_of_others_only_when_they_are_asked_for():
    loaded = loaded_by("from amnesia.cli import main\nmain(['edit', '--help'], standalone_mode=False)")
    assert "amnesia.cli_files" in loaded
    assert not loaded & {"amnesia.cli_science", "amnesia.cli_hub", "amnesia.figures", "tomllib", "gguf"}


def test_every_command_is_found():
    defined = set()
    for path in sorted((ROOT / "amnesia").glob("cli*.py")):
        module = importlib.import_module(f"amnesia.{path.stem}")
        defined |= {name for name, value in vars(module).items() if type(value) is click.Command}
    main = importlib.import_module("amnesia.cli").main
    with click.Context(main) as context:
        assert set(main.list_commands(context)) == defined
        assert all(main.get_command(context, name).name == name for name in defined)


def test_the_python_interface_is_found_late():
    import amnesia
    from amnesia import notebook

    assert all(getattr(amnesia, name) is getattr(notebook, name) for name in amnesia.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'forget'"):
        amnesia.forget  # noqa: B018
