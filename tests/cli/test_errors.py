"""Whatever a library raises about a file is one line and exit code 2."""

import json
import os
import re
import subprocess
import sys

import pytest

from amnesia.localization import cells
from support.commands import call, refused, succeed
from support.folders import ROOT
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live


@pytest.fixture
def model(tmp_path):
    return save_tiny_live(tmp_path / "m")


def change(path, **settings):
    document = {**(json.loads(path.read_bytes()) if path.exists() else {}), **settings}
    path.write_text(json.dumps(document))


CONFIG = {
    "pad_token_id": [600, 10**9],
    "initializer_range": [1],
    "rms_norm_eps": ["1e-5"],
    "max_position_embeddings": [512.0],
    "hidden_act": [None, "none of these"],
    "num_attention_heads": [5, 0, -4, 2],
    "num_key_value_heads": [0, 3, 10**6],
    "head_dim": [0, 7, "8"],
    "vocab_size": [601, 10**12, 10**30, -1, "600", 0],
    "rope_parameters": [{"rope_type": "none of these"}, [1], "linear", {"rope_type": "dynamic", "factor": "2"}],
    "dtype": ["float99", 16],
    "tie_word_embeddings": ["yes"],
    "id2label": [7],
    "to_dict": ["a method's name"],
    "layer_types": [["none of these"]],
}


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIG.items() for value in values])
def test_a_setting_of_the_configuration_is_named_in_one_line(model, key, value):
    change(model / "config.json", **{key: value})
    line = refused("localize", model, "Japan")
    assert f"config.json of {model} " in line
    # Sizes are told by the first tensor that has another one.
    assert key in line or " describes model." in line


NOT_ABOVE_ZERO = [
    ("rms_norm_eps", {"rms_norm_eps": 0}),
    ("rms_norm_eps", {"rms_norm_eps": -1e-5}),
    ("rope_theta", {"rope_theta": 0, "rope_parameters": None}),
    ("rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": -1e4}}),
    ("rope_theta", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 0.0}}}),
    ("factor", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}}),
]


@pytest.mark.parametrize(("key", "settings"), NOT_ABOVE_ZERO)
def test_a_number_that_no_model_computes_with_is_named_by_every_command(model, tmp_path, key, settings):
    succeed("edit", model, "--cell", "0:1", "-o", tmp_path / "out")
    change(model / "config.json", **settings)
    commands = (
        ("localize", model, "Japan"),
        ("chat", model, tmp_path / "out"),
        ("edit", model, "--cell", "0:1", "-o", tmp_path / "new"),
        ("verify", tmp_path / "out", "--base", model),
    )
    for command in commands:
        line = refused(*command)
        assert f"{model / 'config.json'} has {key} = " in line and "expected a number above 0" in line


@pytest.mark.parametrize("written", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_setting_that_is_no_finite_number_is_named(model, written):
    path = model / "config.json"
    path.write_text(re.sub(r'"rms_norm_eps": [^,]+', f'"rms_norm_eps": {written}', path.read_text()))
    assert f"holds {written}, which is not a number" in refused("localize", model, "Japan")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "none of these"},
        {"return_dict": False},
        {"output_attentions": True},
        {"torchscript": True},
    ],
)
def test_how_a_model_is_computed_is_not_for_its_configuration_to_say(model, settings):
    expected = call("localize", model, "Japan").stdout
    change(model / "config.json", **settings)
    assert call("localize", model, "Japan").stdout == expected != ""


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": "many"},
        {"cache_implementation": "none of these"},
        {"eos_token_id": "2"},
        {"eos_token_id": 2.5},
        {"eos_token_id": [[2]]},
    ],
)
def test_a_setting_of_the_generation_is_named(model, settings):
    change(model / "generation_config.json", **settings)
    line = refused("localize", model, "Japan")
    assert f"generation_config.json of {model} cannot be used with {next(iter(settings))} = " in line


def test_a_file_of_the_generation_that_is_no_object_is_named_as_its_user_knows_it(model):
    (model / "generation_config.json").write_text("[1]")
    told = refused("localize", model, "Japan")
    assert f"{model / 'generation_config.json'} has list as the file, expected an object" in told


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("given", ["x", "", "-1", "1.5", "²", "٣", "9" * 5000])
def test_variables_that_no_launcher_sets_are_those_of_another_program(monkeypatch, tmp_path, name, given):
    monkeypatch.setenv(name, given)
    assert call("init", "Canada", "-o", tmp_path / "canada.toml").exit_code == 0


def test_a_number_that_no_process_has(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "2")
    assert call("init", "Canada", "-o", tmp_path / "alone.toml").exit_code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused("run", tmp_path / "alone.toml", "-o", tmp_path / "out")
    assert "RANK is 2, expected less than WORLD_SIZE, which is 2" in line and not (tmp_path / "out").exists()


def of_the_model(path, **settings):
    """Change settings of the model in tokenizer.json."""
    change(path, model={**json.loads(path.read_bytes())["model"], **settings})


TOKENIZER = {
    "a list as configuration": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    "half a configuration": lambda folder: (folder / "tokenizer_config.json").write_text('{"a": '),
    "a kind of model that is not known": lambda folder: of_the_model(folder / "tokenizer.json", type="BPE2"),
    "a step that is not known": lambda folder: change(folder / "tokenizer.json", normalizer={"type": "Newer"}),
    "merges of unknown tokens": lambda folder: of_the_model(folder / "tokenizer.json", merges=[["zz", "yy"]]),
    "another version": lambda folder: change(folder / "tokenizer.json", version="9.0"),
    "a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "nothing": lambda folder: (folder / "tokenizer.json").write_text(""),
    "no text": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
    "a number as special token": lambda folder: change(folder / "tokenizer_config.json", eos_token=7),
    "a text as length": lambda folder: change(folder / "tokenizer_config.json", model_max_length="long"),
    "odd tokens": lambda folder: change(folder / "tokenizer_config.json", added_tokens_decoder={"x": {"content": 1}}),
}


@pytest.mark.parametrize("damage", TOKENIZER.values(), ids=TOKENIZER)
def test_a_tokenizer_that_cannot_be_used_is_named(model, damage):
    damage(model)
    line = refused("localize", model, "Japan")
    assert "has no usable tokenizer (tokenizer" in line or "tokenizer_config.json " in line


def test_a_token_without_an_embedding_is_named(model):
    path = model / "tokenizer.json"
    added = {"id": 600, "content": "Japan", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
    tokens = json.loads(path.read_bytes())["added_tokens"]
    change(path, added_tokens=[*tokens, {**added, "normalized": False}])
    line = refused("localize", model, "Japan")
    assert f"token 'Japan' of the tokenizer has number 600, but {model} has 600 embeddings" in line


@pytest.mark.slow
def test_a_name_and_a_prompt_of_a_million_characters_are_refused(model, tmp_path):
    line = refused("localize", model, "Japan " * 170_000)
    assert "has 1,019,999 characters: expected at most 300, give a shorter name" in line
    assert len(line) < 300
    (tmp_path / "prompts.txt").write_text(f"the age of Japan\n{'and ' * 250_000}Japan\n", encoding="utf-8")
    line = refused("localize", model, "Japan", "--prompts", tmp_path / "prompts.txt")
    assert "prompts have at most 50000; shorten it" in line
    assert len(line) < 300


def test_an_error_that_nobody_expected_is_one_line_and_its_traceback_on_demand(model, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a fault\nin two lines")

    monkeypatch.setattr(cells, "localize", broken)
    line = refused("localize", model, "Japan")
    assert "ZeroDivisionError (a fault in two lines) where none was expected: repeat" in line
    result = call("--debug", "localize", model, "Japan")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == line


def test_the_traceback_of_an_expected_error_too_is_shown_on_demand(tmp_path):
    plain, debugged = (call(*options, "localize", tmp_path, "Japan") for options in ((), ("--debug",)))
    assert (plain.exit_code, debugged.exit_code) == (2, 2)
    assert "Traceback" not in plain.stderr
    assert "SourceError" in debugged.stderr
    assert debugged.stderr.endswith(plain.stderr)


def test_no_command_gets_as_far_as_being_read_on_windows():
    code = "import sys; sys.platform = 'win32'; sys.argv[1:] = ['edit']; "
    code += "sys.modules.update({'fcntl': None, 'click': None, 'amnesia.cli': None}); "
    code += "import runpy; runpy.run_module('amnesia', run_name='__main__', alter_sys=True)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: amnesia does not run on Windows, but on Linux and macOS: use WSL or a container\n")


def test_a_model_that_is_only_edited_need_not_be_built(model, tmp_path):
    """What stands in the way of building a model does not stand in that of its bytes."""
    change(model / "config.json", hidden_act="none of these")
    assert call("edit", model, "--cell", "0:1", "-o", tmp_path / "out").exit_code == 0


def test_what_cannot_be_loaded_is_refused_by_the_main_job_as_well(model, tmp_path):
    from amnesia.live.loading import load

    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(load(model, "m"), model))
    change(model / "config.json", hidden_act="none of these")
    line = refused("run", path, "-o", tmp_path / "out")
    assert f"config.json of {model} cannot be used with hidden_act = " in line
    assert not (tmp_path / "out").exists()
