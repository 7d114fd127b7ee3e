"""`run --front` and `edit --pick`: more edits to choose from, and the choice stays what it is."""

import json
import shlex

import pytest

from amnesia.report.page import report_html
from support.allowed_harm import allow_harm
from support.commands import call, done, refused, succeed
from support.reports import check_report_json
from support.tiny_recipe import recipe_text


@pytest.fixture(scope="module", autouse=True)
def _harm():
    with pytest.MonkeyPatch.context() as patch:
        allow_harm(patch)
        yield


@pytest.fixture(scope="module")
def runs(_harm, live, model, tmp_path_factory):
    """The folder of one run with a front and of one without, of a recipe that leaves the choice to the program."""
    place = tmp_path_factory.mktemp("front")
    (place / "japan.toml").write_text(recipe_text(live, model, edit=""), encoding="utf-8")
    plain = succeed("run", place / "japan.toml", "-o", place / "plain")
    wide = succeed("run", place / "japan.toml", "-o", place / "wide", "--front", place / "front.json")
    return place, plain, wide


def edits_in(folder):
    rows = json.loads((folder / "amnesia.json").read_text())["edits"]
    return [{key: value for key, value in row.items() if key != "entity"} for row in rows]


@pytest.mark.slow
def test_a_front_changes_nothing_of_the_choice(runs):
    place, plain, wide = runs
    (chosen,) = (row for row in json.loads((place / "front.json").read_text())["front"] if row["chosen"])
    verified = done("verify", place / "wide")
    assert f"{chosen['n_columns']} column" in verified
    assert edits_in(place / "plain") == edits_in(place / "wide")
    first, second = (json.loads((place / name / "report.json").read_text()) for name in ("plain", "wide"))
    assert first["extraction"] | {"front": []} == second["extraction"] | {"front": []}
    assert len(second["extraction"]["front"]) > len(first["extraction"]["front"]) >= 1
    _, *more = (line for line in wide.stdout.splitlines() if "front.json" in line)
    (picked,) = (shlex.split(line.partition("#")[0]) for line in more)
    told = "\n".join(line for line in wide.stdout.splitlines() if line not in more)
    told = told.replace(f" and {place / 'front.json'}", "")
    assert plain.stdout.replace("plain", "wide").split() == told.split()
    # What is said of it can be done.
    number = next(n for n, row in enumerate(read_front(place), 1) if row["chosen"])
    assert f"{number} is the chosen one" in more[0]
    done(*[str(number) if word == "N" else word.replace("front-N", "picked") for word in picked[1:]])
    assert edits_in(place / "picked") == edits_in(place / "wide")
    assert "--pick N" in (place / "wide" / "report.html").read_text()


def read_front(place):
    return json.loads((place / "front.json").read_text())["front"]


@pytest.mark.slow
def test_candidates_are_told_as_they_are_measured(runs):
    _, plain, wide = runs
    told, more = ([line for line in run.stderr.splitlines() if line.startswith("candidate: ")] for run in (plain, wide))
    assert 1 <= len(told) < len(more)
    # Before them it is said, once, what they are.
    assert plain.stderr.count("tried by targets alone, is measured further on fewer columns") == 1
    assert plain.stderr.index("tried by targets alone") < plain.stderr.index("candidate: ")
    assert more[: len(told)] == told
    assert len(set(more)) == len(more)
    assert " of layer " in told[0] and "harm to text" in told[0]


@pytest.mark.slow
def test_no_edit_of_the_front_is_beaten_by_another(runs):
    place, *_ = runs
    rows = json.loads((place / "front.json").read_text())["front"]
    assert sum(row["chosen"] for row in rows) == 1
    numbers = [(row["target"], row["harm"], row["n_columns"]) for row in rows]
    for row, mine in zip(rows, numbers, strict=True):
        beaten = [other for other in numbers if other != mine and all(a <= b for a, b in zip(other, mine, strict=True))]
        assert not beaten or row["chosen"]
    assert [row["n_columns"] for row in rows] == sorted(row["n_columns"] for row in rows)
    shown = json.loads((place / "wide" / "report.json").read_text())
    assert shown["extraction"]["front"] == [{key: row[key] for key in row if key != "edits"} for row in rows]
    check_report_json(shown)
    assert 'id="front-wide-title"' in report_html(shown)


@pytest.mark.slow
def test_an_edit_is_picked_by_its_number(runs, model, tmp_path):
    place, *_ = runs
    rows = json.loads((place / "front.json").read_text())["front"]
    for number, row in enumerate(rows, 1):
        done("edit", model, "--edit", place / "front.json", "--pick", number, "-o", tmp_path / f"{number}")
        assert edits_in(tmp_path / f"{number}") == row["edits"]
        if row["chosen"]:
            assert row["edits"] == edits_in(place / "plain")
    n = len(rows)
    for options in ([], ["--pick", n + 1]):
        said = refused("edit", model, "--edit", place / "front.json", *options, "-o", tmp_path / "none")
        assert f"holds {n} edits to choose from" in said and not (tmp_path / "none").exists()
    assert "`amnesia edit --edit FILE --pick N`" in refused(
        "transfer", place / "front.json", model, "-o", tmp_path / "none"
    )
    one = json.dumps({"entity": "Japan", "edits": rows[0]["edits"]})
    (tmp_path / "one.json").write_text(one)
    assert "drop --pick" in refused(
        "edit", model, "--edit", tmp_path / "one.json", "--pick", 1, "-o", tmp_path / "none"
    )
    assert "drop it" in refused("edit", model, "--cell", "0:3", "--pick", 1, "-o", tmp_path / "none")


@pytest.mark.slow
def test_a_front_is_not_written_where_it_would_do_harm(runs, tmp_path):
    place, *_ = runs
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    recipe, out = place / "japan.toml", tmp_path / "out"
    assert "is no result of `amnesia run --front`" in refused(
        "run", recipe, "-o", out, "--front", tmp_path / "notes.json"
    )
    assert "lies in the output" in refused("run", recipe, "-o", out, "--front", out / "front.json")
    (tmp_path / "list.txt").write_text("Japan\n")
    many = refused(
        "run", "--entities", tmp_path / "list.txt", "--model", "m", "-o", out, "--front", tmp_path / "f.json"
    )
    assert "--front is for one entity" in many
    assert not out.exists()


def test_a_front_without_an_edit_says_so(model, tmp_path):
    (tmp_path / "front.json").write_text('{"entity": "Japan", "front": []}')
    result = call("edit", model, "--edit", tmp_path / "front.json", "--pick", 1, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "holds no edits" in result.stderr


def test_a_front_needs_something_to_choose(live, model, tmp_path):
    (tmp_path / "fixed.toml").write_text(recipe_text(live, model), encoding="utf-8")
    front = tmp_path / "front.json"
    line = refused("run", tmp_path / "fixed.toml", "-o", tmp_path / "out", "--front", front)
    assert "--front is for directions to choose from, and the recipe has [[cells]]" in line
    assert not front.exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_neighbors_that_are_found_have_scores_on_the_front(runs):
    place, *_ = runs
    shown = json.loads((place / "wide" / "report.json").read_text())["extraction"]
    (row,) = (row for row in shown["neighbors"] if row["name"] == "Bank of Japan")
    (chosen,) = (point for point in shown["front"] if point["chosen"])
    # The only one of them that an edit can tell from the name.
    assert chosen["neighbor"] == pytest.approx(row["score"]) and None not in {x["neighbor"] for x in shown["front"]}


@pytest.mark.slow
def test_cells_that_are_given_are_the_only_edit_tried(live, model, tmp_path):
    (tmp_path / "fixed.toml").write_text(recipe_text(live, model), encoding="utf-8")
    told = succeed("run", tmp_path / "fixed.toml", "-o", tmp_path / "out")
    assert "the only one tried" in told.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["extraction"]["candidates_tried"] == 1
    assert "the only one tried" in report_html(report)


@pytest.mark.slow
def test_a_front_is_written_over_an_older_one(runs, tmp_path):
    place, *_ = runs
    front = tmp_path / "front.json"
    front.write_bytes((place / "front.json").read_bytes())
    succeed("run", place / "japan.toml", "-o", tmp_path / "out", "--front", front)
    assert json.loads(front.read_text())["front"] == json.loads((place / "front.json").read_text())["front"]
