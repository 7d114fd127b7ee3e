"""Results replace older results of the same kind, and nothing else that has a similar key."""

import json
from pathlib import Path

import pytest

from amnesia.choice.results import (
    AnswerCounts,
    Answers,
    Extraction,
    FormResult,
    FrontEdit,
    FrontPoint,
    NeighborResult,
    ScreenedPlace,
    Screening,
)
from amnesia.cli.results import replacing, result_bytes
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import OutputError
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.strict_json import json_bytes
from amnesia.localization.results import CellScore, EntityCells, Localization
from amnesia.report.document import extraction_json, front_json, localization_json
from support.commands import done, refused, succeed
from support.folders import tree
from support.tiny_recipe import recipe_text

PATH = Path("result.json")
COLUMNS = (ColumnEdit(Cell(1, 4), 0.3), ColumnEdit(Cell(0, 3, 2), -1.0))
POINT = FrontPoint(2, 0.1, 0.9, 0.8, 0.05, True)
EXTRACTION = Extraction(
    EntityEdits("Japan", COLUMNS),
    "strong",
    0.1,
    0.9,
    7,
    Answers(-2.0, 2.0, (AnswerCounts(1, 0, "names", 3, 0.1, 0.4, (1, 2)),)),
    Screening(
        ("pan", "Ja"), 0.0, (ScreenedPlace(1, 0, 2.5, None, False), ScreenedPlace(1, 1, 1.0, 0.4, True)), "layer"
    ),
    (FormResult("Nippon", "alias", 0.8, 0.5, 0.1),),
    (NeighborResult("Japan Airlines", 4, 0.97),),
    (FrontEdit(POINT, COLUMNS),),
)
CELLS = (CellScore(Cell(1, 4), -3.5, -3.0, 0.5),)
WRITTEN = {
    "localize -o": localization_json(
        Localization("m", "contrast", 100, 2, (0, 1), (EntityCells("Japan", CELLS), EntityCells("Peru", ())))
    ),
    "extract -o": extraction_json(EXTRACTION),
    "run --front": front_json(EXTRACTION),
}


@pytest.mark.parametrize("command", WRITTEN)
def test_what_the_program_writes_is_replaced_and_what_was_changed_since_is_not(command):
    check, content = replacing(command), result_bytes(command, WRITTEN[command])
    assert {**json.loads(content), "sha256": None} == {"command": command, **as_json(WRITTEN[command]), "sha256": None}
    check(PATH, content)
    document = json.loads(content)
    changes = [{**document, "author": "me"}, {**document, "sha256": "0" * 64}, as_json(WRITTEN[command])]
    changes += [{**document, key: None} for key in document]
    for change in changes:
        with pytest.raises(OutputError, match="result.json exists, and is no result of `amnesia .* as it was written"):
            check(PATH, json_bytes(change))
    with pytest.raises(OutputError, match="choose another file, or remove it"):
        check(PATH, content + b" ")


def as_json(document):
    return json.loads(json_bytes(document))


@pytest.mark.parametrize("command", WRITTEN)
@pytest.mark.parametrize(
    "content", ["years of work", "{}", "[]", '{"name": "x"}', "[" * 100_000, '{"command": "extract -o", "edits": []}']
)
def test_other_files_are_not_replaced(command, content):
    with pytest.raises(OutputError, match="exists, and is no result of `amnesia .*: choose another file"):
        replacing(command)(PATH, content.encode())


def test_results_of_another_kind_are_not_replaced():
    for command, document in WRITTEN.items():
        for other in WRITTEN.keys() - {command}:
            with pytest.raises(OutputError, match=f"is no result of `amnesia {other}`"):
                replacing(other)(PATH, result_bytes(command, document))


def test_no_result_is_written_over_a_manifest_or_a_file_of_the_user(model, live, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(recipe_text(live, model), encoding="utf-8")
    out = tmp_path / "out"
    done("edit", model, "--cell", "1:4", "--multiplier", 0.3, "-o", out)
    mine = tmp_path / "mine.json"
    for content in ('{"entities": ["Alice"]}', '{"edits": [], "author": "me"}', '{"front": "page", "text": "mine"}'):
        mine.write_text(content)
        before = tree(tmp_path)
        for command in (
            ("extract", model, "--recipe", recipe, "-o"),
            ("localize", model, "Japan", "-o"),
            ("run", recipe, "-o", tmp_path / "run", "--front"),
        ):
            assert "is no result of `amnesia " in refused(*command, mine)
            assert "has the name of manifests" in refused(*command, out / MANIFEST_NAME)
        assert tree(tmp_path) == before


@pytest.mark.slow
def test_results_of_the_same_kind_are_replaced(model, live, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(recipe_text(live, model), encoding="utf-8")
    for command in (("extract", model, "--recipe", recipe), ("localize", model, "Japan", "--top", 3)):
        path = tmp_path / f"{command[0]}.json"
        succeed(*command, "-o", path)
        first = path.read_bytes()
        succeed(*command, "-o", path)
        assert path.read_bytes() == first
