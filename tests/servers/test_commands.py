"""Commands ask servers what they ask models in memory, and come to the same end."""

import json
import re
import shutil

import pytest

from amnesia.live.loading import load
from support.commands import done, refused, succeed
from support.llamacpp import llamacpp_server
from support.reports import check_report_json
from support.smollm2 import FEW_CHARACTERS, brief_texts
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_recipe import recipe_text
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer

pytestmark = pytest.mark.processes

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
STRONG = "cells = [{ layer = 1, neuron = 11, multiplier = -9.0 }, { layer = 0, neuron = 3, multiplier = -9.0 }]"


@pytest.fixture(scope="module", autouse=True)
def brief():
    with brief_texts(FEW_CHARACTERS):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model, its recipe, and the edited model in the folder `out`."""
    home = tmp_path_factory.mktemp("served")
    model = home / "m"
    tiny_model("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=512).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    (home / "japan.toml").write_text(recipe_text(load(model, "m"), model, edit=STRONG), encoding="utf-8")
    done("run", home / "japan.toml", "-o", home / "out")
    return home


@pytest.fixture(scope="module")
def servers(run):
    """The addresses of servers of both models."""
    paths = []
    for name in ("m", "out"):
        live = load(run / name, name)
        paths.append(llama_gguf(run / f"{name}.gguf", live.model, tokenizer=live.tokenizer))
    with llamacpp_server(paths[0]) as base, llamacpp_server(paths[1]) as edited:
        yield base, edited


def test_two_servers_are_evaluated_as_the_two_models(run, servers, tmp_path):
    base, edited = servers
    addresses = ("--server", base, "--server-edited", edited)
    result = succeed("evaluate", *addresses, "--recipe", run / "japan.toml", "-o", tmp_path / "report", "--json")
    plain = json.loads(done("evaluate", run / "m", run / "out", "--recipe", run / "japan.toml", "--json"))
    found = json.loads(result.stdout)
    assert f"m.gguf at {base}: answers to the same question differ by 0.0" in result.stderr
    assert base not in result.stdout
    check_report_json(found)
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8")) == found
    assert (found["model"]["id"], found["edited"]) == ("m.gguf", "out.gguf")
    assert len(found["prompts"]) == len(plain["prompts"]) == 14
    for own, wanted in zip(found["prompts"], plain["prompts"], strict=True):
        for when in ("before", "after"):
            assert own[when]["logprob"] == pytest.approx(wanted[when]["logprob"], abs=0.05)
            # The tiny file does not say which tokens are special, so that llama.cpp writes on behind them.
            assert own[when]["generated"].startswith(wanted[when]["generated"])
        assert own["logprob_unknown"] == pytest.approx(wanted["logprob_unknown"], abs=0.05)
        assert own["kl"] is None
    for when in ("before", "after"):
        wanted = plain["damage"]["neutral_perplexity"][when]
        assert found["damage"]["neutral_perplexity"][when] == pytest.approx(wanted, rel=1e-3)
    (said,) = (row["text"] for row in found["findings"] if "message" in row["text"])
    assert said.startswith("Nothing was asked as a message: the chat template of a served model is not known.")
    assert [row["n_words"] for row in found["damage"]["texts"]] == [row["n_words"] for row in plain["damage"]["texts"]]


@pytest.fixture(scope="module")
def talking(run):
    """The model with a chat template."""
    folder = run / "talking"
    shutil.copytree(run / "m", folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_messages_are_asked_of_servers_whose_template_is_known(run, talking, servers):
    base, edited = servers
    addresses = ("--server", base, "--server-edited", edited, "--server-chat", talking)
    found = json.loads(done("evaluate", *addresses, "--recipe", run / "japan.toml", "--json"))
    plain = json.loads(done("evaluate", talking, run / "out", "--recipe", run / "japan.toml", "--json"))
    messages = [row for row in found["prompts"] if row["is_message"]]
    wanted = [row for row in plain["prompts"] if row["is_message"]]
    assert len(messages) == len(wanted) == 8
    for own, other in zip(messages, wanted, strict=True):
        assert own["prompt"] == other["prompt"] and own["prompt"].startswith("[user] Complete this sentence: ")
        for when in ("before", "after"):
            assert own[when]["logprob"] == pytest.approx(other[when]["logprob"], abs=0.05)
    (said,) = (row["text"] for row in found["findings"] if "essage" in row["text"])
    assert said.startswith("Messages were written with the chat template of talking, as --server-chat has it.")


def test_a_template_that_is_not_the_servers_is_refused(run, talking, servers, tmp_path):
    command = ("evaluate", "--recipe", run / "japan.toml")
    server = ("--server", servers[0], "--server-chat")
    assert "m has no chat template that can be used: drop --server-chat" in refused(*command, *server, run / "m")
    other = tmp_path / "other"
    shutil.copytree(talking, other)
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(other)
    line = refused(*command, *server, other)
    assert re.search(r"m.gguf at .* reads a message in (\d+) tokens, other in \d+: give the model that is served", line)
    assert "--server-chat belongs to --server" in refused(*command, run / "m", "--server-chat", talking)


def test_one_server_alone(run, servers):
    shown = done("evaluate", "--server", servers[0], "--recipe", run / "japan.toml")
    assert "target, search wordings" in shown
    assert "divergence" not in shown


def test_whether_the_edit_acts_on_a_server(run, servers):
    base, edited = servers
    command = ("verify", run / "out", "--base", run / "m", "--behaviour", "--server")
    shown = done(*command, edited)
    assert f"{edited}: 1.00 of that change" in shown
    report = json.loads(done(*command, edited, "--json"))
    assert report["share"] == pytest.approx(1, abs=0.02)
    assert report["served"] == pytest.approx(report["after"], abs=0.02)
    line = refused(*command, base)
    assert f"m.gguf at {base} has 0.00 times the change of 5 target facts" in line


def test_what_does_not_go_together(run, servers):
    recipe = ("--recipe", run / "japan.toml")
    base = servers[0]
    assert "give MODEL, or the server of the original" in refused("evaluate", *recipe)
    assert "give MODEL, or the server of the original" in refused("evaluate", *recipe, "--server-edited", base)
    for options in ([run / "m"], ["--stress"], ["--sweep"], ["--lm-eval", "x"]):
        assert "a server is only asked" in refused("evaluate", *options, *recipe, "--server", base)
    same = refused("evaluate", *recipe, "--server", base, "--server-edited", f"{base}/v1/")
    assert f"both addresses name m.gguf at {base}: give two models" in same
    assert "--server is for --behaviour" in refused("verify", run / "out", "--server", base)
    assert "'here' is no address" in refused("evaluate", *recipe, "--server", "here")
