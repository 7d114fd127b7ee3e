"""Adapters for models that are only on the Hub: the bytes of those from disk, little traffic, and nothing else stored."""

import json
import re
import struct
from fnmatch import fnmatchcase

import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.sources.resolve import resolve
from amnesia.weights.adapter import WEIGHTS_NAME
from amnesia.weights.checkpoint import open_source
from amnesia.weights.plan import plan_edits
from support.commands import call
from support.folders import files_in
from support.tiny import save_tiny

CELLS = ("--cell", "0:3", "--cell", "2:40", "--cell", "2:7")
EDITS = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 40)), ColumnEdit(Cell(2, 7)))
# What the Hub is asked for a shard, and what it refers to.
SHARD = "GET /org/base/resolve/*.safetensors"
STORAGE = "GET /org/base/[0-9a-f]*"


def done(result):
    assert result.exit_code == 0, result.stderr
    return result.stdout


def adapter(model, output, *options):
    return call("edit", model, *CELLS, *options, "--format", "adapter", "-o", output)


@pytest.fixture
def model(hub, tmp_path):
    """A model that the Hub has in several shards, and its folder."""
    folder = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    hub.add_repo("org/base", files_in(folder))
    return folder


def refused(result, output):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not output.exists()
    assert not any(path.name.startswith(".out") for path in output.parent.iterdir())
    return lines[0]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_adapter_is_the_one_from_the_downloaded_model(hub, tmp_path, model_type):
    folder = save_tiny(tmp_path / "source", model_type, dtype=torch.bfloat16)
    commit = hub.add_repo("org/base", files_in(folder)).refs["refs/heads/main"]
    done(adapter("org/base", tmp_path / "remote"))
    assert not (tmp_path / "hf").exists()
    assert hub.lines("GET /org/base/resolve/main/*") == []

    resolve(f"org/base@{commit}")
    hub.reset()
    done(adapter(f"org/base@{commit}", tmp_path / "local"))
    assert hub.lines("GET /org/base/resolve/*") == []
    assert files_in(tmp_path / "remote") == files_in(tmp_path / "local")


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_only_headers_and_edited_tensors_are_fetched(hub, tmp_path, model_type):
    folder = save_tiny(tmp_path / "source", model_type, dtype=torch.bfloat16)
    hub.add_repo("org/base", files_in(folder))
    source = open_source(folder)
    plans = plan_edits(source, [EntityEdits("x", EDITS)])
    if model_type == "llama":
        tensors = sum(plan.tensor.size for plan in plans)
    else:
        tensors = sum(len(plan.multipliers) * plan.tensor.shape[1] * 2 for plan in plans)
    headers = sum(len(header.content) for header in source.weights.headers.values())
    small = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
    done(adapter("org/base", tmp_path / "out"))
    assert sum(request.down for request in hub.requests if fnmatchcase(request.line, STORAGE)) == tensors + headers
    listing = sum(request.down for request in hub.requests if "/api/" in request.line)
    assert hub.down == tensors + headers + small + listing
    assert not any(
        request.with_token
        for request in hub.requests
        if request.line.startswith("GET /org/base/") and "resolve" not in request.line
    )


def test_verify_reads_as_little(hub, model, tmp_path):
    done(adapter("org/base", tmp_path / "out"))
    assert "3 columns in 2 tensors" in call("verify", tmp_path / "out").stdout
    hub.reset()
    result = call("verify", tmp_path / "out", "--base", "org/base")
    assert "compared with the base" in result.stdout
    assert hub.down < sum(len(content) for content in hub.files("org/base").values()) / 3
    assert not (tmp_path / "hf").exists()
    hub.add_repo("org/other", files_in(save_tiny(tmp_path / "other", seed=1)))
    line = call("verify", tmp_path / "out", "--base", "org/other").stderr
    assert "is not the model that the adapter was made for: give org/base@" in line


@pytest.mark.parametrize("made_of", ["org/base", "folder"])
def test_verify_takes_a_base_that_lies_in_the_cache_as_a_whole(hub, tmp_path, made_of):
    folder = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    commit = hub.add_repo("org/base", files_in(folder)).refs["refs/heads/main"]
    done(adapter("org/base" if made_of == "org/base" else folder, tmp_path / "out"))
    resolve(f"org/base@{commit}")
    for base in ("org/base", f"org/base@{commit}"):
        assert "compared with the base" in call("verify", tmp_path / "out", "--base", base).stdout


def test_an_edited_model_keeps_its_history(hub, model, tmp_path):
    done(call("edit", model, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "edited"))
    hub.add_repo("org/edited", files_in(tmp_path / "edited"))
    line = refused(adapter("org/edited", tmp_path / "out"), tmp_path / "out")
    assert "already has it edited for 'Japan'" in line
    done(call("edit", "org/edited", "--cell", "1:4", "--format", "adapter", "-o", tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "amnesia.json").read_bytes())
    assert {row["entity"] for row in manifest["previous"]["edits"]} == {"Japan"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, "is gated: accept its terms on the Hub and log in"),
        ({"status": 403}, r"refuses access \(403: a fault on demand\): log in with `hf auth login`"),
        ({"status": 404}, r"cannot be reached \(404"),
        ({"status": 500, "times": 99}, r"cannot be reached \(500: a fault on demand\): check the network"),
        ({"whole_file": True}, "sends whole files only"),
    ],
)
def test_a_hub_that_does_not_give_the_bytes(hub, model, tmp_path, fault, message):
    hub.fail(STORAGE if "whole_file" in fault else SHARD, skip=4, **fault)
    line = refused(adapter("org/base", tmp_path / "out"), tmp_path / "out")
    assert re.search(message, line), line
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429, "headers": {"Retry-After": "0"}}, {"cut_after": 9}])
def test_a_passing_fault_changes_nothing(hub, model, tmp_path, fault):
    done(adapter("org/base", tmp_path / "calm"))
    made = hub.fail(STORAGE, skip=8, times=2, **fault)
    done(adapter("org/base", tmp_path / "out"))
    assert made.hits == 12
    assert files_in(tmp_path / "out") == files_in(tmp_path / "calm")


def test_a_connection_that_keeps_breaking(hub, model, tmp_path):
    hub.fail(STORAGE, skip=3, times=999, cut_after=0)
    line = refused(adapter("org/base", tmp_path / "out"), tmp_path / "out")
    assert "the connection broke at byte" in line
    assert line.endswith(": try again")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", "org/none is neither a folder here nor a repository that the Hub shows you"),
        ("org/base@v9", "org/base@v9 has no such revision: give a branch, tag or commit of org/base"),
        ("org/..", "org/.. is not the name of a repository"),
        ("org/empty", "has no safetensors weights: expected model.safetensors"),
        ("org/pickle", "has only pickle weights"),
        ("org/bare", "has no config.json"),
        ("org/hidden", "is gated"),
    ],
)
def test_what_is_no_model(hub, model, tmp_path, name, message):
    hub.add_repo("org/empty", {"config.json": b"{}"})
    hub.add_repo("org/pickle", {"pytorch_model.bin": b"x"})
    hub.add_repo("org/bare", {"model.safetensors": b"x"})
    hub.add_repo("org/hidden", hub.files("org/base"), gated=True)
    assert message in refused(adapter(name, tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: struct.pack("<Q", 10**8) + content[8:], "claims a header of 100000000 bytes in a file of"),
        (lambda content: content[:-1], "its header describes"),
        (lambda content: content[:4], "too few for a safetensors header"),
        (lambda content: content.replace(b"BF16", b"BF61"), "unknown type"),
    ],
)
def test_a_header_that_lies(hub, model, tmp_path, change, message):
    files = hub.files("org/base")
    name = max(name for name in files if name.endswith(".safetensors"))
    hub.add_repo("org/base", {**files, name: change(files[name])})
    hub.reset()
    assert message in refused(adapter("org/base", tmp_path / "out"), tmp_path / "out")
    assert hub.down < 60_000


def test_small_files_are_checked_against_their_hashes(hub, model, tmp_path):
    hub.fail("GET *config.json", corrupt=True)
    line = refused(adapter("org/base", tmp_path / "out"), tmp_path / "out")
    assert "config.json of org/base@" in line
    assert "the Hub announced" in line


def test_a_full_disk_is_not_taken_for_a_network_fault(hub, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / WEIGHTS_NAME).touch()
    result = adapter("org/base", tmp_path / "out")
    assert "exists and is not empty" in result.stderr
    assert hub.requests == []
