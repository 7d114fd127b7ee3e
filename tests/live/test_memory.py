"""Models that are too large: what they take is told and refused before it is taken, and layers can stay on the disk."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from amnesia import progress
from amnesia.directions.response import drawn_weights
from amnesia.domain import Cell, Loading
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.facts.questions import facts_of_recipe
from amnesia.live import loading, memory
from amnesia.live.forward import answer_logprobs
from amnesia.live.loading import load, load_adapter, load_lora, load_source
from amnesia.live.memory import need_of
from amnesia.live.tokens import encode
from amnesia.live.watching import write_gradients
from amnesia.outputs.commands import save
from amnesia.progress import n_bytes_read
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.weights.checkpoint import open_source
from support.commands import call, done, refused, succeed
from support.folders import tree
from support.scores import same
from support.smollm2 import brief_texts
from support.tiny import save_tiny, tiny_direction, tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_recipe import EDIT, recipe_text
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer

CELLS = ("--cell", "0:3", "--cell", "2:7", "--multiplier", "-3", "--entity", "Japan")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def recipe(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "r.toml"
    path.write_text(recipe_text(load(model, "m"), model))
    return path


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes of memory are left."""
    return lambda size: monkeypatch.setattr(memory, "available_memory", lambda: size)


def bytes_in(folder, size, wanted=lambda name: True):
    """What all numbers of a folder's tensors come to at `size` bytes each."""
    total = 0
    for path in folder.glob("*.safetensors"):
        total += sum(tensor.numel() * size for name, tensor in load_file(path).items() if wanted(name))
    return total


@pytest.mark.slow
def test_what_is_too_large_is_refused_before_it_is_built(model, recipe, free, monkeypatch):
    whole = bytes_in(model, 4)
    free(whole - 1)
    for command in (("evaluate", model), ("extract",), ("mine", model, "Japan", "-o", recipe.parent / "m.toml")):
        with monkeypatch.context() as patch:
            patch.setattr("amnesia.live.loading.open_model", lambda *_: pytest.fail("it was built"))
            line = refused(*command, *(("--recipe", recipe) if command[0] != "mine" else ()))
        assert f"takes {whole / 1e9:.1f} GB of memory in float32" in line
        assert "give --dtype bfloat16, in which nothing is copied, or leave its layers on the disk (--offload)" in line
    free(whole)
    scores(model, "--recipe", recipe)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_remedy_for_memory_is_one_that_the_command_has(model, recipe, free, monkeypatch, tmp_path):
    """The advice is what the parser takes, and what was given, or cannot be, is not advised."""
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    save(model, [EntityEdits("Japan", (ColumnEdit(Cell(2, 7)),))], tmp_path / "edited")
    one = (model, "Japan")
    compared = ("evaluate", model, tmp_path / "edited", "--recipe", recipe)
    commands = {
        ("localize", *one): True,
        ("layers", *one, "--prompts", 3): True,
        ("robustness", *one, "--no-direction"): True,
        ("atlas", *one, "--no-directions", "--no-plots", "-o", tmp_path / "atlas"): True,
        ("transfer", tmp_path / "edited", model, "-o", tmp_path / "out"): True,
        (*compared,): True,
        (*compared, "--stress"): False,
        (*compared, "--probes"): False,
        (*compared, "--relearning"): False,
        ("ui", model, "--recipe", recipe): False,
        ("localize", *one, "--offload"): False,
    }
    for command, has in commands.items():
        free(1000)
        line = refused(*command)
        assert "GB of memory in float32, and 0.0 GB are free" in line
        assert ("(--offload)" in line) == has, command
        assert "give --dtype bfloat16" in line
    line = refused("verify", tmp_path / "edited", "--base", model, "--behaviour", "--recipe", recipe)
    assert line.endswith("are free: use a machine with more memory")
    beside = bytes_in(model, 4, lambda name: ".layers." not in name)
    for command in (command for command, has in commands.items() if has):
        free(beside)
        found = call(*command, "--offload")
        assert found.exit_code in (0, 1), found.output


@pytest.mark.slow
def test_what_is_mapped_from_files_or_left_there_needs_no_memory(model, recipe, free):
    free(1)
    scores(model, "--recipe", recipe, "--dtype", "bfloat16")
    done("localize", model, "Japan", "--dtype", "auto")
    assert "takes 0.0 GB" in refused("localize", model, "Japan", "--layers", "0")
    of_layers = bytes_in(model, 4, lambda name: ".layers." in name)
    first = bytes_in(model, 4, lambda name: ".layers.0." in name or "embed" in name)
    free(first)
    done("localize", model, "Japan", "--layers", "0")
    refused("localize", model, "Japan", "--layers", "0-1")
    free(bytes_in(model, 4) - of_layers)
    scores(model, "--recipe", recipe, "--offload")
    refused("evaluate", model, "--recipe", recipe)


def test_experts_that_are_put_together_are_copies(tmp_path):
    folder = save_tiny(tmp_path, "mixtral", dtype=torch.bfloat16)
    whole = tiny_model("mixtral")
    need = need_of(dict(whole.named_parameters()), open_source(folder), "bfloat16")
    assert need.taken == bytes_in(folder, 2, lambda name: ".experts." in name)
    assert need.mapped == bytes_in(folder, 2, lambda name: ".experts." not in name)


def test_only_large_models_are_told_about(model, free, monkeypatch):
    told = []
    load_source(resolve(model), notice=told.append)
    assert told == []
    monkeypatch.setattr(memory, "_WORTH_A_LINE", 1)
    free(3e9)
    load_source(resolve(model), Loading("bfloat16"), notice=told.append)
    load_source(resolve(model), notice=told.append)
    assert [line.partition("bfloat16: ")[2] for line in told[:1]] == ["0.0 GB mapped from files, 3.0 GB are free"]
    assert told[1].endswith("in float32: 0.0 GB in memory, 3.0 GB are free")


def scores(*arguments):
    result = succeed("evaluate", *arguments, "--json")
    assert "meta device" not in result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_what_is_left_on_the_disk_answers_as_in_memory(model, recipe, tmp_path):
    edits = EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.0), ColumnEdit(Cell(2, 7)), tiny_direction(1)))
    save(model, [edits], tmp_path / "edited")
    for rounding, options in ((1e-6, ()), (1e-2, ("--dtype", "bfloat16", "--sweep"))):
        compared = (model, tmp_path / "edited", "--recipe", recipe, *options)
        assert same(scores(*compared, "--offload"), scores(*compared), rounding)


def test_layers_are_read_from_where_they_are(model):
    live = load(model, "m", Loading("float32", offload=True))
    for name, parameter in live.model.named_parameters():
        assert parameter.is_meta == (".layers." in name)
    assert live.max_tokens > load(model, "m").max_tokens


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16")])
def test_it_says_how_fast_layers_are_read(model, recipe, monkeypatch, options):
    """Each pass reads what the files hold of layers, in whatever type it computes."""
    monkeypatch.setattr(progress, "_GB", 1.0)
    before, n_passes = n_bytes_read(), []
    real = loading.wrap

    def watched(*arguments, **settings):
        live = real(*arguments, **settings)
        last = live.model.get_submodule(live.shape.layer_path(live.shape.n_layers - 1))
        last.register_forward_hook(lambda *_: n_passes.append(1))
        return live

    monkeypatch.setattr(loading, "wrap", watched)
    told = succeed("evaluate", model, "--recipe", recipe, "--offload", *options).stderr
    of_layers = bytes_in(model, 2, lambda name: ".layers." in name)
    assert n_passes
    assert n_bytes_read() - before == of_layers * len(n_passes)
    (line,) = [line for line in told.splitlines() if line.startswith("asking the original model")]
    assert f"{of_layers * len(n_passes):.2f} GB of layers read from the disk, " in line
    assert re.search(r"read from the disk, [\d.]+ GB/s, [\d.]+ prompts/s\)$", line)
    told = succeed("evaluate", model, "--recipe", recipe).stderr
    assert "read from the disk" not in told


@pytest.mark.exhaustive
@pytest.mark.slow
def test_experts_on_the_disk_answer_as_in_memory(tmp_path):
    tiny_model("qwen2_moe", vocab_size=VOCAB_SIZE).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    text = recipe_text(load(tmp_path / "m", "m"), tmp_path / "m", edit="")
    (tmp_path / "r.toml").write_text(text)
    assert facts_of_recipe(parse_recipe(text)).questions
    compared = (tmp_path / "m", "--recipe", tmp_path / "r.toml")
    assert same(scores(*compared, "--offload"), scores(*compared))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--stress",), "--stress works on what is in memory, where --offload leaves nothing: drop one"),
        (("--device", "cuda:77"), "device 'cuda:77' cannot be used"),
        (("--device", "auto"), "--offload and --device auto both say what is left on the disk: drop one of them"),
    ],
)
def test_what_cannot_be_done_from_the_disk(model, recipe, options, line):
    assert line in refused("evaluate", model, model, "--recipe", recipe, "--offload", *options)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """An adapter for the model, of cells and a direction."""
    output = tmp_path_factory.mktemp("adapters") / "adapter"
    edits = EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.0), ColumnEdit(Cell(2, 7), 0.3), tiny_direction(1)))
    save(model, [edits], output, format="adapter")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_an_adapter_on_layers_on_the_disk_answers_as_in_memory(model, adapter, recipe, dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compared = (model, adapter, "--recipe", recipe, "--dtype", dtype)
    found = scores(*compared, "--offload")
    assert same(found, scores(*compared), 1e-2 if "bfloat16" in compared else 1e-6)
    assert any(row["before"]["logprob"] != row["after"]["logprob"] for row in found["prompts"])
    assert not any(tmp_path.iterdir()), "PEFT writes weights where it is called"
    live = load_adapter(model, adapter, "adapter", Loading(dtype, offload=True))
    on_disk = {name for name, parameter in live.model.named_parameters() if parameter.is_meta}
    assert on_disk == {name for name, _ in live.model.named_parameters() if ".layers." in name and ".lora_" not in name}


def with_settings(adapter, folder, settings):
    """A copy of an adapter with other settings, without those that are "absent"."""
    other = shutil.copytree(adapter, folder, ignore=shutil.ignore_patterns("amnesia.json"))
    path = other / "adapter_config.json"
    found = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in found.items() if value != "absent"}))
    return other


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian", "bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 32},
        {"init_lora_weights": "eva", "eva_config": {"rho": 3.0}},
        {"init_lora_weights": False, "loftq_config": None, "eva_config": None, "of_a_later_version": True},
    ],
)
def test_what_is_for_training_alone_or_off_keeps_no_adapter_from_layers_on_the_disk(model, adapter, tmp_path, settings):
    other = with_settings(adapter, tmp_path / "adapter", settings)
    lives = [load_adapter(model, other, "adapter", Loading(offload=offload)) for offload in (False, True)]
    pairs = [("people in Japan like", "water")]
    answers = [[row.logprob for row in answer_logprobs(live, pairs)] for live in lives]
    assert answers[0] == answers[1]
    assert answers[0] != [row.logprob for row in answer_logprobs(load(model, "m"), pairs)]


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_factors_that_begin_with_the_base_are_not_put_on_layers_on_the_disk(model, adapter, tmp_path, init):
    other = with_settings(adapter, tmp_path / "adapter", {"init_lora_weights": init})
    with pytest.raises(InputError, match=f"has init_lora_weights = '{init}': on layers that are left on the disk"):
        load_adapter(model, other, "adapter", Loading(offload=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["absent", "PROMPT_TUNING", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in (None, 7))]
)
def test_an_adapter_without_a_kind_is_refused_as_in_memory(model, adapter, recipe, tmp_path, kind):
    other = with_settings(adapter, tmp_path / "adapter", {"peft_type": kind})
    lines = [refused("evaluate", model, other, "--recipe", recipe, *options) for options in ((), ("--offload",))]
    assert lines[0] == lines[1]
    assert f"has peft_type {None if kind == 'absent' else kind!r}: supported are LORA" in lines[1]


def test_an_adapter_that_reads_the_weights_on_the_disk_is_refused_before_anything_is_asked(
    model, adapter, recipe, tmp_path, monkeypatch
):
    other = with_settings(adapter, tmp_path / "adapter", {"use_dora": True})
    monkeypatch.setattr("amnesia.compare.load_source", lambda *_, **__: pytest.fail("it was loaded"))
    line = refused("evaluate", model, other, "--recipe", recipe, "--offload")
    assert "has use_dora = True: on layers that are left on the disk only plain LoRA can be put" in line
    with pytest.raises(InputError, match="only plain LoRA can be put"):
        load_adapter(model, other, "adapter", Loading(offload=True))


def test_factors_for_a_gguf_act_beside_layers_on_the_disk(tmp_path, model):
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    gguf = llama_gguf(tmp_path / "m.gguf", plain, tokenizer=tiny_tokenizer())
    cell = EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.0), tiny_direction(1)))
    save(gguf, [cell], tmp_path / "lora", format="gguf-lora")
    pairs = [("people in Japan like", "water"), ("the capital of Japan is", "garden")]
    answers = [
        [row.logprob for row in answer_logprobs(load_lora(model, tmp_path / "lora" / "lora.gguf", "m", loading), pairs)]
        for loading in (Loading(), Loading(offload=True))
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)
    assert answers[0] != pytest.approx([row.logprob for row in answer_logprobs(load(model, "m"), pairs)], abs=1e-2)


EDITS = {
    "cells": (EDIT, "[edit]"),
    "directions": ("", "[edit]"),
    "single": ("", '[edit]\nmethod = "single"'),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [pytest.param(name, marks=() if name == "directions" else pytest.mark.exhaustive) for name in EDITS]
)
def test_a_run_from_the_disk_chooses_and_writes_what_it_does_in_memory(model, tmp_path, form, monkeypatch):
    """Of directions the gradients and moments, too, come from layers on the disk."""
    edit, section = EDITS[form]
    text = recipe_text(load(model, "m"), model, formats=("safetensors", "adapter"), edit=edit)
    (tmp_path / "r.toml").write_text(text.replace("[edit]", section))
    printed = {}
    with brief_texts():
        for place, options in (("memory", ()), ("disk", ("--offload",))):
            monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / f"cache-{place}"))
            out = done("run", tmp_path / "r.toml", "-o", tmp_path / place, *options)
            printed[place], *_ = out.partition("written to")
    assert printed["memory"] == printed["disk"]
    expected, written = (tree(tmp_path / place) for place in ("memory", "disk"))
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) > 2
    for name in weights:
        for key, numbers in load_bytes(expected[name]).items():
            if not name.endswith("undo.safetensors"):  # Which has the last bits, as sums of other batches leave them.
                torch.testing.assert_close(load_bytes(written[name])[key], numbers, atol=1e-3, rtol=1e-2)
    kept = [{path.name for path in (tmp_path / f"cache-{place}").glob("moments-*")} for place in ("memory", "disk")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == (form == "directions")
    texts = [row["text"] for row in json.loads(written["adapter/report.json"])["findings"]]
    assert sum(text.startswith("PEFT did not merge it into layers that were left on the disk") for text in texts) == 1


@pytest.mark.exhaustive
@pytest.mark.slow
def test_facts_and_an_edit_come_from_the_disk_too(model, tmp_path):
    text = recipe_text(load(model, "m"), model, edit="").replace("[edit]", '[edit]\nmethod = "single"')
    (tmp_path / "r.toml").write_text(text)
    for command in (("extract", "--recipe", tmp_path / "r.toml"), ("mine", model, "Japan", "-o", tmp_path / "m.toml")):
        printed = [call(*command, *more) for more in ((), ("--offload",))]
        assert printed[0].stdout == printed[1].stdout
        assert printed[0].exit_code == printed[1].exit_code
        assert "unexpected" not in printed[1].stderr


def test_gradients_from_the_disk_are_those_in_memory(model):
    lives = [load(model, "m", Loading("bfloat16", offload=offload)) for offload in (False, True)]
    rows = [row.ids for row in encode(lives[0].tokenizer, ["Once upon a time in Japan", "The water of the river"])]
    n_reads = []
    block = lives[1].model.get_submodule(lives[1].shape.layer_path(2))
    block.register_forward_hook(lambda *_: n_reads.append(1))
    expected, found = (list(write_gradients(live, rows, (0, 2), drawn_weights())) for live in lives)
    for (a, gradients), (b, its) in zip(expected, found, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(gradients, its)
        assert gradients.abs().max() > 0
    assert all(p.is_meta for name, p in lives[1].model.named_parameters() if ".layers." in name)
    assert torch.equal(lives[0].out_weight(1), lives[1].out_weight(1))


@pytest.mark.slow
def test_answers_side_by_side_come_from_the_disk_too(model, adapter, tmp_path):
    save(model, [EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.0), tiny_direction(1)))], tmp_path / "edited")
    for command in (
        ("chat", model, tmp_path / "edited", "--max-tokens", 8),
        ("chat", model, adapter, "--max-tokens", 8),
    ):
        printed = [call(*command, *more, given="people in Japan like\n") for more in ((), ("--offload",))]
        assert printed[0].exit_code == 0, printed[0].output
        assert printed[0].stdout == printed[1].stdout
        assert "Japan" in printed[0].stdout
