"""The command line: results on standard output, exit codes 0 and 1, and what an interrupt leaves."""

import json
import shlex
import signal
import time

import pytest

from amnesia.choice import extraction, several
from amnesia.cli.results import result_bytes
from amnesia.files.staging import MANIFEST_NAME
from amnesia.report.page import report_html
from amnesia.sources.built_in import BUILT_IN
from amnesia.weights.manifest_file import read_manifest
from support.commands import call, in_process, refused, succeed
from support.folders import tree
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live


def test_help_names_every_built_in_model():
    assert all(name in call("--help").stdout for name in BUILT_IN)


@pytest.mark.slow
def test_localize_prints_a_table_or_json_or_writes_a_file(model, tmp_path):
    table = succeed("localize", model, "Japan", "Peru", "--top", 2).stdout
    assert "100 prompts" not in table.splitlines()[1]
    assert [line for line in table.splitlines() if line in ("Japan", "Peru")] == ["Japan", "Peru"]
    document = json.loads(succeed("localize", model, "Japan", "--top", 3, "--layers", "1-2", "--json").stdout)
    assert (document["model"], document["layers"]) == ("m", [1, 2])
    (entity,) = document["entities"]
    scores = [cell["score"] for cell in entity["cells"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    output = tmp_path / "deep" / "cells.json"
    result = succeed("localize", model, "Japan", "--top", 3, "--layers", "1-2", "-o", output)
    assert result.stdout == ""
    assert output.read_bytes() == result_bytes("localize -o", document)
    assert [path.name for path in output.parent.iterdir()] == ["cells.json"]


def test_localize_with_own_prompts_counts_what_it_skips(model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the age of Japan\n\nwho has been to Nippon\nthe capital of Peru\n", encoding="utf-8")
    options = ("--prompts", prompts, "--alias", "Nippon", "--top", 1, "--json")
    document = json.loads(succeed("localize", model, "Japan", *options).stdout)
    assert (document["n_prompts"], document["n_skipped"]) == (2, 1)
    plain = prompts.read_bytes()
    prompts.write_bytes(b"\xef\xbb\xbf" + plain)  # As editors on Windows begin a file.
    assert json.loads(succeed("localize", model, "Japan", *options).stdout) == document
    prompts.write_bytes(plain)
    assert "entity 'Kenya' appears in no prompt" in refused("localize", model, "Kenya", "--prompts", prompts)
    assert "missing cannot be read (No such" in refused("localize", model, "Kenya", "--prompts", tmp_path / "missing")
    prompts.write_bytes(b"\xff")
    assert "cannot be read as UTF-8 text" in refused("localize", model, "Kenya", "--prompts", prompts)


def columns_of(edit):
    """The columns that an edit changes; one cell is scaled."""
    return edit.get("columns", [edit.get("neuron")])


@pytest.mark.slow
def test_edits_of_several_recipes_add_up_and_are_written_in_one_go(live, model, tmp_path):
    recipes = []
    for name in ("Japan", "Chile"):
        path = tmp_path / f"{name}.toml"
        text = recipe_text(live, model, edit="", entity=name)
        path.write_text(text.replace("[edit]", "[edit]\nmax_cells = 8"), encoding="utf-8")
        recipes += ["--recipe", path]
    edit = tmp_path / "edit.json"
    result = call("extract", *recipes, "-o", edit, "--json")
    document = json.loads(result.stdout)
    assert edit.read_bytes() == result_bytes("extract -o", document)
    rows = document["entities"]
    assert [row["entity"] for row in rows] == ["Japan", "Chile"]
    assert result.exit_code == int("none" in [row["verdict"] for row in rows])
    # Directions of a layer that are solved together share their columns.
    own = [{(item["layer"], column) for item in row["edits"] for column in columns_of(item)} for row in rows]
    changed = own[0] | own[1]
    assert all(0 < len(columns) <= 8 for columns in own)
    output = tmp_path / "edited"
    manifest = json.loads(succeed("edit", model, "--edit", edit, "-o", output, "--json").stdout)
    assert {(row["layer"], column) for row in manifest["edits"] for column in columns_of(row)} == changed
    assert sum(len(row.indices) for row in read_manifest(output).tensors) == len(changed)
    assert "changed as declared" in succeed("verify", output, "--base", model).stdout
    succeed("undo", output, "-o", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)
    assert "--entity chooses from a single recipe" in refused("extract", *recipes, "--entity", "Japan")
    assert "two recipes are about 'Japan': give each entity once" in refused("extract", *recipes[:2], *recipes[:2])
    other = tmp_path / "other.toml"
    other.write_text(recipes[3].read_text(encoding="utf-8").replace(str(model), "elsewhere"), encoding="utf-8")
    told = refused("extract", *recipes[:2], "--recipe", other)
    assert f"the recipes are for {model}, elsewhere: give recipes of one model, or the MODEL to take" in told


@pytest.mark.slow
def test_extract_spares_nobody_whom_earlier_edits_made_the_model_forget(live, model, recipe, tmp_path, monkeypatch):
    succeed("edit", model, "--cell", "1:5", "--entity", "Norway", "-o", tmp_path / "edited")
    other, seen, real = tmp_path / "canada.toml", [], extraction.choose
    other.write_text(recipe_text(live, model, entity="Canada"), encoding="utf-8")

    def watched(*arguments):
        seen.append("Norway" in arguments[-1])
        return real(*arguments)

    for module in (extraction, several):
        monkeypatch.setattr(module, "choose", watched)
    for more in ((), ("--recipe", other)):
        call("extract", tmp_path / "edited", "--recipe", recipe, *more)
    assert seen == [True] * 3


@pytest.mark.slow
def test_extract_edit_verify_and_undo_fit_together(model, recipe, tmp_path):
    edit, edited, back = tmp_path / "edit.json", tmp_path / "edited", tmp_path / "back"
    document = json.loads(succeed("extract", "--recipe", recipe, "-o", edit, "--json").stdout)
    assert edit.read_bytes() == result_bytes("extract -o", document)
    assert (document["entity"], document["verdict"], len(document["edits"])) == ("Japan", "strong", 2)
    assert "Japan: strong handle: 1:11×−1, 0:3×−2" in succeed("extract", model, "--recipe", recipe).stdout
    manifest = json.loads(succeed("edit", model, "--edit", edit, "-o", edited, "--json").stdout)
    assert manifest == json.loads((edited / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert "2 columns in 2 tensors changed as declared" in succeed("verify", edited, "--base", model).stdout
    assert "not proven without --base" not in succeed("verify", edited).stdout
    succeed("edit", model, "--edit", edit, "--link", "-o", tmp_path / "linked")
    assert "not proven without --base" in succeed("verify", tmp_path / "linked").stdout
    (report,) = json.loads(succeed("verify", edited, "--json").stdout).values()
    assert (report["n_cells"], report["base_read"]) == (2, False)
    assert "Japan is back" in succeed("undo", edited, "-o", back).stdout
    assert tree(back) == tree(model)


@pytest.mark.slow
def test_run_and_evaluate_agree(model, recipe, tmp_path):
    result = json.loads(succeed("run", recipe, "-o", tmp_path / "out", "--json").stdout)
    assert (result["output"], result["accepted"]) == (str(tmp_path / "out"), True)
    report = succeed(
        "evaluate", model, tmp_path / "out", "--recipe", recipe, "--sweep", "-o", tmp_path / "report", "--json"
    )
    document = json.loads(report.stdout)
    own = {"edited", "accepted", "extraction"}
    assert {key: value for key, value in document.items() if key not in own} == {
        key: value for key, value in result["formats"]["safetensors"].items() if key not in own
    }
    assert document == json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (tmp_path / "report" / "report.html").read_text(encoding="utf-8") == report_html(document)
    assert "controls, held-out" in succeed("evaluate", model, "--recipe", recipe).stdout
    assert "what it is" in refused("evaluate", model, model, "--recipe", recipe, "--sweep")
    assert "exists and is not empty" in refused("run", recipe, "-o", tmp_path / "out")
    assert "exists and is not empty" in refused("evaluate", model, "--recipe", recipe, "-o", tmp_path / "report")
    again = succeed("run", recipe, "-o", tmp_path / "out", "--force")
    *said, written, _, chat, ui, verify, undo, page = again.stdout.splitlines()
    assert written == f"written to {tmp_path / 'out'}"
    assert "accepted" in said
    # What a run says can be done next is done as it is written.
    for line in (chat, verify, undo):
        program, *words = shlex.split(line, comments=True)
        assert program == "amnesia" and call(*words, given="").exit_code == 0, line
    assert tree(tmp_path / "out-original") == tree(model)
    assert ui.split("#")[0].split() == ["amnesia", "ui", str(model)]  # It would wait for a browser.
    assert page == f"report: {tmp_path / 'out' / 'report.html'}" and (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_missed_bounds_and_missing_handles_exit_with_1(model, live, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(live, model, accept="max_target = -1e6\nmin_control = 1e6"), encoding="utf-8")
    result = call("run", recipe, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "nothing was written" in result.stdout
    assert not (tmp_path / "out").exists()
    result = call("extract", "--recipe", recipe, "--json")
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (1, "none")
    accept = "max_target = 1e6\nmax_held_out_target = -1e6\nmin_control = -1e6"
    recipe.write_text(recipe_text(live, model, accept=accept), encoding="utf-8")
    result = call("run", recipe, "-o", tmp_path / "out", "--json")
    assert (result.exit_code, json.loads(result.stdout)["accepted"]) == (1, False)
    assert (tmp_path / "out" / MANIFEST_NAME).exists()


def test_the_demo_lists_its_recipes(tmp_path):
    names = succeed("demo", "--list").stdout.split()
    assert {"harry_potter", "steve_jobs"} <= set(names)
    assert "no shipped recipe 'nobody': choose one of" in refused("demo", "--entity", "nobody", "-o", tmp_path / "out")
    (tmp_path / "file").touch()
    assert "exists and is not empty" in refused("demo", "-o", tmp_path)


@pytest.mark.slow
def test_a_real_process(model, tmp_path):
    process = in_process("edit", model, "--cell", "0:1", "-o", tmp_path / "out", "--json")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(stdout)["format"] == "safetensors"
    assert stderr.startswith("writing safetensors (")
    process = in_process("verify", tmp_path / "nothing")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1


@pytest.mark.exhaustive
def test_notices_of_libraries_do_not_reach_the_terminal(tmp_path):
    process = in_process("localize", save_tiny_live(tmp_path / "m", "qwen3_5_text"), "Japan")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line for line in stderr.splitlines() if not line.startswith("localizing")] == []


# In the normal tier SIGTERM is sent to the page's server, and kills to what writes.
EXHAUSTIVE = [
    pytest.param(kill, marks=pytest.mark.exhaustive) for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
]


@pytest.mark.parametrize("kill", [signal.SIGINT, *EXHAUSTIVE])
@pytest.mark.processes
def test_an_interrupted_run_leaves_no_output(model, recipe, tmp_path, kill):
    before = tree(model)
    process = in_process("run", recipe, "-o", tmp_path / "out")
    deadline = time.monotonic() + 300
    while not [
        *tmp_path.glob(".amnesia-*/new/amnesia.json"),
        *tmp_path.glob(".amnesia-*/new/model*"),
    ]:  # The saved files are about to be evaluated.
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(1 + (kill == signal.SIGHUP)):  # A terminal that is closed may send two.
        process.send_signal(kill)
    _, stderr = process.communicate(timeout=300)
    if kill == signal.SIGINT and process.returncode in (0, 1):
        # Python drops an interrupt that arrives inside a destructor; the run then ends as if there had been none.
        assert (tmp_path / "out" / MANIFEST_NAME).exists()
        return
    assert process.returncode == (-kill if kill == signal.SIGKILL else 128 + kill)
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob(MANIFEST_NAME)) == []
    assert tree(model) == before
    if kill != signal.SIGKILL:
        assert stderr.splitlines()[-1] == "interrupted: nothing was written"
        assert list(tmp_path.iterdir()) == []
    succeed("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
