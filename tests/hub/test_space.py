"""The report as a Space beside the model, and outputs that missed their bounds."""

import dataclasses
import json

import pytest
import yaml

from amnesia.report.page import report_html
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.commands import done, refused
from support.report_sample import sample


@pytest.fixture
def reported(output):
    """The output with a report, and a function that makes it say something else."""

    def say(**changes):
        report = sample() | {"entity": "Japan"} | changes
        for name, content in (("report.json", json.dumps(report)), ("report.html", report_html(report))):
            (output / name).unlink(missing_ok=True)
            manifest = read_manifest(output)
            kept = tuple(added for added in manifest.added if added != name)
            manifest = add_file(dataclasses.replace(manifest, added=kept), output, name, content.encode())
            write_manifest(manifest, output)
        return output

    say()
    return say


def body_of(files):
    return files["README.md"].decode().split("---\n", 2)[2].strip().splitlines()


@pytest.mark.slow
def test_an_output_that_missed_its_bounds_is_published_only_when_that_is_wanted(hub, reported):
    output = reported(accepted=False)
    said = refused("push", output, "ada/edited")
    assert "missed the bounds" in said and "--allow-failed" in said
    assert "ada/edited" not in hub.repos
    done("push", output, "ada/edited", "--allow-failed")
    assert body_of(hub.files("ada/edited"))[0].startswith("**This edit missed the bounds")
    done("push", output, "ada/closed", "--allow-failed", "--private-targets")
    assert body_of(hub.files("ada/closed"))[0].startswith("**This edit missed the bounds")
    for accepted in (True, None):
        done("push", reported(accepted=accepted), "ada/edited")
        assert body_of(hub.files("ada/edited"))[0].startswith("# ")


@pytest.mark.slow
def test_a_space_shows_the_report_of_the_model(hub, reported):
    output = reported()
    assert f"report at {hub.url}/spaces/ada/edited" in done("push", output, "ada/edited", "--space")
    files, model = hub.files("spaces/ada/edited"), hub.files("ada/edited")
    assert files["index.html"] == model["report.html"] and files["report.json"] == model["report.json"]
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("static", "index.html", ["ada/edited"])
    assert hub.repos["spaces/ada/edited"].private
    # What is there already is not sent again, and what has changed is.
    n_commits = len(hub.repos["spaces/ada/edited"].commits)
    done("push", output, "ada/edited", "--space")
    assert len(hub.repos["spaces/ada/edited"].commits) == n_commits
    done("push", reported(n_excluded=0), "ada/edited", "--space")
    assert json.loads(hub.files("spaces/ada/edited")["report.json"])["n_excluded"] == 0


@pytest.mark.slow
def test_a_space_keeps_private_what_the_model_keeps_private(hub, reported):
    done("push", reported(), "ada/closed", "--space", "--private-targets")
    for content in hub.files("spaces/ada/closed").values():
        assert b"Japan" not in content and b"Tokyo" not in content and b"France" not in content
    done("push", reported(), "ada/open", "--space", "--public")
    assert not hub.repos["spaces/ada/open"].private


@pytest.mark.slow
def test_a_space_that_is_another_is_left_alone(hub, reported, output):
    files = {"index.html": b"<p>mine</p>", "README.md": b"---\nsdk: static\n---\n"}
    hub.add_repo("spaces/ada/edited", files, private=True)
    assert "was not put there by a push" in refused("push", reported(), "ada/edited", "--space")
    assert hub.files("spaces/ada/edited") == files
    assert "amnesia.json" not in hub.files("ada/edited")
    del hub.repos["spaces/ada/edited"]
    done("push", output, "ada/edited", "--space", "--public")
    assert "is public already" in refused("push", output, "ada/edited", "--space")


def test_a_space_that_cannot_be_written_is_told_from_the_model(hub, reported):
    hub.fail("POST /api/spaces/*/commit/*", status=503, times=99)
    said = refused("push", reported(), "ada/edited", "--space")
    assert "the Space ada/edited" in said and "the model is at" in said
    assert "amnesia.json" in hub.files("ada/edited")
    hub.reset()
    done("push", reported(), "ada/edited", "--space")
    assert "index.html" in hub.files("spaces/ada/edited")


@pytest.mark.parametrize("options", [("--branch", "other"), ("--create-pr",)])
def test_a_space_is_of_the_main_branch(hub, reported, options):
    assert "a Space shows the main branch" in refused("push", reported(), "ada/edited", "--space", *options)


def test_an_output_without_a_report_has_no_space(hub, adapter):
    assert "has no report.html" in refused("push", adapter, "ada/adapter", "--space")
    assert "ada/adapter" not in hub.repos
