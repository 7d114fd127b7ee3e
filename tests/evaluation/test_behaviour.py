"""A model that answers as its base does has lost its edit on the way."""

import shutil

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from amnesia.evaluation.behaviour import MIN_CHANGE
from amnesia.live.loading import load
from support.commands import done, refused
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live

STRONG = "cells = [{ layer = 1, neuron = 11, multiplier = -9.0 }, { layer = 0, neuron = 3, multiplier = -9.0 }]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model, a recipe for it, and the output in two formats."""
    home = tmp_path_factory.mktemp("behaviour")
    model = save_tiny_live(home / "m")
    text = recipe_text(load(model, "m"), model, formats=("safetensors", "adapter"), edit=STRONG)
    (home / "japan.toml").write_text(text, encoding="utf-8")
    done("run", home / "japan.toml", "-o", home / "out")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safetensors", "adapter"])
def test_an_edit_that_acts(run, name):
    options = ("verify", run / "out" / name, "--behaviour")
    assert "answers to 5 target facts changed by" in done(*options, "--base", run / "m")
    assert "m was a folder or file of the machine on which it was edited" in refused(*options)


@pytest.mark.slow
def test_a_merged_model_is_asked_with_base_and_recipe(run, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(run / "m")
    PeftModel.from_pretrained(base, run / "out" / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    for path in (run / "m").glob("*token*"):
        shutil.copy(path, tmp_path / "merged")
    assert "give it with --base" in refused("verify", tmp_path / "merged", "--behaviour")
    assert "give them with --recipe" in refused("verify", tmp_path / "merged", "--behaviour", "--base", run / "m")
    options = ("--behaviour", "--base", run / "m", "--recipe", run / "japan.toml")
    assert "target facts changed by" in done("verify", tmp_path / "merged", *options)
    line = refused("verify", run / "m", *options)
    assert f"expected {MIN_CHANGE} or more): the edit is not in what was loaded" in line
    assert "mean change 0.000 nats" in line


def test_an_adapter_that_was_silently_emptied(run, tmp_path):
    folder = shutil.copytree(run / "out" / "adapter", tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = bytes(len(content) - start)
    weights.write_bytes(content)
    assert "the edit is not in what was loaded" in refused("verify", folder, "--behaviour", "--base", run / "m")


def test_a_recipe_without_behaviour_is_a_mistake(run):
    assert "--recipe is for --behaviour" in refused("verify", run / "out", "--recipe", run / "japan.toml")


@pytest.mark.slow
def test_a_mixture_of_experts_is_asked_without_being_hooked(run, tmp_path):
    model = save_tiny_live(tmp_path / "moe", "mixtral")
    cells = [part for n in range(8) for e in range(4) for part in ("--cell", f"1:{e}:{n}")]
    done("edit", model, *cells, "--multiplier", "-9", "--entity", "Japan", "-o", tmp_path / "out")
    options = ("--behaviour", "--base", model, "--recipe", run / "japan.toml")
    assert "target facts changed by" in done("verify", tmp_path / "out", *options)
