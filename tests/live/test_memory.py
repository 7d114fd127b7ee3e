"""Models that are too large: what they take is told and refused before it is taken, and layers can stay on the disk."""

import json

import pytest
import torch
from safetensors.torch import load_file

from amnesia.domain import Cell, Loading
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.facts.questions import facts_of_recipe
from amnesia.live import memory
from amnesia.live.loading import load, load_adapter, load_source
from amnesia.live.memory import need_of
from amnesia.outputs.commands import save
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.weights.checkpoint import open_source
from support.commands import done, refused, succeed
from support.tiny import save_tiny, tiny_direction, tiny_model
from support.tiny_recipe import recipe_text
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


def test_what_is_too_large_is_refused_before_it_is_built(model, recipe, free, monkeypatch):
    whole = bytes_in(model, 4)
    free(whole - 1)
    for command in (("evaluate", model), ("extract",), ("mine", model, "Japan", "-o", recipe.parent / "m.toml")):
        with monkeypatch.context() as patch:
            patch.setattr("amnesia.live.loading.open_model", lambda *_: pytest.fail("it was built"))
            line = refused(*command, *(("--recipe", recipe) if command[0] != "mine" else ()))
        assert f"takes {whole / 1e9:.1f} GB of memory in float32" in line
        assert "give --dtype bfloat16, in which nothing is copied, or evaluate it with --offload" in line
    free(whole)
    scores(model, "--recipe", recipe)


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


def test_what_is_left_on_the_disk_answers_as_in_memory(model, recipe, tmp_path):
    edits = EntityEdits("Japan", (ColumnEdit(Cell(0, 3), -3.0), ColumnEdit(Cell(2, 7)), tiny_direction(1)))
    save(model, [edits], tmp_path / "edited")
    for options in ((), ("--dtype", "bfloat16", "--sweep")):
        compared = (model, tmp_path / "edited", "--recipe", recipe, *options)
        assert scores(*compared, "--offload") == scores(*compared)


def test_layers_are_read_from_where_they_are(model):
    live = load(model, "m", Loading("float32", offload=True))
    for name, parameter in live.model.named_parameters():
        assert parameter.is_meta == (".layers." in name)
    assert live.max_tokens > load(model, "m").max_tokens


def test_experts_on_the_disk_answer_as_in_memory(tmp_path):
    tiny_model("qwen2_moe", vocab_size=VOCAB_SIZE).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    text = recipe_text(load(tmp_path / "m", "m"), tmp_path / "m", edit="")
    (tmp_path / "r.toml").write_text(text)
    assert facts_of_recipe(parse_recipe(text)).questions
    compared = (tmp_path / "m", "--recipe", tmp_path / "r.toml")
    assert scores(*compared, "--offload") == scores(*compared)


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


def test_an_adapter_is_refused_before_anything_is_asked(model, recipe, tmp_path, monkeypatch):
    done("edit", model, *CELLS, "--format", "adapter", "-o", tmp_path / "adapter")
    monkeypatch.setattr("amnesia.compare.load_source", lambda *_: pytest.fail("it was loaded"))
    line = refused("evaluate", model, tmp_path / "adapter", "--recipe", recipe, "--offload")
    assert "is an adapter, which cannot be put on layers that --offload leaves on the disk: give the merged" in line


def test_an_adapter_on_layers_on_the_disk_is_refused_and_nothing_is_written(model, tmp_path, monkeypatch):
    done("edit", model, *CELLS, "--format", "adapter", "-o", tmp_path / "adapter")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="cannot be put on layers that are left on the disk"):
        load_adapter(model, tmp_path / "adapter", "adapter", Loading("bfloat16", offload=True))
    assert not any((tmp_path / "here").iterdir())
