"""Whatever a Hub does wrong: it is tried again, or one line says what went wrong and what is there now."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import call, done, files_in, refused

ROOT = Path(__file__).parents[1]


def test_nobody_is_logged_in(hub, output, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.reset()
    assert "no token for the Hub: log in with `hf auth login`" in refused("push", output, "ada/edited")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("POST /api/repos/create", {"status": 401}, "ada/edited refuses access (401: a fault on demand)"),
        (
            "POST /api/repos/create",
            {"status": 500},
            "cannot be reached (500: a fault on demand): nothing was published",
        ),
        ("POST /api/validate-yaml", {"status": 500}, "could not be written (500"),
        ("POST */preupload/*", {"status": 403, "times": 9}, "could not be written (403"),
        ("PUT *", {"status": 403, "times": 9}, "could not be written (403"),
        ("PUT *", {"status": 500, "times": 99}, "could not be written (500"),
        ("PUT *", {"cut_after": 99, "times": 99}, "could not be written ("),
        ("POST *.git/info/lfs/verify", {"status": 404, "times": 9}, "could not be written (404"),
        ("POST */commit/main", {"status": 500}, "could not be written (500"),
        ("POST */commit/main", {"status": 412}, "could not be written (412"),
        ("POST */commit/main", {"status": 429}, "could not be written (429"),
        ("POST */commit/main", {"cut_after": 10}, "could not be written ("),
    ],
)
def test_a_fault_publishes_nothing_says_so_and_can_be_repeated(hub, output, pattern, fault, message):
    hub.fail(pattern, **fault)
    line = refused("push", output, "ada/edited")
    assert message in line
    if "ada/edited" in hub.repos:
        assert hub.files("ada/edited").keys() == {".gitattributes"}
        assert "nothing was published, it is as it was; push again" in line
    sent = {request.line for request in hub.requests if request.line.startswith("PUT") and request.status == 200}
    hub.reset()
    done("push", output, "ada/edited")
    assert "amnesia.json" in hub.files("ada/edited")
    assert not sent & set(hub.lines("PUT *"))


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST */preupload/*", {"status": 503}),
        ("PUT *", {"status": 500}),
        ("PUT *", {"cut_after": 999}),
        ("PUT *", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("POST *objects/batch", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("PUT *", {"delay": 0.3}),
        ("GET /ada/edited/resolve/*", {"status": 502}),
    ],
)
def test_a_passing_fault_does_not_matter(hub, output, pattern, fault):
    made = hub.fail(pattern, **fault)
    done("push", output, "ada/edited")
    assert made.hits > 0
    assert "amnesia.json" in hub.files("ada/edited")


def test_an_answer_that_got_lost(hub, output):
    # The commit is made, but the connection ends before the client hears of it.
    hub.fail("POST */commit/main", cut_answer=True)
    line = refused("push", output, "ada/edited")
    assert re.search(r"commit [0-9a-f]{40} is there now, maybe this one; push again", line)
    assert "0 sent" in done("push", output, "ada/edited")


@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("GET /api/models/ada/edited/revision/*", {"sha256": "0" * 64}, "holds another model-0000"),
        ("GET /ada/edited/resolve/*/amnesia.json", {"corrupt": True}, "amnesia.json of ada/edited@"),
        ("GET /ada/edited/[0-9a-f]*", {"corrupt": True, "times": 99}, "model-0000"),
    ],
)
def test_what_arrived_wrong_is_noticed(hub, output, pattern, fault, message):
    hub.fail(pattern, **fault)
    line = refused("push", output, "ada/edited")
    assert message in line
    assert re.search(r"ada/edited@[0-9a-f]{40}", line)


def test_the_token_appears_nowhere(hub, output, tmp_path):
    token = os.environ["HF_TOKEN"]
    texts = []
    for pattern in ("POST /api/repos/create", "PUT *", "POST */commit/main", "GET /api/models/ada/*"):
        hub.fail(pattern, status=500, times=99)
        result = call("push", output, "ada/edited")
        assert result.exit_code == 2
        texts.append(result.output + result.stderr)
        hub.faults.clear()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DEBUG": "0", "HF_HUB_VERBOSITY": "debug"}
    run = subprocess.run(
        [sys.executable, "-m", "amnesia", "push", output, "ada/edited"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "files at" in run.stdout
    texts += [run.stdout, run.stderr]
    assert not any(token in text for text in texts)
    contents = [*hub.files("ada/edited").values(), *files_in(output).values(), *files_in(tmp_path / "cache").values()]
    assert not any(token.encode() in content for content in contents)
    assert any(request.with_token for request in hub.requests)
