"""Processes that hold one model together: they see, choose and write what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as tensors_of

from amnesia.architectures import LAYOUTS
from amnesia.domain import Loading
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, LayoutError
from amnesia.facts import ability
from amnesia.live.loading import load
from amnesia.live.split import split_config
from amnesia.outputs.proofs import prove
from amnesia.pipeline import run
from amnesia.recipe_file import load_recipe
from amnesia.sources.opening import skeleton
from amnesia.sources.resolve import resolve
from amnesia.weights.manifest_file import read_manifest
from support.commands import refused
from support.folders import ROOT, tree
from support.smollm2 import FEW_CHARACTERS, brief_texts
from support.split_forks import N_PROCESSES, seen
from support.tiny import tiny_model
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live

pytestmark = pytest.mark.processes

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def recipe(model):
    path = model.parent / "recipe.toml"
    text = recipe_text(load(model, "m"), model, formats=("safetensors", "adapter"))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory, model, recipe):
    """The output of two processes, and what each of them saw of the model."""
    folder = tmp_path_factory.mktemp("shared")
    script = ROOT / "tests" / "support" / "split_forks.py"
    command = [sys.executable, script, model, recipe, ability._FILE, folder / "out", folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "out", [torch.load(folder / f"{rank}.pt") for rank in range(N_PROCESSES)]


def assert_same_output(found, expected):
    """The same files, but for the order of additions: of reports scores agree to 1e-3, of weights numbers to 1e-5."""
    one, other = tree(found), tree(expected)
    assert one.keys() == other.keys()
    for name, content in one.items():
        if Path(name).name.startswith("amnesia-"):  # What gives the originals back: as many bits as the last ask for.
            continue
        if name.endswith(".safetensors"):
            for key, tensor in tensors_of(content).items():
                torch.testing.assert_close(tensor, tensors_of(other[name])[key], atol=1e-5, rtol=1e-5)
        elif not name.endswith((".json", ".html")):
            assert content == other[name], name
    folders = [Path(name).parent for name in one if name.endswith("report.json")]
    assert folders
    for folder in folders:
        rows = [json.loads(files[str(folder / "report.json")])["prompts"] for files in (one, other)]
        for mine, its in zip(*rows, strict=True):
            assert (mine["prompt"], mine["answer"]) == (its["prompt"], its["answer"])
            assert mine["knowledge_score"] == pytest.approx(its["knowledge_score"], abs=1e-3)
        edits = [read_manifest(output / folder).edits for output in (found, expected)]
        assert [[edit_places(edit) for edit in group.edits] for group in edits[0]] == [
            [edit_places(edit) for edit in group.edits] for group in edits[1]
        ]


def edit_places(edit):
    """Where an edit acts, and how strongly."""
    if isinstance(edit, ColumnEdit):
        return edit
    return edit.layer, edit.token, edit.columns, edit.multiplier


def test_each_process_sees_the_whole_model(shared, model):
    expected = seen(load(model, "tiny"))
    for found in shared[1]:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(
                found[name], values, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_both_together_write_what_one_writes(shared, recipe, tmp_path):
    with brief_texts(FEW_CHARACTERS):
        run(load_recipe(recipe), tmp_path / "out")
    assert_same_output(shared[0], tmp_path / "out")
    for name in ("safetensors", "adapter"):
        assert read_manifest(shared[0] / name).edits == read_manifest(tmp_path / "out" / name).edits
    assert [path.name for path in shared[0].parent.glob(".amnesia-*")] == []


def findings(folder):
    return [row["text"] for row in json.loads((folder / "report.json").read_text(encoding="utf-8"))["findings"]]


def test_an_adapter_is_proven_by_its_numbers_where_peft_cannot_put_it_on(shared, model):
    whole = [line for line in findings(shared[0] / "adapter") if "by its numbers" in line]
    assert len(whole) == 1
    assert whole[0].startswith("It was asked on a model that processes share, beside whose weights its factors acted")
    assert "What was measured on the saved weights stands here too. Unmerged, it answers" in whole[0]
    alone = shared[0].with_name("alone")
    assert [line for line in findings(alone) if "What was measured on the saved weights" in line] == []
    assert sum("by its numbers" in line for line in findings(alone)) == 1
    assert prove(alone, resolve(str(model))).n_cells == 2
    rows = [
        json.loads((folder / "report.json").read_text())["prompts"] for folder in (alone, shared[0] / "safetensors")
    ]
    for mine, its in zip(*rows, strict=True):
        assert mine["after"]["logprob"] == pytest.approx(its["after"]["logprob"], abs=1e-3)
        assert mine["after"]["logprob"] != mine["before"]["logprob"]


@pytest.mark.exhaustive
def test_processes_of_torchrun_choose_and_write_what_one_does(model, recipe, tmp_path):
    lines = [line for line in recipe.read_text(encoding="utf-8").splitlines() if not line.startswith("cells")]
    (tmp_path / "chosen.toml").write_text("\n".join(lines), encoding="utf-8")
    environment = {**ENVIRONMENT, "AMNESIA_CACHE": str(tmp_path / "cache")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = []
    for name, launch in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [sys.executable, *launch, "-m", "amnesia", "run", tmp_path / "chosen.toml", "-o", tmp_path / name],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines()[0])
    assert printed[0] == printed[1], "the edit, and its scores"
    assert_same_output(tmp_path / "two", tmp_path / "one")
    assert len(list((tmp_path / "cache").glob("moments-*"))) == 1


def test_what_processes_cannot_share_is_refused(model, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were started together, which share the work of run and atlas alone" in refused(
        "edit", model, "--cell", "0:3", "-o", tmp_path / "out"
    )
    with pytest.raises(InputError, match="drop --device and --offload"):
        load(model, "m", Loading(device="cpu", split=True))
    whole = skeleton(tiny_model("gpt2").config)
    with pytest.raises(LayoutError, match="gpt2 cannot be split among 2 processes: transformers has no plan"):
        split_config(whole, LAYOUTS["gpt2"], "gpt2")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("RANK", "1")
    assert refused("run", tmp_path / "none.toml", "-o", tmp_path / "out").startswith("error: process 1: ")


def test_heads_that_do_not_fit_the_number_of_processes_stay_whole(model, monkeypatch):
    live = load(model, "m")
    for count, styles in (("2", {"colwise", "rowwise"}), ("3", {"replicate"})):
        monkeypatch.setenv("WORLD_SIZE", count)
        config = split_config(live.model, live.shape.layout, "m")
        plan = dict(live.model.tp_plan) | config.tp_plan
        assert {style for rule, style in plan.items() if "self_attn" in rule} == styles
        assert plan["model.layers.*.mlp.down_proj"] == "rowwise_split_input"
