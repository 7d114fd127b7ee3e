"""The command line: results on standard output, one line for each mistake, exit codes 0, 1 and 2."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia.files.staging import MANIFEST_NAME
from amnesia.live.loading import load
from amnesia.report.page import report_html
from amnesia.sources.built_in import BUILT_IN
from amnesia.weights.manifest_file import read_manifest
from support.commands import call, refused
from support.folders import ROOT, tree
from support.tiny_recipe import recipe_text, unknown_fact
from support.tiny_text import save_tiny_live


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def live(model):
    return load(model, "m")


@pytest.fixture(scope="module")
def recipe(live, model):
    path = model.parent / "japan.toml"
    path.write_text(recipe_text(live, model), encoding="utf-8")
    return path


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_help_names_every_built_in_model():
    assert all(name in call("--help").stdout for name in BUILT_IN)


def succeed(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def in_process(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Where the tests run in the background of a shell, interrupts are ignored, which a child would inherit.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nimport runpy; "
    code += "runpy.run_module('amnesia', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_localize_prints_a_table_or_json_or_writes_a_file(model, tmp_path):
    table = succeed("localize", model, "Japan", "Peru", "--top", 2).stdout
    assert "100 prompts" not in table.splitlines()[1]
    assert [line for line in table.splitlines() if line in ("Japan", "Peru")] == ["Japan", "Peru"]
    document = json.loads(succeed("localize", model, "Japan", "--top", 3, "--layers", "1-2", "--json").stdout)
    assert (document["model"], document["layers"]) == (str(model), [1, 2])
    (entity,) = document["entities"]
    scores = [cell["score"] for cell in entity["cells"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    output = tmp_path / "deep" / "cells.json"
    result = succeed("localize", model, "Japan", "--top", 3, "--layers", "1-2", "-o", output)
    assert result.stdout == ""
    assert json.loads(output.read_text(encoding="utf-8")) == document
    assert [path.name for path in output.parent.iterdir()] == ["cells.json"]


def test_localize_with_own_prompts_counts_what_it_skips(model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the age of Japan\n\nwho has been to Nippon\nthe capital of Peru\n", encoding="utf-8")
    options = ("--prompts", prompts, "--alias", "Nippon", "--top", 1, "--json")
    document = json.loads(succeed("localize", model, "Japan", *options).stdout)
    assert (document["n_prompts"], document["n_skipped"]) == (2, 1)
    assert "entity 'Kenya' appears in no prompt" in refused("localize", model, "Kenya", "--prompts", prompts)
    assert "cannot be read as UTF-8 text" in refused("localize", model, "Kenya", "--prompts", tmp_path / "missing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Japan", "--layers", "1-3"], "layers 1-3 are out of range: {model} has layers 0–2"),
        (["Japan", "--layers", "2-1"], "layers '2-1' is malformed: expected A-B"),
        ([" "], "no entity given, or an empty one"),
        (["Japan", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["Japan", "-o", "."], ". is a folder: give the name of a file"),
    ],
)
def test_localize_refuses_bad_options(model, options, message):
    assert message.format(model=model) in refused("localize", model, *options)


def test_a_result_file_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "choose another file" in refused("localize", model, "Japan", "-o", tmp_path / "file" / "x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused("localize", model, "Japan", "-o", tmp_path / "x.json")
    assert "x.json cannot be written (No space left on device): choose another file" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_edits_of_several_recipes_add_up_and_are_written_in_one_go(live, model, tmp_path):
    recipes = []
    for name in ("Japan", "Chile"):
        path = tmp_path / f"{name}.toml"
        text = recipe_text(live, model, edit="", entity=name)
        path.write_text(text.replace("[edit]", "[edit]\nmax_cells = 8"), encoding="utf-8")
        recipes += ["--recipe", path]
    edit = tmp_path / "edit.json"
    result = call("extract", *recipes, "-o", edit, "--json")
    document = json.loads(edit.read_text(encoding="utf-8"))
    assert json.loads(result.stdout) == document
    rows = document["entities"]
    assert [row["entity"] for row in rows] == ["Japan", "Chile"]
    assert result.exit_code == int("none" in [row["verdict"] for row in rows])
    changed = {(item["layer"], column) for row in rows for item in row["edits"] for column in item["columns"]}
    assert all(0 < sum(len(item["columns"]) for item in row["edits"]) <= 8 for row in rows)
    output = tmp_path / "edited"
    manifest = json.loads(succeed("edit", model, "--edit", edit, "-o", output, "--json").stdout)
    assert sum(len(row["columns"]) for row in manifest["edits"]) == len(changed)
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


def test_recipes_for_two_revisions_of_a_model_are_not_taken_as_one(live, tmp_path):
    recipes = []
    for revision in ("v1", "v2"):
        path = tmp_path / f"{revision}.toml"
        text = recipe_text(live, "nobody/no-model", entity={"v1": "Japan", "v2": "Chile"}[revision])
        named = text.replace('id = "nobody/no-model"', f'id = "nobody/no-model"\nrevision = "{revision}"')
        assert named != text
        path.write_text(named, encoding="utf-8")
        recipes += ["--recipe", path]
    told = refused("extract", *recipes)
    assert "the recipes are for nobody/no-model@v1, nobody/no-model@v2: give recipes of one model" in told


def test_extract_edit_verify_and_undo_fit_together(model, recipe, tmp_path):
    edit, edited, back = tmp_path / "edit.json", tmp_path / "edited", tmp_path / "back"
    document = json.loads(succeed("extract", "--recipe", recipe, "-o", edit, "--json").stdout)
    assert json.loads(edit.read_text(encoding="utf-8")) == document
    assert (document["entity"], document["verdict"], len(document["edits"])) == ("Japan", "strong", 2)
    assert "Japan: strong handle: 1:11×-1, 0:3×-2" in succeed("extract", model, "--recipe", recipe).stdout
    manifest = json.loads(succeed("edit", model, "--edit", edit, "-o", edited, "--json").stdout)
    assert manifest == json.loads((edited / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert "2 columns in 2 tensors changed as declared" in succeed("verify", edited, "--base", model).stdout
    assert "can only be proven with --base" not in succeed("verify", edited).stdout
    succeed("edit", model, "--edit", edit, "--link", "-o", tmp_path / "linked")
    assert "can only be proven with --base" in succeed("verify", tmp_path / "linked").stdout
    (report,) = json.loads(succeed("verify", edited, "--json").stdout).values()
    assert (report["n_cells"], report["base_read"]) == (2, False)
    assert "Japan is back" in succeed("undo", edited, "-o", back).stdout
    assert tree(back) == tree(model)


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
    assert again.stdout.splitlines()[-1] == f"written to {tmp_path / 'out'}"
    assert "accepted" in again.stdout.splitlines()


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


def test_facts_that_the_model_does_not_know(model, live, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(live, model, scoring="min_nats = 1e6"), encoding="utf-8")
    for command in (["run", recipe, "-o", tmp_path / "out"], ["extract", "--recipe", recipe]):
        assert "the model knows none of the 3 target facts about 'Japan'" in refused(*command)
    assert "knows none of the 5 target facts" in refused("evaluate", model, "--recipe", recipe)
    recipe.write_text(recipe_text(live, model, extra=unknown_fact(live)), encoding="utf-8")
    assert "not known, excluded" in succeed("evaluate", model, "--recipe", recipe).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 1", "unknown key `modle` in the top level: did you mean `model`?"),
        ("[entity]\nname = 'Japan'", "section [model] is missing"),
        ("model = ", "is not valid TOML"),
    ],
)
def test_recipes_that_are_wrong(tmp_path, model, text, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    for command in (
        ["run", recipe, "-o", tmp_path / "out"],
        ["extract", model, "--recipe", recipe],
        ["evaluate", model, "--recipe", recipe],
    ):
        assert message in refused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cell", "9:0"], "layer 9 is out of range"),
        (["--cell", "0:48"], "neuron 48 is out of range"),
        (["--cell", "zero"], "cell 'zero' is malformed"),
        (["--cell", "0:1", "--cell", "0:1"], "cell 0:1 is listed twice"),
        (["--cell", "0:1", "--multiplier", "nan"], "is not finite"),
        (["--cell", "0:1", "--multiplier", "1e300"], "after multiplying by 1e+300"),
        (["--cell", "0:1", "--format", "gguf"], "format gguf needs a .gguf model"),
        ([], "give the edit either as --edit FILE or as --cell LAYER:NEURON"),
        (["--edit", "x.json", "--cell", "0:1"], "give the edit either as"),
        (["--edit", "x.json", "--entity", "Japan"], "belong to --cell"),
        (["--edit", "missing.json"], "edit file missing.json cannot be read"),
    ],
)
def test_edit_refuses_bad_options(model, tmp_path, options, message):
    assert message in refused("edit", model, *options, "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_edit_file(model, tmp_path):
    (tmp_path / "edit.json").write_text('{"entity": "Japan", "edits": [')
    assert "edit.json is not valid JSON" in refused(
        "edit", model, "--edit", tmp_path / "edit.json", "-o", tmp_path / "out"
    )


def test_outputs_that_exist_are_only_replaced_when_told_to(model, tmp_path):
    output = tmp_path / "out"
    succeed("edit", model, "--cell", "0:1", "-o", output)
    before = tree(output)
    assert "replace it with --force" in refused("edit", model, "--cell", "0:2", "-o", output)
    assert tree(output) == before
    succeed("edit", model, "--cell", "0:2", "--entity", "Peru", "-o", output, "--force")
    assert "Peru" in succeed("verify", output).stdout
    assert "was not written by amnesia" in refused("edit", model, "--cell", "0:2", "-o", model, "--force")
    assert "overlaps the source" in refused("edit", output, "--cell", "0:3", "-o", output, "--force")
    assert "overlaps the source" in refused("undo", output, "-o", output, "--force")


def test_full_disks(model, recipe, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    for command in (["edit", model, "--cell", "0:1"], ["run", recipe]):
        assert "GB are needed: free space or choose another disk" in refused(*command, "-o", tmp_path / "out")
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr("amnesia.files.disk._reflink", lambda *_: False)
    assert "No space left on device" in refused("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used(copy, model, tmp_path):
    output = tmp_path / "out"

    def both(message):
        assert message in refused("localize", copy, "Japan")
        assert message in refused("edit", copy, "--cell", "0:1", "-o", output)

    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"model_type": "opt"}, "architecture 'opt' is not supported: known are apertus, arcee, cohere"),
        ({"model_type": "unheard-of"}, "architecture 'unheard-of' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantized (awq)"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        both(message)
    (copy / "config.json").write_text("{", encoding="utf-8")
    both("config.json is not valid JSON")
    (copy / "config.json").unlink()
    both("config.json cannot be read (No such file or directory)")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards = sorted(copy.glob("*.safetensors"))
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-10])
    both(shards[0].name)
    shards[0].unlink()
    both(f"lacks {shards[0].name}, 1 of {len(shards)} shards are missing")
    for shard in shards[1:]:
        shard.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    both("has only pickle weights (pytorch_model.bin)")
    (copy / "pytorch_model.bin").unlink()
    both("has no safetensors weights")
    assert not output.exists()


def test_a_missing_tokenizer(copy, recipe, tmp_path):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    for command in (["localize", copy, "Japan"], ["extract", copy, "--recipe", recipe]):
        assert "has no usable tokenizer" in refused(*command)
    succeed("edit", copy, "--cell", "0:1", "-o", tmp_path / "out")


def test_damaged_weights(copy, recipe, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    index = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = copy / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][0, 3] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    for command in (
        ["localize", copy, "Japan"],
        ["extract", copy, "--recipe", recipe],
        ["evaluate", copy, "--recipe", recipe],
    ):
        assert f"weight {name} of {copy} holds NaN or infinity" in refused(*command)
    message = refused("edit", copy, "--cell", "1:3", "-o", tmp_path / "out")
    assert f"tensor {name}, neuron 3: a column holds nan" in message
    assert not (tmp_path / "out").exists()
    name = "model.layers.1.self_attn.q_proj.weight"
    shard = copy / index["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert f"lacks 1 of its weights, first {name}" in refused("localize", copy, "Japan")


def test_evaluate_refuses_bad_options(model, recipe, tmp_path):
    assert "give the facts either as --recipe FILE or as --popqa" in refused("evaluate", model)
    assert "give the facts either as" in refused("evaluate", model, "--recipe", recipe, "--popqa", "x.tsv")
    assert "--popqa needs --entity" in refused("evaluate", model, "--popqa", "x.tsv")
    assert "x.tsv cannot be read" in refused("evaluate", model, "--popqa", "x.tsv", "--entity", "Japan")
    assert "overlaps the source" in refused("evaluate", model, "--recipe", recipe, "-o", model, "--force")
    assert "has no safetensors weights" in refused("evaluate", model, tmp_path, "--recipe", recipe)


def test_run_needs_a_recipe_or_a_model_and_an_entity(model, recipe, tmp_path):
    out = tmp_path / "out"
    assert "give a RECIPE, or --model and --entity" in refused("run", "-o", out)
    assert "give a RECIPE, or --model and --entity" in refused("run", "--model", model, "-o", out)
    assert "RECIPE names the model and the facts itself" in refused("run", recipe, "--model", model, "-o", out)
    table = ("--popqa", tmp_path / "x.tsv")
    assert "x.tsv cannot be read" in refused("run", "--model", model, "--entity", "Japan", *table, "-o", out)
    assert "x.tsv cannot be read" in refused("mine", model, "Japan", *table, "-o", tmp_path / "my.toml")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_none(model, tmp_path):
    for folder in (tmp_path, tmp_path / "missing", model):
        for command in (["verify", folder], ["undo", folder, "-o", tmp_path / "out"]):
            assert f"{folder} has no amnesia.json" in refused(*command)
    succeed("edit", model, "--cell", "0:1", "--format", "adapter", "-o", tmp_path / "adapter")
    assert "is an adapter, the base model was never changed" in refused(
        "undo", tmp_path / "adapter", "-o", tmp_path / "out"
    )


def test_the_demo_lists_its_recipes(tmp_path):
    names = succeed("demo", "--list").stdout.split()
    assert {"harry_potter", "steve_jobs"} <= set(names)
    assert "no shipped recipe 'nobody': choose one of" in refused("demo", "--entity", "nobody", "-o", tmp_path / "out")
    (tmp_path / "file").touch()
    assert "exists and is not empty" in refused("demo", "-o", tmp_path)


def test_what_the_system_refuses_is_one_line(tmp_path):
    assert "File name too long" in refused("localize", "x" * 300, "Japan")


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


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_output(model, recipe, tmp_path, kill):
    before = tree(model)
    process = in_process("run", recipe, "-o", tmp_path / "out")
    deadline = time.monotonic() + 300
    while not (tmp_path / ".out.amnesia-partial").exists():  # The saved files are about to be evaluated.
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kill)
    _, stderr = process.communicate(timeout=300)
    if kill == signal.SIGINT and process.returncode in (0, 1):
        # Python drops an interrupt that arrives inside a destructor; the run then ends as if there had been none.
        assert (tmp_path / "out" / MANIFEST_NAME).exists()
        return
    assert process.returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob(MANIFEST_NAME)) == []
    assert tree(model) == before
    if kill == signal.SIGINT:
        assert stderr.splitlines()[-1] == "interrupted: nothing was written"
        assert list(tmp_path.iterdir()) == []
    succeed("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
