"""What commands refuse of what they are asked: one line for each mistake, exit code 2, and nothing is written."""

import json

import pytest

from amnesia.domain import entity_name
from support.commands import refused, succeed
from support.tiny_recipe import recipe_text, unknown_fact


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Japan", "--layers", "1-3"], "layers 1-3 are out of range: {model} has layers 0–2"),
        (["Japan", "--layers", "2-1"], "layers '2-1' is malformed: expected A-B"),
        ([" "], "no entity given, or an empty one"),
        (["Japan", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["Japan", "--device", "meta"], "device 'meta' cannot be used, it holds no numbers: choose another"),
        (["Japan", "--alias", "Nippon"], "--alias is looked for in --prompts"),
        (["Japan", "-o", "."], ". cannot be written (it is a folder): choose another file"),
    ],
)
def test_localize_refuses_bad_options(model, options, message):
    assert message.format(model=model) in refused("localize", model, *options)


def test_what_is_asked_wrongly_is_said_before_a_model_is_loaded(model, live, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.live.loading.load", lambda *_: pytest.fail("the model must not be loaded"))
    recipe = tmp_path / "recipe.toml"
    text = recipe_text(live, model).replace("[localize]", '[localize]\nlayers = "1-3"')
    recipe.write_text(text, encoding="utf-8")
    for command in ("localize", "layers", "robustness"):
        assert "no entity given, or an empty one" in refused(command, model, " ")
        assert f"layers 1-3 are out of range: {model} has layers 0–2" in refused(
            command, model, "Japan", "--layers", "1-3"
        )
    for arguments in (("run", recipe, "-o", tmp_path / "out"), ("extract", "--recipe", recipe)):
        assert "layers 1-3 are out of range" in refused(*arguments)
    assert "no entity given, or an empty one" in refused("mine", model, " ", "-o", tmp_path / "mined.toml")
    assert "'Ja\\x00pan' holds the control character" in refused("localize", model, "Ja\0pan")
    assert "1 prompts: give 3 to " in refused("layers", model, "Japan", "--prompts", 1)
    table = tmp_path / "table.tsv"
    table.write_text("subject\trelation\tobject\nPeru\tcapital\tLima\n", encoding="utf-8")
    for arguments in (("mine", model, "Japan"), ("run", "--model", model, "--entity", "Japan")):
        told = refused(*arguments, "--popqa", table, "-o", tmp_path / "out")
        assert f"{table}: the table has no row about 'Japan', but about 1 others" in told


def test_what_an_experiment_cannot_do_is_said_before_a_model_is_loaded(model, live, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.live.loading.load", lambda *_: pytest.fail("the model must not be loaded"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(live, model), encoding="utf-8")
    for command, *options, message in (
        ("inject", "--strength", "nan", "nan is no amount to inject: give a finite number"),
        ("sufficiency", "--placeholder", " ", "the placeholder is empty: give a word"),
        ("inject", "--form", "cells", "--value", "inf", "inf is no amount to inject"),
        ("inject", "--form", "cells", "--value", 1, "--factor", 2, "give either a value or a factor"),
        ("inject", "--seed", 2**63, "is not in the range"),
        ("inject", "--seed", -1, "is not in the range"),
        ("sweep", "--steps", 1, "give at least 2, ending below 1"),
        ("sweep", "--to", "nan", "give at least 2, ending below 1"),
    ):
        assert message in refused(command, "--recipe", recipe, *options)
    for cell, message in (
        ("layer = 3, neuron = 0", "layer 3 is out of range"),
        ("layer = 0, neuron = 999", "neuron 999"),
    ):
        cells = f"cells = [{{ {cell} }}]"
        recipe.write_text(recipe_text(live, model, edit=cells), encoding="utf-8")
        for arguments in (("extract", "--recipe", recipe), ("run", recipe, "-o", tmp_path / "out")):
            assert message in refused(*arguments)


def test_a_name_that_is_too_long_is_refused_wherever_one_is_given(model, live, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.live.loading.load", lambda *_: pytest.fail("the model must not be loaded"))
    long, out = "Ha" * 151, tmp_path / "out"
    listed, table, recipe = (tmp_path / name for name in ("names.txt", "table.tsv", "recipe.toml"))
    listed.write_text(f"Japan\n{long}\n", encoding="utf-8")
    for command in (
        ("localize", model, "Japan", long), ("localize", model, "Japan", "--alias", long), ("layers", model, long),
        ("robustness", model, long), ("robustness", model, "Japan", "--variant", long), ("init", long, "-o", out),
        ("mine", model, long, "-o", out), ("mine", model, "Japan", "--alias", long, "-o", out),
        ("run", "--model", model, "--entity", long, "-o", out), ("bench", model, "--entity", long),
        ("run", "--model", model, "--entities", listed, "-o", out), ("atlas", model, "--file", listed, "-o", out),
    ):  # fmt: skip
        said = refused(*command)
        assert "H...' has 302 characters: expected at most 300, give a shorter name" in said and len(said) < 250
    text = recipe_text(live, model)
    changes = (('name = "Japan"', f'name = "{long}"'), ("[localize]", f'aliases = ["{long}"]\n[localize]'))
    for before, after in (*changes, ('entity = "Peru"', f'entity = "{long}"')):
        assert before in text
        recipe.write_text(text.replace(before, after, 1), encoding="utf-8")
        assert f"{recipe}: the name 'HaHa" in refused("extract", "--recipe", recipe)
    table.write_text(f"subject\trelation\tobject\n{long}\tcapital\tTokyo\n", encoding="utf-8")
    line = refused("mine", model, "Japan", "--popqa", table, "-o", out)
    assert "line 2" in line and "`subject` has 302 characters: expected at most 300" in line
    assert not out.exists()


def test_an_empty_argument_is_not_taken_for_the_working_directory(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed("edit", model, "--cell", "0:1", "-o", "out")
    for arguments in (
        ("verify", ""),
        ("transfer", "", model, "-o", "again"),
        ("diff", model, ""),
        ("verify", "--base="),
    ):
        assert "an argument is empty" in refused(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_options_that_need_others_are_refused_alone(model):
    evaluate = ("evaluate", model, model, "--recipe", "none.toml")
    for options, words in (
        (("--stress-facts", 3), "--stress-facts belongs to --stress"),
        (("--lm-eval-limit", 3), "--lm-eval-limit belongs to --lm-eval"),
        (("--relearning", "--relearning-steps", 0), "0 is not in the range x>=1"),
        (("--relearning-way", "LoRA"), "--relearning-way belongs to --relearning"),
        (("--relearning", "--relearning-way", "prefix"), "'prefix' is not one of"),
    ):
        assert words in refused(*evaluate, *options)
    served = ("evaluate", "--server", "http://127.0.0.1:9", "--recipe", "none.toml", "--dtype", "bfloat16")
    assert "--dtype and --device are those of the server" in refused(*served)
    assert "--link is for files of the model" in refused(
        "edit", model, "--cell", "0:1", "--format", "adapter", "--link", "-o", "none"
    )


def test_an_output_of_one_format_is_named_where_a_folder_of_it_is_asked_for(model, tmp_path):
    succeed("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    for arguments in (
        ("verify", tmp_path / "out" / "safetensors"),
        ("undo", tmp_path / "out" / "safetensors", "-o", tmp_path / "back"),
        ("localize", tmp_path / "out" / "safetensors", "Japan"),
    ):
        told = refused(*arguments)
        assert "does not exist" in told and f"has one format and is {tmp_path / 'out'} itself" in told


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


@pytest.mark.slow
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
        (["--cell", "0:1", "--multiplier", "nan"], "multiplier nan of cell 0:1 changes nothing or is beyond"),
        (["--cell", "0:1", "--multiplier", "1e300"], "multiplier 1e+300 of cell 0:1 changes nothing or is beyond"),
        (["--cell", "0:1", "--format", "gguf"], "formats gguf and gguf-lora need a .gguf model"),
        ([], "give the edit in one way: as --edit FILE, as --cell LAYER:NEURON, or as --atlas FILE"),
        (["--edit", "x.json", "--cell", "0:1"], "give the edit in one way"),
        (["--edit", "x.json", "--entity", "Japan"], "belong to cells"),
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
    assert "RECIPE names the facts itself" in refused("run", recipe, "--alias", "Nippon", "-o", out)
    assert "model 'no/such/model' does not exist" in refused("run", recipe, "--model", "no/such/model", "-o", out)
    table = ("--popqa", tmp_path / "x.tsv")
    assert "x.tsv cannot be read" in refused("run", "--model", model, "--entity", "Japan", *table, "-o", out)
    assert "x.tsv cannot be read" in refused("mine", model, "Japan", *table, "-o", tmp_path / "my.toml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\u200b", "\u202e", "\u200b\u202e \ufeff", "\u2060\ufe0f", "\u3164", "\u0301"])
def test_a_name_that_shows_nothing_is_none(model, tmp_path, name):
    line = "no entity given, or an empty one: name one, for example Canada"
    (tmp_path / "e.json").write_text(
        json.dumps({"entity": name, "edits": [{"layer": 0, "neuron": 1, "multiplier": -1.0}]})
    )
    for command in (
        ("localize", model, name),
        ("edit", model, "--cell", "0:1", "--entity", name, "-o", tmp_path / "out"),
        ("edit", model, "--edit", tmp_path / "e.json", "-o", tmp_path / "out"),
    ):
        assert line in refused(*command)
    assert not (tmp_path / "out").exists()
    assert entity_name("\u0928\u094d\u200d\u092f") == "\u0928\u094d\u200d\u092f"  # A joiner within a word.
