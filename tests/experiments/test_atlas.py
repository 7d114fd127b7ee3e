"""The table of many entities: the same rows however it was made, whole after a kill, and summaries by hand."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from amnesia.directions import keys
from amnesia.directions.keys import name_rows
from amnesia.domain import Cell
from amnesia.errors import InputError, OutputError
from amnesia.experiments import atlas
from amnesia.experiments.atlas import AtlasSettings, begin, fill, rank_correlation, summarize
from amnesia.experiments.atlas_file import AtlasRow, DirectionPlace, edits_of, read
from amnesia.experiments.settings import ExperimentSettings
from amnesia.facts.names import contrast_entities
from amnesia.live.loading import load
from amnesia.live.model import edited
from amnesia.localization.cells import localize
from amnesia.localization.results import CellScore
from amnesia.sources.fingerprint import fingerprint
from amnesia.sources.resolve import resolve
from support.commands import done, refused, succeed
from support.folders import ROOT
from support.tiny import tiny_model
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_live

SETTINGS = AtlasSettings("tiny", n_prompts=4, top=3)
NAMES = {"Japan": 900, "Paris": 800, "Michael Jordan": None, "Atlantis": 5}


@pytest.mark.slow
def test_rows_equal_a_localization(tmp_path):
    live, path, settings = tiny_live(), tmp_path / "atlas.sqlite", dataclasses.replace(SETTINGS, directions=False)
    fill(live, path, settings, begin(path, settings, NAMES))
    model, rows = read(path)
    assert model == "tiny"
    assert [(row.entity, row.popularity) for row in rows] == list(NAMES.items())
    expected = localize(live, list(NAMES), n_prompts=4, top=3).entities
    for row, other in zip(rows, expected, strict=True):
        assert [cell.cell for cell in row.cells] == [cell.cell for cell in other.cells]
        assert [cell.score for cell in row.cells] == pytest.approx([cell.score for cell in other.cells], rel=1e-4)


@pytest.mark.slow
def test_shards_and_stops_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "EXPERIMENTS", ExperimentSettings(batch_entities=2))
    live = tiny_live()
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    fill(live, one, SETTINGS, begin(one, SETTINGS, NAMES))
    pending = begin(two, SETTINGS, NAMES)
    fill(live, two, SETTINGS, pending, 1, 2)
    assert begin(two, SETTINGS, NAMES) == ("Japan", "Paris")
    fill(live, two, SETTINGS, begin(two, SETTINGS, NAMES))
    assert begin(two, SETTINGS, NAMES) == ()
    assert read(two) == read(one)
    for name in NAMES:
        assert edits_of(two, name, "tiny") == edits_of(one, name, "tiny")


@pytest.mark.slow
def test_a_direction_answers_1_at_the_name_and_moves_the_stream_furthest(tmp_path, monkeypatch):
    few = keys.wordings()[::8]
    monkeypatch.setattr(keys, "wordings", lambda: few)
    live, path = tiny_live(), tmp_path / "atlas.sqlite"
    fill(live, path, SETTINGS, begin(path, SETTINGS, NAMES))
    for row in read(path)[1]:
        (edit,) = edits_of(path, row.entity, "tiny", multiplier=0.0).edits
        assert (edit.layer, edit.token) == (row.direction.layer, row.direction.token)
        assert len(edit.columns) == live.shape.d_mlp and edit.multiplier == 0.0
        assert np.dot(edit.read.array, edit.key.array) == pytest.approx(1.0, abs=1e-4)
        # No norm follows this MLP, so that the stream moves by what is written there, and by its mean over wordings.
        assert row.direction.shift == pytest.approx(np.linalg.norm(edit.write.array), rel=1e-4)
        rows = name_rows(live, row.entity)[edit.token]
        asked = [torch.tensor([placed.ids]) for placed in rows]
        answers, change = [], torch.from_numpy(edit.write.array.copy())
        for ids in asked:
            plain, turned = [], []
            with listening(live, edit.layer, plain):
                live.model(ids)
            with edited(live, [edit]), listening(live, edit.layer, turned):
                live.model(ids)
            assert plain[0][0] == pytest.approx(turned[0][0], abs=1e-5)
            moved = plain[0][1] - turned[0][1]
            answers.append((moved @ change / (change @ change)).item())
        assert np.mean(answers) == pytest.approx(1.0, abs=1e-3)


@contextlib.contextmanager
def listening(live, layer, found):
    """Adds activations and output of a layer's MLP at the last token of each text."""
    module = live.out_proj(layer)
    handle = module.register_forward_hook(lambda _, given, out: found.append((given[0][0, -1], out[0, -1])))
    with torch.inference_mode():
        yield
    handle.remove()


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "atlas.sqlite"
    begin(path, SETTINGS, NAMES)
    with pytest.raises(InputError, match='is an atlas of "tiny" with top = 3, asked for is 5'):
        begin(path, AtlasSettings("tiny", n_prompts=4, top=5), NAMES)
    with pytest.raises(InputError, match='with dtype = "float32", asked for is "bfloat16"'):
        begin(path, dataclasses.replace(SETTINGS, dtype="bfloat16"), NAMES)
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(OutputError, match="cannot be used as an atlas"):
        begin(path, SETTINGS, NAMES)
    (tmp_path / "empty.sqlite").touch()
    for name, wrong in (("none.sqlite", "does not exist"), ("empty.sqlite", "is empty"), ("", "does not exist")):
        if not name:
            path.unlink()
        with pytest.raises(InputError, match=f"sqlite {wrong}: give the atlas that `amnesia atlas` wrote"):
            read(tmp_path / name)
    with pytest.raises(InputError, match="with directions = true, asked for is false"):
        begin(tmp_path / "other.sqlite", SETTINGS, NAMES)
        begin(tmp_path / "other.sqlite", dataclasses.replace(SETTINGS, directions=False), NAMES)
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(OutputError, match="its tables are of version 1, expected 3"):
        read(tmp_path / "other.sqlite")


@pytest.mark.slow
def test_an_edit_takes_the_direction_of_an_entity_from_an_atlas_or_its_cells(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    path = tmp_path / "atlas.sqlite"
    settings = AtlasSettings("m", fingerprint(resolve(str(model))), n_prompts=4, top=3)
    fill(load(model, str(model)), path, settings, begin(path, settings, NAMES))
    row = read(path)[1][2]
    cells = [score.cell for score in row.cells]
    asked = ("edit", model, "--entity", "michael  jordan", "--atlas", path)
    manifest = json.loads(succeed(*asked, "-o", tmp_path / "out", "--json").stdout)
    (written,) = manifest["edits"]
    assert (written["entity"], written["layer"], written["multiplier"]) == ("Michael Jordan", row.direction.layer, -1.0)
    assert len(written["columns"]) == 48
    assert "48 columns in 1 tensor changed as declared" in done("verify", tmp_path / "out", "--base", model)
    for n, options in ((1, ()), (3, ("--multiplier", -2))):
        manifest = json.loads(succeed(*asked, "--top", n, *options, "-o", tmp_path / f"out{n}", "--json").stdout)
        assert {(row["layer"], row["neuron"]) for row in manifest["edits"]} == {
            (cell.layer, cell.neuron) for cell in cells[:n]
        }
        assert {(row["entity"], row["multiplier"]) for row in manifest["edits"]} == {
            ("Michael Jordan", -1.0 if n == 1 else -2.0)
        }
    out = ("-o", tmp_path / "none")
    assert "--atlas needs --entity" in refused("edit", model, "--atlas", path, *out)
    asked = ("edit", model, "--atlas", path, *out, "--entity")
    assert "and 'Pariss' is none of them: did you mean 'Paris'?" in refused(*asked, "Pariss")
    assert "has 3 cells of 'Paris', wanted are 4: make it with a higher --top" in refused(*asked, "Paris", "--top", 4)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    tiny_model("llama", vocab_size=VOCAB_SIZE, seed=1).save_pretrained(other, max_shard_size="60KB")
    told = refused("edit", other, "--atlas", path, *out, "--entity", "Michael Jordan")
    assert f"is an atlas of other weights (m), not of {other}: make one of {other}" in told
    assert "--top is for --atlas" in refused("edit", model, "--cell", "0:1", "--top", 2, *out)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE directions SET edit = X'7B' WHERE entity = 'Paris'")
        database.execute("UPDATE directions SET edit = 'text' WHERE entity = 'Japan'")
        database.execute("DELETE FROM directions WHERE entity = 'Atlantis'")
    assert f"the direction of 'Paris' in {path} is not valid JSON" in refused(*asked, "Paris")
    assert f"the direction of 'Japan' in {path} is none: make the atlas again" in refused(*asked, "Japan")
    assert not (tmp_path / "none").exists()
    # Where there is none, it is the best cell.
    assert "1 column in 1 tensor edited" in done(*asked, "Atlantis")


def row(entity, layer, neuron, score, popularity=None):
    place = DirectionPlace(neuron % 3, 0, 1.0) if popularity else None
    return AtlasRow(entity, popularity, (CellScore(Cell(layer, neuron), score, 1.0, 1.0),), place)


def test_summary_by_hand():
    rows = [row("a", 0, 1, 9.0, 10), row("b", 2, 5, 4.0, 30), row("c", 0, 1, 1.0, 20), row("d", 0, 2, 3.0)]
    others = [row("a", 0, 1, 1.0), row("b", 2, 6, 2.0), row("c", 0, 1, 3.0), row("z", 1, 1, 1.0)]
    result = summarize("m", rows, 3, ("m-instruct", others))
    assert result.histogram.counts == (3, 0, 1)
    assert result.directions.counts == (0, 2, 1)
    assert summarize("m", rows[3:], 3).directions is None
    assert [(cell.layer, cell.neuron, cell.entities) for cell in result.collisions] == [(0, 1, ("a", "c"))]
    assert result.popularity.popularity == (10, 30, 20)
    assert result.popularity.rank_correlation == pytest.approx(-0.5)
    assert (result.comparison.n, result.comparison.same_top_cell) == (3, pytest.approx(2 / 3))
    assert result.comparison.rank_correlation == pytest.approx(-1.0)
    with pytest.raises(InputError, match="shares no entity"):
        summarize("m", rows, 3, ("other", others[3:]))


def test_rank_correlation_with_ties():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: the covariance of the ranks over their deviations, by hand.
    assert rank_correlation([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 1], [1, 2]) is None


# The order of the sums in a matrix product depends on the number of threads; `torchrun` gives each process one.
N_NAMES = 24
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("model") / "tiny")


def command(model, names, output):
    return ["atlas", str(model), "--file", str(names), "-o", str(output), "--no-plots", "--json"]


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """An atlas of some entities by one process, its entities, and what was printed."""
    folder = tmp_path_factory.mktemp("alone")
    names = folder / "names.txt"
    names.write_text("\n".join(contrast_entities()[:N_NAMES]), encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As ONE_THREAD gives a process of its own.
    try:
        printed = done(*command(model, names, folder / "atlas"))
    finally:
        torch.set_num_threads(threads)
    return folder / "atlas" / "atlas.sqlite", names, printed


@pytest.mark.exhaustive
@pytest.mark.processes
def test_two_processes_give_what_one_gives(model, alone, tmp_path):
    path, names, printed = alone
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, "-m", "amnesia", *command(model, names, tmp_path / "out")],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (_, found), (_, expected) = read(tmp_path / "out" / "atlas.sqlite"), read(path)
    for one, other in zip(found, expected, strict=True):
        # What a process has read before may change the last bit of a shift.
        assert one.direction.shift == pytest.approx(other.direction.shift, rel=1e-5)
        assert one == dataclasses.replace(
            other, direction=dataclasses.replace(other.direction, shift=one.direction.shift)
        )
    assert run.stdout == printed


@pytest.mark.exhaustive
@pytest.mark.processes
def test_a_killed_run_goes_on(model, alone, tmp_path):
    path, names, _ = alone
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "amnesia", *command(model, names, output)],
        cwd=ROOT,
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None and not finished(output / "atlas.sqlite"):
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(output / "atlas.sqlite")
    assert before > 0 and before % atlas.EXPERIMENTS.batch_entities == 0
    again = succeed(*command(model, names, output))
    assert f"localizing {N_NAMES - before} of {N_NAMES}" in again.stderr
    assert read(output / "atlas.sqlite") == read(path)


def finished(path):
    """Entities with cells in the database so far."""
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path) as database:
            return database.execute("SELECT COUNT(DISTINCT entity) FROM cells").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.slow
def test_a_name_is_taken_as_it_is_written_and_never_for_another(tmp_path):
    live, path = tiny_live(), tmp_path / "atlas.sqlite"
    names = dict.fromkeys(("Canada", "CANADA"))
    fill(live, path, SETTINGS, begin(path, SETTINGS, names))
    one, two = (edits_of(path, name, "tiny") for name in names)
    assert (one.entity, two.entity) == tuple(names) and one.edits != two.edits
    with pytest.raises(InputError, match="has 'Canada', 'CANADA', and 'canada' may be each of them: write one as it"):
        edits_of(path, "canada", "tiny")


@pytest.mark.slow
def test_an_atlas_knows_the_weights_that_it_is_of(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    done("atlas", model, "Japan", "-o", tmp_path / "atlas", "--no-directions")
    shutil.copytree(model, tmp_path / "elsewhere")
    done("edit", tmp_path / "elsewhere", "--entity", "Japan", "--atlas", tmp_path / "atlas", "-o", tmp_path / "out")
    tiny_model("llama", vocab_size=VOCAB_SIZE, seed=1).save_pretrained(model, max_shard_size="60KB")
    said = refused("edit", model, "--entity", "Japan", "--atlas", tmp_path / "atlas", "-o", tmp_path / "out2")
    assert "is an atlas of other weights (m)" in said
    said = refused("atlas", model, "Paris", "-o", tmp_path / "atlas", "--no-directions")
    assert 'is an atlas of "m" with weights = ' in said and ": go on with the same, or choose another folder" in said


@pytest.mark.slow
def test_a_damaged_table_is_refused_in_one_line(tmp_path):
    live, path = tiny_live(), tmp_path / "atlas.sqlite"
    fill(live, path, SETTINGS, begin(path, SETTINGS, NAMES))
    content = path.read_bytes()
    for damage in ("UPDATE cells SET layer = 'x'", "UPDATE settings SET value = '{'", "DELETE FROM settings"):
        path.write_bytes(content)
        with contextlib.closing(sqlite3.connect(path)) as table, table:
            table.execute(damage)
        with pytest.raises(InputError, match="make the atlas again, in another folder"):
            edits_of(path, "Japan", "tiny")
