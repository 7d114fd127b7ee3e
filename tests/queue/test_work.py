"""A queue of entities on a tiny model: what is written, what goes on after a kill, and who does what."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia.choice.joint import combined
from amnesia.choice.known import Scores
from amnesia.choice.neighbors import facts_about, neighbor_results
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, OutputError
from amnesia.facts import ability
from amnesia.live.loading import load
from amnesia.numbers import signed
from amnesia.outputs.commands import undo, verify
from amnesia.outputs.write import edits_from_file
from amnesia.queue import work
from amnesia.queue.listed import read_list
from amnesia.queue.summary import summary_text
from amnesia.queue.work import run_queue
from amnesia.recipe_file import load_recipe, parse_recipe
from amnesia.record.making import make_record
from amnesia.record.page import record_html
from amnesia.report.page import summary_html
from amnesia.weights.manifest_file import read_manifest
from support.commands import call, in_process, refused
from support.folders import ROOT, telling, tree
from support.queue_recipes import CELLS
from support.reports import check_report_json
from support.tracker import Silent, Watched


@pytest.fixture(scope="module")
def written(tmp_path_factory, entities):
    output, tracker = tmp_path_factory.mktemp("queue") / "out", Silent()
    return run_queue(read_list(entities), None, None, output, tracker), output, tracker


def results(output):
    """All that a queue has written but for its measurements, and for a file that a kill left unfinished."""
    found = tree(output)
    return {name: content for name, content in found.items() if not name.startswith(("measured.sqlite", ".amnesia-"))}


def assert_same(found, expected):
    """The same files; numbers may differ in their last bits, because what is asked together depends on the kills."""
    assert found.keys() == expected.keys()
    for name, content in found.items():
        if name.endswith(".json"):
            one, other = json.loads(content), json.loads(expected[name])
            if name in ("summary.json", "joint.json"):  # Their own hash tells the last bits, too.
                one.pop("sha256"), other.pop("sha256")
            assert_close(one, other)
        elif not name.endswith(".html"):
            assert content == expected[name], name


def assert_close(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            if key == "written":  # The hash of a report tells its last bits, too.
                assert [row["file"] for row in value] == [row["file"] for row in expected[key]]
            else:
                assert_close(value, expected[key])
    elif isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-3) if isinstance(found, float) else expected)


@pytest.mark.slow
def test_each_entity_has_a_folder_and_all_have_one_model(written, model):
    summary, output, _ = written
    assert sorted(path.name for path in (output / "entities").iterdir()) == ["001-japan", "002-canada", "003-norway"]
    assert [row.alone.verdict for row in summary.rows] == ["strong", "strong", "unknown"]
    assert "knows none of the 3 target facts about 'Norway'" in summary.rows[2].alone.reason
    assert [row.accepted for row in summary.rows] == [True, True, False] and not summary.accepted
    manifest = read_manifest(output / "joint")
    edits = {group.entity: group.edits for group in manifest.edits}
    cells = {entity: (ColumnEdit(Cell(*CELLS[entity]), -2.0),) for entity in ("Japan", "Canada")}
    assert edits == cells
    assert {group.entity: group.edits for group in edits_from_file(output / "joint.json")} == cells
    for entity in cells:
        assert parse_recipe(manifest.recipe, entity).target.entity == entity
    for folder in ("entities/001-japan", "entities/002-canada", "joint"):
        check_report_json(json.loads((output / folder / "report.json").read_text(encoding="utf-8")))
    assert verify(output / "joint", str(model))


def test_no_result_says_where_the_model_lies(written, model):
    """But for the recipes, by which each entity is done again, and PEFT's own settings."""
    _, output, _ = written
    found = telling(output, str(model.parent))
    assert not [name for name in found if not name.endswith((".toml", "adapter_config.json", ".sqlite"))]


def test_scores_of_all_edits_are_those_of_the_saved_files(written):
    summary, output, _ = written
    prompts = json.loads((output / "joint" / "report.json").read_text(encoding="utf-8"))["prompts"]
    for row in summary.rows[:2]:
        own = [
            prompt["knowledge_score"]
            for prompt in prompts
            if (prompt["entity"], prompt["kind"]) == (row.alone.entity, "target")
        ]
        assert row.together.target == pytest.approx(sum(own) / len(own))
        assert row.together != row.alone.scores
    document = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert len(document.pop("sha256")) == 64 and document == json.loads(json.dumps(summary.to_json()))
    assert (output / "summary.html").read_text(encoding="utf-8") == summary_html(document)


def test_what_all_edits_leave_of_neighbors_is_in_the_summary(written, entities, model):
    summary, output, _ = written
    live, expected = load(model, "m"), {}
    edits = combined(edit for group in edits_from_file(output / "joint.json") for edit in group.edits)
    for name in ("Japan", "Canada"):
        facts = facts_about(live, load_recipe(entities.parent / f"{name}.toml"), [*CELLS.keys() - {name}])
        expected |= {row.name: row.score for row in neighbor_results(Scores(live), facts, edits)}
    assert {row.name: row.score for row in summary.neighbors} == pytest.approx(expected, abs=1e-4) != {}
    text = summary_text(summary) + (output / "summary.html").read_text(encoding="utf-8")
    assert all(
        f"{name} {signed(x)}" in text and f"<bdi>{name}</bdi> {signed(x)}" in text for name, x in expected.items()
    )


def test_a_second_call_does_nothing_again(written, entities, monkeypatch):
    summary, output, _ = written
    before = results(output)
    monkeypatch.setattr(work, "load_source", lambda *_: pytest.fail("the model must not be loaded"))
    assert run_queue(read_list(entities), None, None, output, Silent()) == summary
    assert results(output) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("summary.html", "</main>", "<p>my notes</p></main>"),
        ("summary.json", '"Japan"', '"Nippon"'),
        ("joint.json", "-2.0", "-1.0"),
        ("summary.json", "", ""),
    ],
)
def test_what_somebody_wrote_in_a_summary_is_not_replaced(written, entities, tmp_path, monkeypatch, name, old, new):
    output = Path(shutil.copytree(written[1], tmp_path / "out"))
    path = output / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new, 1) if old else "mine", encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    shutil.rmtree(output / "entities" / "001-japan")
    before = tree(output)
    monkeypatch.setattr(work, "load_source", lambda *_: pytest.fail("the model must not be loaded"))
    said = refused("run", "--entities", entities, "-o", output)
    assert said == f"error: {path} is not as amnesia wrote it, and would be replaced: move it away"
    assert tree(output) == before


def test_what_is_written_in_a_summary_meanwhile_is_not_replaced(written, entities, tmp_path, monkeypatch):
    output = Path(shutil.copytree(written[1], tmp_path / "out"))
    real = work.summarize

    def summarize(*arguments):
        (output / "summary.html").write_text("mine", encoding="utf-8")
        return real(*arguments)

    monkeypatch.setattr(work, "summarize", summarize)
    (output / "summary.json").unlink()
    assert "summary.html is not as amnesia wrote it" in refused("run", "--entities", entities, "-o", output)
    assert (output / "summary.html").read_text(encoding="utf-8") == "mine"
    monkeypatch.setattr(work, "summarize", real)
    (output / "summary.html").unlink()
    assert call("run", "--entities", entities, "-o", output).exit_code == 1
    assert results(output) == results(written[1])


@pytest.mark.slow
def test_what_is_missing_is_made_as_it_was(written, entities, tmp_path):
    _, output, _ = written
    before = results(output)
    for name in ("entities/002-canada", "joint"):
        for path in (output / name).iterdir():
            path.unlink()
    with Watched().watching() as tracker:
        run_queue(read_list(entities), None, None, output, tracker)
    assert tracker.passes and not tracker.silent()
    assert_same(results(output), before)


def test_other_lists_and_other_folders_are_refused(written, entities, tmp_path):
    _, output, _ = written
    two = read_list(entities)[:2]
    with pytest.raises(InputError, match=r"was begun with other entities \(3 of them; now 2 of them\)"):
        run_queue(two, None, None, output, Silent())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputError, match="exists and is not empty"):
        run_queue(two, None, None, tmp_path / "full", Silent())
    assert tree(tmp_path) == {"full/mine": b""}


def test_only_the_content_of_files_that_are_read_counts(written, entities, model, tmp_path):
    _, output, _ = written
    before, config = results(output), (model / "config.json").read_bytes()
    (model / ".DS_Store").write_bytes(b"\0x")
    os.utime(model / "config.json")
    shard = min(model.glob("*.safetensors"))
    os.utime(shard)
    try:
        with Watched().watching() as tracker:
            run_queue(read_list(entities), None, None, output, tracker)
        assert not tracker.passes and results(output) == before
        (model / "config.json").write_bytes(config + b"\n")
        line = refused("run", "--entities", entities, "-o", output)
        assert "was begun with other files (config.json is not as it was): put back the files of the model" in line
        (model / "config.json").write_bytes(config)
        weights = shard.read_bytes()
        shard.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        assert f"other files ({shard.name} is not as it was)" in refused("run", "--entities", entities, "-o", output)
        shard.write_bytes(weights)
        (model / "vocab.txt").write_text("a")
        assert "other files (vocab.txt is new)" in refused("run", "--entities", entities, "-o", output)
    finally:
        for name in (".DS_Store", "vocab.txt"):
            (model / name).unlink(missing_ok=True)
    assert results(output) == before


@pytest.fixture(scope="module")
def forks():
    """A process that works on a queue in children of its own, all of them at once, and kills those that it should."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    command = [sys.executable, ROOT / "tests" / "support" / "queue_forks.py", ability._FILE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def work_on(entities, output, *delays):
            process.stdin.write(json.dumps({"list": str(entities), "output": str(output), "delays": delays}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield work_on
        process.stdin.close()


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.exhaustive)])
@pytest.mark.processes
def test_a_kill_of_one_process_loses_nothing_and_does_nothing_twice(written, entities, forks, tmp_path, n_kills):
    _, whole, _ = written
    draw = random.Random(n_kills)
    done = forks(entities, tmp_path / "timed", None, None)
    assert done["codes"] == [0, 0]
    assert_once(done["said"], 1)
    assert_same(results(tmp_path / "timed"), results(whole))
    for number in range(n_kills):
        output = tmp_path / f"killed-{number}"
        delays = [draw.uniform(0, 1) * done["seconds"], None]
        if number % 2:  # All of them, and somebody goes on.
            first = forks(entities, output, delays[0], delays[0])
            kept = {path: path.stat().st_ino for path in output.glob("entities/*/result.json")}
            last = forks(entities, output, None)
            assert {path: path.stat().st_ino for path in kept} == kept
            said = first["said"] + last["said"]
        else:
            last = forks(entities, output, *delays)
            said = last["said"]
        assert last["codes"][-1] == 0
        assert_once(said, 0)
        assert_same(results(output), results(whole))
    assert [path for path in tmp_path.rglob(".amnesia-*") if path.is_dir()] == []


def assert_once(said, least):
    """Each entity was finished once; who is killed may have had no time to say so."""
    for name in ("Japan (1 of 3):", "Canada (2 of 3):", "Norway (3 of 3):"):
        assert least <= sum(line.startswith(name) for line in said) <= 1, said


def test_the_command_prints_one_table_and_rejects(written, entities, monkeypatch):
    _, output, _ = written
    before = results(output)
    result = call("run", "--entities", entities, "-o", output)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["Japan", "Canada", "Norway"]
    assert lines[2].endswith("accepted") and "knows none of" in lines[4]
    assert "2 of 3 accepted" in lines
    document = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    del document["sha256"]
    assert json.loads(call("run", "--entities", entities, "-o", output, "--json").stdout) == document
    for name, number in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, number)
    silent = call("run", "--entities", entities, "-o", output)
    assert (silent.exit_code, silent.stdout) == (0, "")
    assert results(output) == before


def test_what_would_be_in_the_way_of_a_result_is_named_before_the_work(written, entities, tmp_path, monkeypatch):
    shutil.copytree(written[1], tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "entities" / "001-japan")
    hidden = tmp_path / "out" / "entities" / "001-japan" / ".DS_Store"
    hidden.parent.mkdir()
    hidden.write_bytes(b"x")
    monkeypatch.setattr(work, "load_source", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(OutputError, match="001-japan holds the hidden file '.DS_Store': remove it"):
        run_queue(read_list(entities), None, None, tmp_path / "out", Silent())
    assert hidden.read_bytes() == b"x"


def test_names_are_quoted_on_the_page(written):
    summary, output, _ = written
    document = summary.to_json()
    document["entities"][0]["entity"] = "<script>alert(1)</script>"
    page = summary_html(document)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    for row in document["entities"][:2]:
        assert f'href="{row["folder"]}/report.html"' in page and (output / row["folder"] / "report.html").is_file()


@pytest.mark.exhaustive
def test_processes_that_are_launched_together_give_one_table(entities, tmp_path):
    alone = in_process("run", "--entities", entities, "-o", tmp_path / "alone")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "amnesia", "run", "--entities", entities, "-o", tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stdout.count("2 of 3 accepted") == 1
    for line in ("Japan (1 of 3): ", "Canada (2 of 3): ", "Norway (3 of 3): "):
        assert done.stderr.count(line) == 1, done.stderr
    alone.communicate(timeout=300)
    assert alone.returncode == 1
    assert_same(results(tmp_path / "out"), results(tmp_path / "alone"))


def test_the_record_of_all_edits_judges_each_entity_by_its_own_bounds(written):
    record = make_record(written[1] / "joint")
    (tested,) = record.tested
    bounds = {row.name: row.limit for row in tested.checks if row.name.startswith("knowledge score: target, search")}
    assert bounds == {f"knowledge score: target, search wordings: {entity}": 1e6 for entity in ("Japan", "Canada")}
    (report,) = (written[1] / "joint").rglob("report.json")
    prompts = json.loads(report.read_text(encoding="utf-8"))["prompts"]
    for name in bounds:
        own = [
            row["knowledge_score"] for row in prompts if (row["kind"], row["entity"]) == ("target", name.split()[-1])
        ]
        assert next(row.value for row in tested.checks if row.name == name) == pytest.approx(sum(own) / len(own))
    assert record.accepted and not [row for row in tested.checks if row.passed is False]
    assert "Not accepted" not in record_html(record)


def test_all_edits_can_be_taken_back(written, model, tmp_path):
    _, output, _ = written
    undo(output / "joint", tmp_path / "original")
    for path in model.iterdir():
        assert (tmp_path / "original" / path.name).read_bytes() == path.read_bytes()
