"""What --force may replace, and what it must not."""

import contextlib
import hashlib
import json
import os
import sqlite3

import pytest

from amnesia.errors import OutputError
from amnesia.files.manifest_form import manifest_text, rows_hash
from amnesia.files.seals import PAGE_SEAL, report_seal, sealed_drawing, sealed_json, sealed_page
from amnesia.files.sqlite import database, remove_database
from amnesia.files.staging import MANIFEST_NAME, REPORT_KEYS, check_output, staged_output
from support.folders import tree

REPORT = json.dumps(dict.fromkeys(sorted(REPORT_KEYS)))
PAGE = sealed_page(f"<html><head>{report_seal(REPORT.encode())}{PAGE_SEAL}</head><p>Written by amnesia.</p></html>")
SWEEP = sealed_json({"figure": "sweep", "multipliers": [1.0, 0.5]}).decode()
DRAWN = sealed_drawing(b"<svg><!-- Created with Matplotlib --></svg>\n").decode()
DOCUMENT = {
    **dict.fromkeys("format_version tool libraries edits_sha256 undo left_out recipe scores previous".split()),
    "format": "safetensors",
    "base": {
        "id": "a/b",
        "revision": None,
        "files": [{"file": "model.safetensors", "size": 7, "sha256": "", "scope": "file"}],
    },
    "edits": [],
    "edits_sha256": rows_hash([]),
    "tensors": [],
    "untouched": [
        {"file": "config.json", "size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        {"file": "README.md", "size": 3, "sha256": hashlib.sha256(b"old").hexdigest()},
    ],
    "added": ["report.json"],
    "replaced": ["README.md"],
    "tensor_type": None,
    "in_place": False,
}


def manifest(**changes):
    return manifest_text(DOCUMENT | changes)


MANIFEST = manifest()
OUTPUT = {
    MANIFEST_NAME: MANIFEST,
    "model.safetensors": "weights",
    "config.json": "{}",
    "README.md": "a card",
    "amnesia-base/README.md": "old",
    "report.json": REPORT,
}
ADAPTER = {
    MANIFEST_NAME: manifest(format="adapter", added=["adapter_config.json"]),
    "adapter_config.json": "{}",
}


KNOWN = OUTPUT | {
    MANIFEST_NAME: manifest(
        written=[
            {"file": "README.md", "size": 6, "sha256": hashlib.sha256(b"a card").hexdigest()},
            {"file": "amnesia-base/README.md", "size": 3, "sha256": None},
            {"file": "report.json", "size": len(REPORT), "sha256": None},
        ]
    )
}


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def within(name, files):
    return {f"{name}/{key}": content for key, content in files.items()}


@pytest.mark.parametrize(
    "files",
    [
        OUTPUT,
        KNOWN,
        ADAPTER,
        within("safetensors", OUTPUT) | within("adapter", ADAPTER),
        {"report.json": REPORT, "report.html": PAGE},
        {"sweep.json": SWEEP},
        {"sweep.json": SWEEP, "sweep.svg": "", "sweep.png": ""},
        {"sweep.json": SWEEP, "sweep.svg": DRAWN, "sweep.png": DRAWN},
    ],
)
def test_outputs_are_replaced_with_force(tmp_path, files):
    output = fill(tmp_path / "out", files)
    with pytest.raises(OutputError, match=r"exists and is not empty: .* with --force \(in Python: force=True\)"):
        check_output(output, force=False)
    with pytest.raises(OutputError, match="is not empty: choose another output, or move it away yourself$"):
        check_output(output)
    with staged_output(output, force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in output.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config.json": "{}", "model.safetensors": ""}, "config.json"),
        ({MANIFEST_NAME: "{}"}, MANIFEST_NAME),
        ({MANIFEST_NAME: "{}", "thesis.docx": "years of work"}, "thesis.docx"),
        (OUTPUT | {"thesis.docx": "years of work"}, "thesis.docx"),
        (OUTPUT | {"amnesia-base/thesis.docx": "years of work"}, "amnesia-base/thesis.docx"),
        (OUTPUT | {".git/config": "years of work"}, ".git"),
        (OUTPUT | {"model.safetensors": "longer weights"}, "model.safetensors"),
        (OUTPUT | {"config.json": "[]"}, "config.json"),
        (OUTPUT | {"amnesia-base/README.md": "new"}, "amnesia-base/README.md"),
        (KNOWN | {"README.md": "a tome"}, "README.md"),
        (KNOWN | {"report.json": "my own"}, "report.json"),
        (KNOWN | {"amnesia-base/README.md": "new"}, "amnesia-base/README.md"),
        (KNOWN | {MANIFEST_NAME: KNOWN[MANIFEST_NAME].replace("report.json", "precious.txt", 1)}, "README.md was not"),
        (OUTPUT | {MANIFEST_NAME: manifest(in_place=True)}, "edited in place"),
        *(
            (OUTPUT | {MANIFEST_NAME: text}, f"{MANIFEST_NAME} was changed since amnesia wrote it")
            for text in (
                manifest(notes="hours of work"),
                manifest(previous=DOCUMENT | {"notes": "hours of work"}),
                manifest(base=DOCUMENT["base"] | {"notes": "hours of work"}),
                manifest(edits=[{"notes": "hours of work"}]),
                manifest(tensors=[{"notes": "hours of work"}]),
                manifest(untouched=[row | {"notes": "hours of work"} for row in DOCUMENT["untouched"]]),
                MANIFEST + "\n",
                json.dumps(DOCUMENT),
            )
        ),
        (OUTPUT | {MANIFEST_NAME: manifest(tensor_type="f16")}, "model.safetensors may be another file than amnesia"),
        ({"models/one/amnesia.json": "{}", "models/two/amnesia.json": "{}"}, "models"),
        (within("safetensors", OUTPUT) | {"thesis.tex": "years of work"}, "thesis.tex"),
        (within("safetensors", OUTPUT) | {"safetensors/x": ""}, "safetensors/x"),
        (within("safetensors", OUTPUT) | {"adapter/x": ""}, "adapter"),
        ({"report.json": "{}"}, "report.json"),
        ({"report.json": "[" * 100_000}, "report.json"),
        ({"report.json": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")}, "report.json"),
        ({"report.json": REPORT, "src/main.py": ""}, "src"),
        ({"report.json": REPORT, "plot.png": ""}, "plot.png"),
        ({"amnesia.json/x": ""}, "amnesia.json"),
        ({"report.json": json.dumps(json.loads(REPORT) | {"note": "mine"})}, "report.json was changed"),
        ({"report.json": REPORT}, "out has no report.html, which says how its report.json was written"),
        ({"report.json": REPORT, "report.html": "<html>mine</html>"}, "report.html was changed"),
        (
            {"report.json": REPORT, "report.html": PAGE.replace("</html>", "<h1>My notes</h1></html>")},
            "html was changed",
        ),
        ({"report.json": REPORT.replace("null", "1", 1), "report.html": PAGE}, "report.json was changed"),
        ({"sweep.json": SWEEP, "notes.txt": ""}, "notes.txt"),
        ({"sweep.json": SWEEP, "sweep.xlsx": ""}, "sweep.xlsx"),
        ({"sweep.json": SWEEP, "sweep.svg": "<svg>mine</svg>"}, "sweep.svg was changed"),
        (
            {"sweep.json": SWEEP, "sweep.svg": DRAWN.replace("</svg>", "<text>mine</text></svg>")},
            "sweep.svg was changed",
        ),
        ({"sweep.json": SWEEP, "sweep.svg": DRAWN, "sweep.png": "mine"}, "sweep.png was changed"),
        ({"sweep.json": SWEEP.replace("0.5", "0.6")}, "sweep.json was changed"),
        ({"sweep.json": SWEEP.replace("{", '{"note": "mine",')}, "sweep.json was changed"),
        ({"sweep.json": '{"figure": "sweep"}'}, "sweep.json was changed"),
        ({"sweep.json": '{"figure": "atlas"}'}, "sweep.json"),
        ({"sweep.json": "[]"}, "sweep.json"),
    ],
)
def test_other_folders_are_not_and_what_is_in_the_way_is_named(tmp_path, files, named):
    output = fill(tmp_path / "out", files)
    before = tree(tmp_path)
    for refused in (lambda: check_output(output, force=True), lambda: staged_output(output, force=True).__enter__()):
        with pytest.raises(OutputError, match=rf"{named}.*: --force \(in Python: force=True\) replaces only"):
            refused()
    assert tree(tmp_path) == before


def test_edited_weights_are_known_by_their_size_and_the_line_that_refuses_says_so(tmp_path):
    output = fill(tmp_path / "out", OUTPUT | {"model.safetensors": OUTPUT["model.safetensors"][::-1]})
    check_output(output, force=True)
    (output / "config.json").write_text("[]")
    with pytest.raises(OutputError, match=r"as they were written \(edited weights by their size\)"):
        check_output(output, force=True)


@pytest.mark.parametrize("name", ["model.safetensors", "report.json", "amnesia-base/README.md"])
def test_links_and_pipes_in_the_place_of_files_are_not_replaced(tmp_path, name):
    output = fill(tmp_path / "out", OUTPUT)
    (output / name).rename(tmp_path / "elsewhere")
    (output / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=name):
        check_output(output, force=True)
    (output / name).unlink()
    os.mkfifo(output / name)
    with pytest.raises(OutputError, match=name):
        check_output(output, force=True)


def test_what_came_while_the_work_went_on_is_not_replaced(tmp_path):
    output = fill(tmp_path / "out", OUTPUT)
    with pytest.raises(OutputError, match="notes.txt was not written by amnesia"):
        with staged_output(output, force=True) as folder:
            (folder / "new").touch()
            (output / "notes.txt").write_text("written meanwhile")
    assert tree(output) == {name: text.encode() for name, text in (OUTPUT | {"notes.txt": "written meanwhile"}).items()}
    with pytest.raises(OutputError, match="exists and is not empty"):
        with staged_output(tmp_path / "other") as folder:
            (folder / "new").touch()
            fill(tmp_path / "other", {"notes.txt": "written meanwhile"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_an_empty_folder_gives_way(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_output(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_new_folders_and_files_have_the_mode_that_the_user_has_chosen(tmp_path):
    old = os.umask(0o027)
    try:
        with staged_output(tmp_path / "out") as folder:
            (folder / "new").touch()
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "new").stat().st_mode & 0o777 == 0o640


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="was not written by amnesia"):
        check_output(tmp_path / "file", force=True)


def test_a_database_of_another_program_is_left_alone(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "theirs")) as theirs, theirs:
        theirs.execute("CREATE TABLE bookmarks (name TEXT)")
    (tmp_path / "text").write_text("x" * 2000)
    (tmp_path / "link").symlink_to("theirs")
    before = tree(tmp_path)
    for name in ("theirs", "text", "link"):
        with pytest.raises(OutputError, match=f"{name} cannot be used as a test"):
            with database(tmp_path / name, "CREATE TABLE IF NOT EXISTS ours (name TEXT);", "a test"):
                pass
        remove_database(tmp_path / name)
    assert tree(tmp_path) == before
    for _ in range(2):
        with database(tmp_path / "ours", "CREATE TABLE IF NOT EXISTS ours (name TEXT);", "a test") as ours, ours:
            ours.execute("INSERT INTO ours VALUES ('x')")
    remove_database(tmp_path / "ours")
    assert tree(tmp_path) == before
