"""The notebook runs as it is, cell by cell, in the folder in which it lies; its outputs are there and are short."""

import contextlib
import io
import json
import re

import pytest

from support.folders import ROOT

NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"
MAX_OUTPUT = 800  # Characters of one cell.
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def code_cells():
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_short_outputs_without_paths_of_a_machine():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        (output,) = cell["outputs"]
        said = "".join(output["text"])
        assert output["name"] == "stdout" and 0 < len(said) <= MAX_OUTPUT
        assert not any(part in said for part in ("/tmp", "/home", "/root", "/Users", "Traceback"))


@pytest.mark.real
@pytest.mark.exhaustive
def test_the_notebook_says_again_what_it_says(monkeypatch, tmp_path):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    space = {"__name__": "__main__"}
    for cell in code_cells():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile("".join(cell["source"]), f"cell {cell['execution_count']}", "exec"), space)
        written = "".join(cell["outputs"][0]["text"])
        # Numbers may differ in their last digits with the processor; what is said of them does not.
        assert NUMBER.sub("…", said.getvalue()) == NUMBER.sub("…", written)
        numbers = [list(map(float, NUMBER.findall(text))) for text in (said.getvalue(), written)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.05)
    assert space["found"].verdict == "strong"
    assert space["result"].mean("target", "held_out") < 0.4 < 0.9 < space["result"].mean("control", "held_out")
    assert all(space["same"])
