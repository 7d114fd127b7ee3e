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
from amnesia.cli.results import check_extraction, check_front, check_localization
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
    Screening(("pan", "Ja"), 0.0, (ScreenedPlace(1, 0, 2.5, None, False), ScreenedPlace(1, 1, 1.0, 0.4, True))),
    (FormResult("Nippon", "alias", 0.8, 0.5, 0.1),),
    (NeighborResult("Japan Airlines", 4, 0.97),),
    (FrontEdit(POINT, COLUMNS),),
)
CELLS = (CellScore(Cell(1, 4), -3.5, -3.0, 0.5),)
WRITTEN = {
    "localization": (check_localization, localization_json(
        Localization("m", "contrast", 100, 2, (0, 1), (EntityCells("Japan", CELLS), EntityCells("Peru", ())))
    )),
    "extraction": (check_extraction, extraction_json(EXTRACTION)),
    "extractions": (check_extraction, {"entities": [extraction_json(EXTRACTION), extraction_json(EXTRACTION)]}),
    "front": (check_front, front_json(EXTRACTION)),
}  # fmt: skip


def objects_in(value, path=()):
    """Paths to all objects of a document."""
    if isinstance(value, dict):
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects_in(item, (*path, key))


def changed(document, path, change):
    copy = json.loads(json_bytes(document))
    place = copy
    for key in path:
        place = place[key]
    change(place)
    return json_bytes(copy)


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_program_writes_is_replaced_and_what_differs_in_a_key_or_a_type_is_not(kind):
    check, document = WRITTEN[kind]
    check(PATH, json_bytes(document))
    optional = ("answers", "screening", "expert")
    paths = list(objects_in(document))
    assert () in paths
    for path in paths:
        with pytest.raises(OutputError, match="it has the unknown key 'author' in .*: choose another file, or remove"):
            check(PATH, changed(document, path, lambda row: row.update(author="me")))
        row = document
        for key in path:
            row = row[key]
        for key in row:
            with pytest.raises(OutputError, match="result.json exists, and is no result of amnesia as `amnesia "):
                check(PATH, changed(document, path, lambda row, key=key: row.update({key: {"mine": 1}})))
            if key not in optional:
                with pytest.raises(OutputError, match="result.json exists, and is no result of amnesia as `amnesia "):
                    check(PATH, changed(document, path, lambda row, key=key: row.pop(key)))


@pytest.mark.parametrize("check", [check_localization, check_extraction, check_front])
@pytest.mark.parametrize(
    "content",
    [
        "years of work",
        "{}",
        "[]",
        '{"name": "x"}',
        "[" * 100_000,
        '{"entities": ["Alice", "Bob"]}',
        '{"edits": [], "author": "me"}',
        '{"front": "page", "text": "mine"}',
        '{"entity": "x", "edits": []}',
    ],
)
def test_files_with_a_key_like_ours_are_not_replaced(check, content):
    with pytest.raises(OutputError, match="exists, and is no result of amnesia as `amnesia .*: choose another file"):
        check(PATH, content.encode())


def test_results_of_another_kind_are_not_replaced():
    kinds = {"localization": check_localization, "extraction": check_extraction, "front": check_front}
    for kind, (_, document) in WRITTEN.items():
        for other, check in kinds.items():
            if not kind.startswith(other):
                with pytest.raises(OutputError, match="is no result of amnesia as"):
                    check(PATH, json_bytes(document))


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
            assert "is no result of amnesia as" in refused(*command, mine)
            assert "has the name of manifests" in refused(*command, out / MANIFEST_NAME)
        assert tree(tmp_path) == before


def test_results_of_the_same_kind_are_replaced(model, live, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(recipe_text(live, model), encoding="utf-8")
    for command in (("extract", model, "--recipe", recipe), ("localize", model, "Japan", "--top", 3)):
        path = tmp_path / f"{command[0]}.json"
        succeed(*command, "-o", path)
        first = path.read_bytes()
        path.write_bytes(json_bytes(json.loads(first)))
        succeed(*command, "-o", path)
        assert path.read_bytes() == first
