"""Whatever a Hub does wrong: it is tried again, or one line says what went wrong and what is there now."""

import os
import random
import re
import subprocess
import sys

import pytest

from support.commands import call, done, refused
from support.folders import ROOT, files_in


def test_nobody_is_logged_in(hub, output, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.reset()
    assert "no token for the Hub: log in with `hf auth login`" in refused("push", output, "ada/edited")
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_geheim\u00e9wort", "hf_geheim\u201cwort", "hf_geheimwort\U0001f511"])
def test_a_token_that_no_header_takes_is_named_and_not_shown(hub, output, monkeypatch, tmp_path, token):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.reset()
    for arguments in (
        ("push", output, "ada/edited"),
        ("localize", "org/other", "Japan"),
        ("edit", "org/other", "--cell", "0:1", "--format", "adapter", "-o", tmp_path / "adapter"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and "HF_TOKEN" in result.stderr.splitlines()[-1]
        assert "geheim" not in result.output


# What a push asks of the Hub, in this order, and whether the commit is made by then.
STAGES = {
    "GET /api/models/org/base/*": False,
    "POST /api/repos/create": False,
    "GET /api/models/ada/edited": False,
    "POST /api/validate-yaml": False,
    "POST */preupload/*": False,
    "POST *lfs-files/duplicate": False,
    "POST *objects/batch": False,
    "PUT *": False,
    "POST *.git/info/lfs/verify": False,
    "POST */commit/main": False,
    "GET /api/models/ada/edited/revision/main": True,
    "GET /ada/edited/resolve/*": True,
    "GET /ada/edited/[0-9a-f]*": True,
}
FAULTS = {
    "slow": {"delay": 0.02},
    "401": {"status": 401},
    "403": {"status": 403},
    "409": {"status": 409},
    "429": {"status": 429, "headers": {"Retry-After": "1"}},
    "500": {"status": 500},
    "cut in the middle": {"cut_after": 20},
    "cut before the answer": {"cut_answer": True},
    "wrong bytes": {"corrupt": True},
}
# A push can do without what these give: it then sends the files itself, says less in the card, or asks elsewhere.
HARMLESS = {
    *((stage, name) for stage in ("GET /api/models/org/base/*", "POST *lfs-files/duplicate") for name in FAULTS),
    ("POST /api/repos/create", "409"),
}


def is_whole(files, output):
    own = files_in(output)
    return all(files.get(name) == own[name] for name in own if name not in ("README.md", "amnesia.json"))


def sampled(cases, n, seed=5):
    """`n` cases of each test in the normal tier, the others in the exhaustive one."""
    chosen = random.Random(seed).sample([*cases], n)
    return [pytest.param(*case, marks=[] if case in chosen else pytest.mark.exhaustive) for case in cases]


def sampled_stages():
    """The stages of a push; in the normal tier the upload of files, one after the commit, and two of the others."""
    upload = "PUT *"
    after = [(stage,) for stage, is_committed in STAGES.items() if is_committed]
    others = [(stage,) for stage, is_committed in STAGES.items() if not is_committed and stage != upload]
    return [*sampled(others, 2), upload, *sampled(after, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", sampled_stages())
def test_a_push_succeeds_or_says_in_one_line_what_is_there(hub, output, stage):
    for name, fault in FAULTS.items():
        hub.repos.pop("ada/edited", None)
        hub.reset()
        made = hub.fail(stage, times=999, **fault)
        result = call("push", output, "ada/edited")
        assert made.hits > 0, name
        files = hub.files("ada/edited") if "ada/edited" in hub.repos else {}
        if result.exit_code == 0:
            assert name == "slow" or "wrong" in name or (stage, name) in HARMLESS, name
            assert is_whole(files, output)
            continue
        assert name != "slow"
        assert result.exit_code == 2 and result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        head = hub.repos["ada/edited"].refs["refs/heads/main"] if files else None
        if STAGES[stage] or (name == "cut before the answer" and stage.startswith("POST */commit")):
            assert is_whole(files, output), line
            assert head in line, line
        else:
            assert "nothing was published" in line, line
            assert files.keys() <= {".gitattributes"}
    hub.reset()
    done("push", output, "ada/edited")
    assert is_whole(hub.files("ada/edited"), output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("POST /api/repos/create", {"status": 401}, "ada/edited refuses access (401: a fault on demand)"),
        ("POST /api/repos/create", {"status": 500}, "cannot be reached (500: a fault on demand): check the network"),
        ("POST /api/validate-yaml", {"status": 500}, "could not be written (500"),
        ("PUT *", {"status": 403, "times": 9}, "could not be written (403"),
        ("POST */commit/main", {"status": 412}, "could not be written (412"),
        ("POST */commit/main", {"status": 429}, "could not be written (429"),
    ],
)
def test_what_failed_is_named_and_what_was_sent_is_not_sent_again(hub, output, pattern, fault, message):
    hub.fail(pattern, **fault)
    line = refused("push", output, "ada/edited")
    assert message in line
    assert "nothing was published" in line
    sent = {request.line for request in hub.requests if request.line.startswith("PUT") and request.status == 200}
    hub.reset()
    done("push", output, "ada/edited")
    assert not sent & set(hub.lines("PUT *"))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.processes
def test_the_token_appears_nowhere(hub, output, tmp_path):
    token = os.environ["HF_TOKEN"]
    texts = []
    for pattern in ("POST /api/repos/create", "PUT *", "POST */commit/main", "GET /api/models/ada/*"):
        hub.fail(pattern, status=500, times=99)
        result = call("push", output, "ada/edited")
        assert result.exit_code == 2
        texts.append(result.output + result.stderr)
        hub.faults.clear()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
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


# What is asked for a model that is edited as a whole, and for one of which only the edited tensors are fetched.
FETCHES = {
    "safetensors": (
        "GET /api/models/org/base/revision/*",
        "HEAD /org/base/resolve/*",
        "GET /org/base/resolve/*",
        "GET /org/base/[0-9a-f]*",
    ),
    "adapter": ("GET /api/models/org/base", "GET /org/base/resolve/*", "GET /org/base/[0-9a-f]*"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "stage", "times"),
    [
        case
        for times in (1, 999)
        for case in sampled([(form, stage, times) for form in FETCHES for stage in FETCHES[form]], 2, seed=times)
    ],
)
def test_a_fetched_model_is_whole_or_nothing_is_written(hub, base, tmp_path, monkeypatch, form, stage, times):
    def edit(name):
        # Nothing that was fetched before is of use.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache of" / name))
        options = ("--cell", "0:3", "--entity", "Japan", "--format", form, "-o", tmp_path / name)
        return call("edit", "org/base", *options)

    assert edit("calm").exit_code == 0
    calm = files_in(tmp_path / "calm")
    failed = None
    for name, fault in FAULTS.items():
        hub.reset()
        made = hub.fail(stage, times=times, **fault)
        result = edit(name)
        assert made.hits > 0, name
        if result.exit_code == 0:
            # The client asks again where that can help; what has no body, or one of JSON, is not spoilt.
            assert times == 1 or name == "slow" or stage.startswith(("HEAD", "GET /api/")), name
            assert files_in(tmp_path / name) == calm, name
            continue
        assert name != "slow"
        assert result.exit_code == 2 and result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert "org/base" in line or ".safetensors" in line
        assert not (tmp_path / name).exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        failed = name
    hub.reset()
    # What a failure left in the cache is of no harm.
    name = failed or "nothing failed"
    again = edit(name)
    assert again.exit_code == 0, (name, again.stderr)
    assert files_in(tmp_path / name) == calm
