"""What is published verifies where it arrives, although names and reports in it are not those of the folder."""

import json

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.files.staging import REPORT_NAME, staged_output
from amnesia.hub.card import BaseCard
from amnesia.hub.contents import prepare
from amnesia.outputs.undo import undo
from amnesia.outputs.verify import verify
from amnesia.weights.checkpoint import add_file, open_source, write_edited
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.tiny import save_tiny, write_with


@pytest.mark.parametrize("with_own_report", [False, True])
def test_an_edit_on_top_of_one_that_has_a_report(tmp_path, with_own_report):
    source = save_tiny(tmp_path / "source")
    report = {
        "model": {"id": str(source)},
        "aggregates": [],
        "damage": {"neutral_perplexity": {"before": 20.0, "after": 20.1}},
        "n_excluded": 0,
        "prompts": [],
    }
    steps = (("one", "Paris", Cell(0, 3), True), ("two", "Rome", Cell(1, 7), with_own_report))
    for name, entity, cell, has_report in steps:
        opened = open_source(source if name == "one" else tmp_path / "one")
        with staged_output(tmp_path / name) as staging:
            manifest = write_with(write_edited, opened, [ColumnEdit(cell)], staging, entity=entity)
            if has_report:
                manifest = add_file(manifest, staging, REPORT_NAME, json.dumps(report).encode())
            write_manifest(manifest, staging)
    assert REPORT_NAME in {row.file for row in read_manifest(tmp_path / "two").untouched}
    publication = prepare(tmp_path / "two", "ada/edited", BaseCard(ModelRef("org/base")))
    for name, content in publication.files.items():
        target = tmp_path / "arrived" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    arrived = tmp_path / "arrived"
    assert json.loads((arrived / REPORT_NAME).read_bytes())["model"]["id"] == "org/base"
    assert verify(arrived).unproven == ()
    assert verify(arrived, source).n_cells == 2
    undo(arrived, tmp_path / "back", every_step=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()} == {
        path.name: path.read_bytes() for path in source.rglob("*") if path.is_file()
    }
