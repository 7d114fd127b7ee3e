"""What --force may replace, and what it must not."""

import json

import pytest

from amnesia.domain import FORMATS
from amnesia.errors import OutputError
from amnesia.files.staging import FORMAT_FOLDERS, MANIFEST_NAME, check_output, is_own, staged_output

REPORT = json.dumps({"aggregates": [], "neutral_perplexity": {}, "prompts": []})


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_every_format_has_its_folder():
    assert frozenset(FORMATS) == FORMAT_FOLDERS


@pytest.mark.parametrize(
    "files",
    [
        {MANIFEST_NAME: "{}", "model.safetensors": ""},
        {"safetensors/amnesia.json": "{}", "adapter/amnesia.json": "{}"},
        {"report.json": REPORT},
        {"report.json": REPORT, "plot.png": ""},
        {"sweep.json": '{"figure": "sweep"}', "sweep.svg": "", "sweep.png": ""},
    ],
)
def test_outputs_are_replaced_with_force(tmp_path, files):
    output = fill(tmp_path / "out", files)
    assert is_own(output)
    with pytest.raises(OutputError, match=r"exists and is not empty: .* with --force \(in Python: force=True\)"):
        check_output(output)
    with staged_output(output, force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in output.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}", "model.safetensors": ""},
        {"models/one/amnesia.json": "{}", "models/two/amnesia.json": "{}"},
        {"safetensors/amnesia.json": "{}", "thesis.tex": "years of work"},
        {"safetensors/amnesia.json": "{}", "adapter/x": ""},
        {"report.json": "{}"},
        {"report.json": "[" * 100_000},
        {"report.json": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")},
        {"report.json": REPORT, "src/main.py": ""},
        {"amnesia.json/x": ""},
        {"sweep.json": '{"figure": "sweep"}', "notes.txt": ""},
        {"sweep.json": '{"figure": "atlas"}'},
        {"sweep.json": "[]"},
    ],
)
def test_other_folders_are_not(tmp_path, files):
    output = fill(tmp_path / "out", files)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not is_own(output)
    for refused in (lambda: check_output(output, force=True), lambda: staged_output(output, force=True).__enter__()):
        with pytest.raises(
            OutputError, match=r"was not written by amnesia: --force \(in Python: force=True\) replaces only"
        ):
            refused()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="was not written by amnesia"):
        check_output(tmp_path / "file", force=True)
