"""The first layers of a model by themselves: what is read and fetched for them, and what is refused."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from amnesia.domain import Loading
from amnesia.live.loading import load, load_source
from amnesia.localization import cells
from amnesia.sources.resolve import resolve
from support.commands import done, refused
from support.folders import files_in
from support.tiny import tiny_model
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def few_contrasts(monkeypatch):
    """Each of the other names is asked about in one prompt."""
    monkeypatch.setattr(cells, "SETTINGS", replace(cells.SETTINGS, contrasts_per_prompt=1))


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def model(request, tmp_path):
    tiny_model(request.param, vocab_size=VOCAB_SIZE).save_pretrained(tmp_path / "m", max_shard_size="8KB")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def shards(folder):
    return json.loads((folder / INDEX).read_bytes())["weight_map"]


def holding(folder, wanted):
    return {file for name, file in shards(folder).items() if wanted(name)}


def localized(model, *options):
    found = json.loads(done("localize", model, "Japan", "Paris", "--json", *options))
    return found["layers"], found["entities"]


@pytest.mark.slow
def test_only_what_the_layers_need_has_to_be_there(model):
    expected = {layers: localized(model, "--layers", layers) for layers in ("0", "0-1")}
    first = (".0.", ".1.", "embed_tokens.", "wte.", "wpe.")
    gone = {*shards(model).values()} - holding(model, lambda name: any(part in name for part in first))
    assert gone & holding(model, lambda name: "lm_head" in name) and gone & holding(model, lambda name: ".2." in name)
    for name in gone:
        (model / name).unlink()
    for layers, found in expected.items():
        assert localized(model, "--layers", layers) == found
    for command in (("localize", model, "Japan"), ("localize", model, "Japan", "--layers", "0-2")):
        assert "shards are missing: fetch the whole model" in refused(*command)


@pytest.mark.slow
def test_the_cells_of_a_range_are_those_of_the_whole(model, monkeypatch):
    found = localized(model, "--layers", "0-1")
    monkeypatch.setattr("amnesia.cli.experiment.n_read", lambda span: None)
    assert localized(model, "--layers", "0-1") == found


@pytest.mark.parametrize(("dtype", "held"), [("bfloat16", "bfloat16"), ("auto", "bfloat16"), ("float32", "float32")])
def test_weights_are_of_the_type_that_is_computed_in(tmp_path, dtype, held):
    save_tiny_live(tmp_path, dtype=torch.bfloat16)
    part = load_source(resolve(tmp_path, n_layers=1), Loading(dtype))
    whole = load_source(resolve(tmp_path), Loading(dtype)).model.state_dict()
    assert part.model.dtype == getattr(torch, held)
    for name, tensor in part.model.state_dict().items():
        assert tensor.dtype == whole[name].dtype and torch.equal(tensor, whole[name])


def test_damage_is_looked_for_in_what_is_read(tmp_path):
    save_tiny_live(tmp_path)
    for layer in (0, 2):
        key = f"model.layers.{layer}.mlp.up_proj.weight"
        path = tmp_path / shards(tmp_path)[key]
        tensors = load_file(path)
        tensors[key][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
        if layer:
            assert f"weight {key} of" in refused("localize", tmp_path, "Japan")
        else:
            assert f"weight {key} of" in refused("localize", tmp_path, "Japan", "--layers", "0")
            tensors[key][0, 0] = 0.0
            save_file(tensors, path, metadata={"format": "pt"})
    localized(tmp_path, "--layers", "0-1")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["layers", "localize", "atlas", "robustness"])
def test_of_a_repository_only_the_shards_of_the_layers_are_fetched(hub, tmp_path, command):
    folder = save_tiny_live(tmp_path / "m")
    hub.add_repo("org/base", files_in(folder))
    options = {
        "layers": ["--prompts", "3", "--no-plots"],
        "localize": [],
        "atlas": ["--no-directions", "--no-plots", "-o", tmp_path / "atlas"],
        "robustness": ["--no-direction", "--given-only", "--no-plots"],
    }
    done(command, "org/base", "Japan", "--layers", "0", *options[command])
    (snapshot,) = (tmp_path / "hf").rglob("snapshots/*")
    fetched = {path.name for path in snapshot.glob("*.safetensors")}
    first = holding(folder, lambda name: name.startswith(("model.layers.0.", "model.embed_tokens.")))
    assert fetched == first != {*shards(folder).values()}
    # The whole is fetched when it is asked for.
    assert load(resolve("org/base").folder, "whole").n_held is None
    assert {path.name for path in snapshot.glob("*.safetensors")} == {*shards(folder).values()}


SINGLE = "model.safetensors"
STORAGE = "GET /org/base/[0-9a-f]*"


def one_file(folder):
    """A model of eight layers in one file."""
    tiny_model("llama", vocab_size=VOCAB_SIZE, num_hidden_layers=8).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert (folder / SINGLE).is_file() and not (folder / INDEX).exists()
    return folder


@pytest.mark.slow
def test_of_a_single_file_only_the_bytes_of_the_layers_are_fetched_once(hub, tmp_path):
    folder = one_file(tmp_path / "m")
    repo = hub.add_repo("ada/base", files_in(folder), private=True)
    arguments = ("localize", "ada/base", "Japan", "Paris", "--layers", "0", "--json")
    found, expected = json.loads(done(*arguments)), localized(folder, "--layers", "0")
    assert (found["layers"], found["entities"]) == expected
    needed = sum(
        tensor.nbytes for name, tensor in load_file(folder / SINGLE).items() if "embed_tokens" in name or ".0." in name
    )
    ranges = [
        row.down for row in hub.requests if fnmatchcase(row.line, STORAGE.replace("org", "ada")) and row.status == 206
    ]
    size_of_header = 8 + int.from_bytes((folder / SINGLE).read_bytes()[:8], "little")
    assert sum(ranges) == needed + size_of_header
    assert needed < 0.5 * (folder / SINGLE).stat().st_size
    (part,) = (tmp_path / "cache" / "parts").iterdir()
    stored, whole = load_file(part / SINGLE), load_file(folder / SINGLE)
    assert {name for name in whole if "embed_tokens" in name or ".0." in name} == stored.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in stored.items())
    hub.reset()
    assert json.loads(done(*arguments)) == found
    assert not [row for row in hub.requests if row.status == 206]
    # A new commit is another model; the whole is fetched when it is asked for.
    repo.add_commit("refs/heads/main", dict(repo.find("main").tree), "again", None)
    done(*arguments)
    assert len(list((tmp_path / "cache" / "parts").iterdir())) == 2
    assert load(resolve("ada/base").folder, "whole").n_held is None


def large_shards(folder):
    """A model of 24 layers in three files, of which the second has the layers in the middle."""
    model = tiny_model("llama", vocab_size=VOCAB_SIZE, num_hidden_layers=24)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=size * 2 // 5)
    tiny_tokenizer().save_pretrained(folder)
    assert len({*shards(folder).values()}) == 3
    return folder


@pytest.mark.slow
def test_of_large_shards_only_the_bytes_of_the_layers_are_fetched_once(hub, tmp_path):
    folder = large_shards(tmp_path / "m")
    hub.add_repo("org/base", files_in(folder))
    held = holding(folder, lambda name: "embed_tokens" in name or ".layers.0." in name)
    tensors = {name: tensor for file in held for name, tensor in load_file(folder / file).items()}
    wanted = {name: tensor for name, tensor in tensors.items() if "embed_tokens" in name or ".layers.0." in name}
    needed = sum(tensor.nbytes for tensor in wanted.values())
    assert needed < 0.5 * sum((folder / file).stat().st_size for file in held)
    arguments = ("localize", "org/base", "Japan", "Paris", "--layers", "0", "--json")
    found, expected = json.loads(done(*arguments)), localized(folder, "--layers", "0")
    assert (found["layers"], found["entities"]) == expected
    headers = sum(8 + int.from_bytes((folder / file).read_bytes()[:8], "little") for file in held)
    assert sum(row.down for row in hub.requests if row.status == 206) == needed + headers
    assert not list((tmp_path / "hf").rglob("snapshots/*/*.safetensors"))
    (part,) = (tmp_path / "cache" / "parts").iterdir()
    stored = load_file(part / SINGLE)
    assert stored.keys() == wanted.keys() and not (part / INDEX).exists()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in stored.items())
    hub.reset()
    assert json.loads(done(*arguments)) == found
    assert not [row for row in hub.requests if row.status == 206]
    # The whole is fetched when it is asked for, and then read.
    assert load(resolve("org/base").folder, "whole").n_held is None
    assert resolve("org/base", n_layers=1).folder.parent.name == "snapshots"


@pytest.mark.slow
@pytest.mark.parametrize("obstacle", ["no ranges", "most layers", "another index"])
def test_shards_are_fetched_whole_where_that_is_better(hub, tmp_path, obstacle):
    files = files_in(large_shards(tmp_path / "m"))
    if obstacle == "another index":
        index = json.loads(files[INDEX])
        index["weight_map"]["model.layers.0.of.nothing"] = index["weight_map"]["model.embed_tokens.weight"]
        files[INDEX] = json.dumps(index).encode()
    hub.add_repo("org/base", files)
    if obstacle == "no ranges":
        hub.fail(STORAGE, whole_file=True, times=99)
    arguments = ("localize", "org/base", "Japan", "--layers", "0-16" if obstacle == "most layers" else "0")
    if obstacle == "another index":
        assert "model.layers.0.of.nothing" in refused(*arguments)
    else:
        done(*arguments)
    assert list((tmp_path / "hf").rglob("snapshots/*/*.safetensors"))
    assert not (tmp_path / "cache" / "parts").exists() or not list((tmp_path / "cache" / "parts").iterdir())


def test_what_other_programs_fetched_is_not_copied(hub, tmp_path):
    others = {"pytorch_model.bin": b"weights", "other.gguf": b"weights", "model.fp16.safetensors": b"weights"}
    hub.add_repo("org/base", files_in(one_file(tmp_path / "m")) | others)
    snapshot_download("org/base", allow_patterns=[*others])
    done("localize", "org/base", "Japan", "--layers", "0")
    (part,) = (tmp_path / "cache" / "parts").iterdir()
    assert {path.name for path in part.iterdir()} == {path.name for path in (tmp_path / "m").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["shorter", "empty", "gone", "settings"])
def test_a_damaged_part_is_fetched_again(hub, tmp_path, damage):
    hub.add_repo("org/base", files_in(one_file(tmp_path / "m")))
    arguments = ("localize", "org/base", "Japan", "--layers", "0", "--json")
    found = done(*arguments)
    (part,) = (tmp_path / "cache" / "parts").iterdir()
    content = (part / SINGLE).read_bytes()
    if damage == "settings":
        (part / "config.json").unlink()
    elif damage == "gone":
        (part / SINGLE).unlink()
    else:
        (part / SINGLE).write_bytes(content[:-1] if damage == "shorter" else b"")
    assert done(*arguments) == found
    assert (part / SINGLE).read_bytes() == content


@pytest.mark.slow
def test_a_damaged_part_is_there_until_another_is_whole(hub, tmp_path):
    """Whoever reads it keeps it, and it stays where the Hub gives nothing."""
    hub.add_repo("org/base", files_in(one_file(tmp_path / "m")))
    arguments = ("localize", "org/base", "Japan", "--layers", "0", "--json")
    found = done(*arguments)
    (part,) = (tmp_path / "cache" / "parts").iterdir()
    content = (part / SINGLE).read_bytes()
    (part / SINGLE).write_bytes(content[:-1])
    hub.fail(STORAGE, skip=2, cut_after=0, times=99)
    assert "the connection broke" in refused(*arguments)
    assert (part / SINGLE).read_bytes() == content[:-1] and list(part.parent.iterdir()) == [part]
    hub.reset()
    with (part / SINGLE).open("rb") as reader:
        assert done(*arguments) == found
        assert reader.read() == content[:-1]
    assert (part / SINGLE).read_bytes() == content and list(part.parent.iterdir()) == [part]


@pytest.mark.slow
@pytest.mark.parametrize("obstacle", ["no ranges", "most layers", "fetched before"])
def test_a_single_file_is_fetched_whole_where_that_is_better(hub, tmp_path, obstacle):
    hub.add_repo("org/base", files_in(one_file(tmp_path / "m")))
    if obstacle == "no ranges":
        hub.fail(STORAGE, whole_file=True, times=99)
    elif obstacle == "fetched before":
        resolve("org/base")
    done("localize", "org/base", "Japan", "--layers", "0-6" if obstacle == "most layers" else "0")
    (snapshot,) = (tmp_path / "hf").rglob("snapshots/*")
    assert (snapshot / SINGLE).is_file()
    assert not (tmp_path / "cache" / "parts").exists() or not list((tmp_path / "cache" / "parts").iterdir())


def test_a_connection_that_breaks_leaves_no_part(hub, tmp_path):
    hub.add_repo("org/base", files_in(one_file(tmp_path / "m")))
    hub.fail(STORAGE, skip=2, cut_after=0, times=99)
    assert "the connection broke" in refused("localize", "org/base", "Japan", "--layers", "0")
    assert not list((tmp_path / "cache" / "parts").iterdir())
    hub.reset()
    done("localize", "org/base", "Japan", "--layers", "0")
