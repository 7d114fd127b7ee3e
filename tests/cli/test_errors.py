"""Whatever a library raises about a file is one line and exit code 2; an interrupt is one line and 130."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from amnesia.localization import cells
from support.commands import call, refused, succeed
from support.folders import ROOT, tree
from support.tiny_gguf import write_gguf
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


INTERRUPTED = """
import os, runpy, signal, sys, time

class Destroyed:
    def __init__(self, *sent):
        self.sent = sent

    def __del__(self):
        interrupt(*self.sent)

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            {place}

def interrupt(sent=signal.SIGINT):
    os.kill(os.getpid(), sent)
    time.sleep(0.1)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupter())
sys.argv[1:] = {arguments!r}
runpy.run_module("amnesia", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "place", "code"),
    [
        *((name, "interrupt()", 130) for name in ("amnesia.cli", "click", "amnesia.cli.edit", "numpy")),
        # Python remembers an interrupt that passed through code that was made from text.
        ("amnesia.cli.main", "exec('interrupt()')", 130),
        # What is raised in a destructor is lost.
        ("amnesia.cli.main", "Destroyed()", 130),
        ("amnesia.cli.main", "Destroyed(signal.SIGTERM)", 143),
        ("amnesia.cli.main", "interrupt(signal.SIGTERM)", 143),
        ("amnesia.cli.main", "interrupt(signal.SIGHUP)", 129),
    ],
)
@pytest.mark.processes
def test_an_interrupt_while_modules_are_loaded_is_one_line(model, tmp_path, module, place, code):
    before = tree(tmp_path)
    arguments = ["edit", str(model), "--cell", "0:1", "-o", str(tmp_path / "out")]
    script = INTERRUPTED.format(module=module, place=place, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted: nothing was written\n")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("before", "launched"), [("signal.signal(signal.SIGHUP, signal.SIG_IGN)", {}), ("", {"WORLD_SIZE": "2"})]
)
def test_a_signal_that_is_ignored_or_that_a_launcher_sends_acts_as_without_this_program(model, before, launched):
    sent = "signal.SIGHUP" if before else "signal.SIGTERM"
    script = INTERRUPTED.format(module="amnesia.cli.main", place=f"interrupt({sent})", arguments=["--version"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **launched}
    command = [sys.executable, "-c", f"import signal\n{before}\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0 if before else -signal.SIGTERM, "")


# What the script of an installed package does; it says so when the first module of the command line is looked for.
SCRIPT = """
import signal, sys

class Started:
    def find_spec(self, name, path=None, target=None):
        if name == "amnesia.cli":
            print(flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Started())
from amnesia.__main__ import entry
sys.exit(entry())
"""


@pytest.mark.parametrize("n_times", [4, pytest.param(30, marks=pytest.mark.exhaustive)])
@pytest.mark.processes
def test_an_interrupt_at_any_moment_of_the_first_two_seconds_is_one_line(model, n_times):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, "localize", str(model), "Japan"]
    draw = random.Random(0)
    for delay in [0.0, *(draw.uniform(0, 2) for _ in range(n_times - 1))]:
        process = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if process.returncode:  # On a fast machine the work may be done by then.
            assert (process.returncode, out, err) == (130, "", "interrupted: nothing was written\n"), delay


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupt_after_the_output_is_there_says_so(model, tmp_path, monkeypatch):
    atlas = ("atlas", model, "Japan", "--no-plots", "--json", "-o", tmp_path / "atlas")
    for name, place, arguments in (
        ("amnesia.cli.atlas.print_json", tmp_path / "atlas", atlas),
        ("amnesia.cli.edit._print_edit", tmp_path / "out", ("edit", model, "--cell", "0:1", "-o", tmp_path / "out")),
    ):
        monkeypatch.setattr(name, interrupt)
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (130, "")
        assert result.stderr.splitlines()[-1] == f"interrupted: {place} was written"
        assert place.exists()


def said(monkeypatch, place, *arguments):
    """What a command says that is interrupted where it calls `place`."""
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupt)
        result = call(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    return result.stderr.splitlines()[-1].removeprefix("interrupted: ")


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_interrupted_change_in_place_says_what_is_on_the_disk(model, tmp_path, monkeypatch, kind):
    if kind == "gguf":
        (tmp_path / "g").mkdir()
        model = write_gguf(tmp_path / "g" / "model.gguf")
    folder = model if model.is_dir() else model.parent
    before = tree(folder)
    edit, undo = ("edit", model, "--cell", "1:4", "--in-place"), ("undo", model, "--in-place")
    complete = f"the edit of {folder} is complete: `amnesia undo {folder} --in-place` takes it back"
    back = f"the edit of {folder} was taken back: its files are as before it"
    assert said(monkeypatch, "amnesia.outputs.in_place._bookkeeping", *edit) == "nothing was written"
    assert said(monkeypatch, "amnesia.cli.edit._print_edit", *edit) == complete
    edited = tree(folder)
    assert "amnesia.json" in edited
    assert said(monkeypatch, "amnesia.outputs.in_place.apply", *undo) == "nothing was written"
    # An edit on top of it, whose manifest takes the place of the first one.
    again = ("edit", model, "--cell", "1:5", "--in-place")
    assert said(monkeypatch, "amnesia.cli.edit._print_edit", *again) == complete
    assert said(monkeypatch, "amnesia.cli.edit.echo", *undo) == back and tree(folder) == edited
    # Interrupted again while it is taken back.
    in_part = f"{folder} is changed in part: `amnesia undo {folder} --in-place` takes that back"
    assert said(monkeypatch, "amnesia.files.journal._remove_empty", *again) == in_part
    assert tree(folder) != edited
    older = f"an interrupted change of {folder} was taken back: its files are as before it"
    assert said(monkeypatch, "amnesia.outputs.in_place.check_unaltered", *again) == older and tree(folder) == edited
    assert said(monkeypatch, "amnesia.cli.edit.echo", *undo) == back and tree(folder) == before


def test_an_interrupted_push_says_what_becomes_of_what_was_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.hub.push.push", interrupt)
    result = call("push", tmp_path, "me/forgets")
    assert result.exit_code == 130
    said = "what me/forgets already got stays there; repeat the push, which sends the rest"
    assert result.stderr.splitlines()[-1] == f"interrupted: {said}"


def test_an_interrupt_before_anything_is_written_says_so_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr("amnesia.outputs.write.write_format", interrupt)
    (tmp_path / "out").mkdir()
    result = call("edit", model, "--cell", "0:1", "-o", tmp_path / "new")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted: nothing was written")
    assert not (tmp_path / "new").exists()


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
