"""What a push sends, in bytes: only what is new, once, by each of the protocols for large files."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from amnesia.sources.resolve import resolve
from amnesia.weights.manifest_file import read_manifest
from support.commands import call, done, refused
from support.folders import ROOT, files_in
from support.tiny import save_tiny

DUPLICATE = "POST *lfs-files/duplicate"


def shards_of(files):
    return {name: content for name, content in files.items() if name.endswith(".safetensors")}


def arrived(hub, pattern):
    """Requests that match and were answered with success, as (address, bytes that came)."""
    lines = set(hub.lines(pattern))
    return [(row.line, row.up) for row in hub.requests if row.line in lines and row.status == 200]


def test_only_the_touched_shard_and_small_files_are_sent(hub, base, output):
    touched = read_manifest(output).base.files
    assert len(touched) == 1
    shards = shards_of(hub.files("org/base"))
    assert len(shards) > 3
    hub.reset()
    result = json.loads(done("push", output, "ada/edited", "--json"))
    assert result["n_copied"] == len(shards) - 1
    small = sum(len(c) for name, c in hub.files("ada/edited").items() if not name.endswith(".safetensors"))
    assert [line.split("/")[-1] for line in hub.lines("PUT *")] == [
        hashlib.sha256(hub.files("ada/edited")[touched[0].file]).hexdigest()
    ]
    requests = sum(request.up for request in hub.requests if "/api/" in request.line or ".git/" in request.line)
    assert hub.up - requests == touched[0].size
    # Small files travel in base64, and their names and first bytes are announced.
    assert requests < 2 * small + 20_000
    untouched = {name: content for name, content in shards.items() if name != touched[0].file}
    assert hub.files("ada/edited").items() >= untouched.items()


def test_a_hub_that_cannot_copy_gets_the_files(hub, base, output):
    hub.fail(DUPLICATE, status=403, times=9)
    done("push", output, "ada/edited")
    assert len(hub.lines("PUT *")) == len(shards_of(hub.files("org/base")))


def test_headers_are_read_back_by_range_and_nothing_more_of_the_weights(hub, base, output):
    hub.reset()
    done("push", output, "ada/edited")
    headers = {name: 8 + int.from_bytes(content[:8], "little") for name, content in shards_of(files_in(output)).items()}
    storage = [row for row in hub.requests if row.line.startswith("GET /ada/edited/") and "/resolve/" not in row.line]
    assert {row.status for row in storage} == {206}
    assert sum(row.down for row in storage) == sum(headers.values())


@pytest.mark.slow
@pytest.mark.parametrize("part_size", [None, 5000], ids=["whole files", "in parts"])
def test_an_interrupted_upload_sends_only_what_is_missing(hub, base, output, part_size):
    hub.part_size = part_size
    hub.reset()
    # Nothing can be copied, so that all shards must be sent; after a few requests the storage fails for good.
    hub.fail(DUPLICATE, status=403, times=99)
    hub.fail("PUT *", status=500, skip=5, times=999)
    line = refused("push", output, "ada/edited")
    assert "nothing was published, it is as it was; push again, and only what is missing is sent" in line
    sizes = {hashlib.sha256(content).hexdigest(): len(content) for content in shards_of(files_in(output)).values()}
    objects = hub.repos["ada/edited"].objects
    first = arrived(hub, "PUT *")
    assert len(first) == 5
    assert len(objects) == 5 if part_size is None else len(objects) < len(sizes)
    missing = {oid: size for oid, size in sizes.items() if oid not in objects}
    assert missing

    hub.reset()
    hub.fail(DUPLICATE, status=403, times=99)
    done("push", output, "ada/edited")
    second = arrived(hub, "PUT *")
    assert {line.split("/")[-1] for line, _ in second} == missing.keys()
    assert sum(size for _, size in second) == sum(missing.values())
    if part_size is not None:
        assert max(size for _, size in second) == part_size
        assert len(hub.lines("POST /api/complete_multipart/*")) == len(missing)
    assert shards_of(hub.files("ada/edited")) == shards_of(files_in(output))


def push_by_xet(output, repo_id):
    """A push in a process of its own, since the compiled client keeps state; it waits only shortly between tries."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_XET"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "20ms",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
        "HF_HUB_VERBOSITY": "debug",
    }
    command = [sys.executable, "-m", "amnesia", "push", output, repo_id]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


XORBS = "POST /v1/xorbs/*"


@pytest.mark.slow
def test_xet_sends_the_touched_shard_once(hub, base, output):
    pytest.importorskip("hf_xet", reason="the client sends large files by Xet only where hf_xet is installed")
    touched = read_manifest(output).base.files[0]
    hub.fail(XORBS, status=500)
    hub.fail("POST */commit/main", status=500)
    run = push_by_xet(output, "ada/edited")
    assert run.returncode == 2, run.stderr
    assert "nothing was published, it is as it was; push again" in run.stderr
    ((_, size),) = arrived(hub, XORBS)
    assert 0.5 * touched.size < size < 1.01 * touched.size + 1000
    assert hub.lines("PUT *") == []
    assert os.environ["HF_TOKEN"] not in run.stdout + run.stderr

    hub.reset()
    run = push_by_xet(output, "ada/edited")
    assert run.returncode == 0, run.stderr
    assert arrived(hub, XORBS) == []
    assert shards_of(hub.files("ada/edited")) == shards_of(files_in(output))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("GET */xet-write-token/*", {"status": 403, "times": 99}),
        (XORBS, {"status": 500, "times": 99}),
        (XORBS, {"cut_after": 100, "times": 99}),
        ("POST /v1/shards", {"status": 400, "times": 99}),
    ],
)
def test_faults_of_xet(hub, base, output, pattern, fault):
    pytest.importorskip("hf_xet", reason="the client sends large files by Xet only where hf_xet is installed")
    hub.fail(pattern, **fault)
    run = push_by_xet(output, "ada/edited")
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "ada/edited could not be written (" in line
    assert "nothing was published, it is as it was; push again" in line
    assert hub.files("ada/edited").keys() == {".gitattributes"}
    assert os.environ["HF_TOKEN"] not in run.stdout + run.stderr
    # Whatever was kept of the failed push, plain uploads do not need it.
    hub.reset()
    assert call("push", output, "ada/edited").exit_code == 0


def test_of_a_repository_only_what_a_model_needs_is_fetched(hub, tmp_path):
    folder = save_tiny(tmp_path / "source", extras=("README.md", "LICENSE"))
    wanted = (
        "preprocessor_config.json processor_config.json video_preprocessor_config.json chat_template.json tekken.json "
        "chat_template.jinja additional_chat_templates/tools.jinja vocab.txt qwen.tiktoken spiece.model NOTICE "
        "License.txt"
    ).split()
    twins = (
        "consolidated.safetensors original/consolidated.00.pth original/tokenizer.model model.fp16.safetensors "
        "pytorch_model.bin onnx/model.onnx fp16/model.safetensors optimizer.pt training_args.bin modeling_x.py .env "
        "LICENSE_KEY.txt vocab.key "
        "tokenizer/model.safetensors model-00001-of-00099.safetensors"
    ).split()
    files = files_in(folder)
    hub.add_repo("org/all", files | dict.fromkeys((*wanted, *twins), b"\nwords"))
    found = resolve("org/all").folder
    assert {*files_in(found)} == {*files, *wanted, ".gitattributes"} & {*hub.files("org/all")}
    # Shards have whatever names the index gives them.
    index = files["model.safetensors.index.json"].replace(b"model-0", b"part-0")
    renamed = {name.replace("model-0", "part-0"): content for name, content in files.items()}
    hub.add_repo("org/renamed", renamed | {"model.safetensors.index.json": index})
    assert {*files_in(resolve("org/renamed").folder)} >= {*renamed}
    done("edit", "org/renamed", "--cell", "0:3", "-o", tmp_path / "out")
    done("verify", tmp_path / "out", "--base", "org/renamed")
