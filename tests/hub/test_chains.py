"""Edits of edited models: each publication is proven against the model that it names, and goes back to it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download

from amnesia.files.disk import MANIFEST_NAME
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.commands import done, refused
from support.folders import files_in
from support.report_sample import sample
from support.tiny_gguf import write_gguf


def fetch(repo, folder):
    return Path(snapshot_download(repo, local_dir=folder))


def published(folder):
    return {name: content for name, content in files_in(folder).items() if not name.startswith(".")}


def lines_of_the_card(folder, command):
    """What the card in a folder says to do, as arguments: `edited` is this folder."""
    found = re.findall(rf"^amnesia ({command} edited\S*.*?)(?: *#.*)?$", (folder / "README.md").read_text(), re.M)
    return [[str(folder) + word[6:] if word.startswith("edited") else word for word in line.split()] for line in found]


@pytest.fixture
def first(output):
    """The commit of ada/first, the published edit of org/base, which has a report."""
    from amnesia.weights.checkpoint import add_file

    report = json.dumps(sample() | {"entity": "Japan"}).encode()
    write_manifest(add_file(read_manifest(output), output, "report.json", report), output)
    done("push", output, "ada/first")
    return HfApi().model_info("ada/first").sha


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "adapter", "gguf"])
def test_a_card_that_was_written_on_is_not_lost(hub, base, tmp_path, kind):
    if kind == "gguf":
        path = write_gguf(tmp_path / "tiny.gguf")
        hub.add_repo("org/base", {"tiny.gguf": path.read_bytes()})
    options = ("--cell", "0:3", "--format", kind)
    done("edit", "org/base" if kind != "gguf" else path, *options, "-o", tmp_path / "out")
    done("push", tmp_path / "out", "ada/edited", "--base", "org/base")
    fetched = fetch("ada/edited", tmp_path / "fetched")
    (fetched / ".gitattributes").unlink()
    shutil.rmtree(fetched / ".cache")
    known = {row["file"] for row in json.loads((fetched / MANIFEST_NAME).read_bytes())["written"]}
    assert "README.md" in known
    with (fetched / "README.md").open("a") as file:
        file.write("hours of work")
    done("verify", fetched)
    before = files_in(fetched)
    assert "README.md was changed since" in refused(
        "edit", path if kind == "gguf" else "org/base", *options, "-o", fetched, "--force"
    )
    if kind != "adapter":
        assert "README.md" in (line := refused("undo", fetched, "--in-place")) and "it would be lost" in line
    assert files_in(fetched) == before


@pytest.mark.slow
def test_an_edit_of_a_published_one_is_proven_against_it_and_leads_back_to_it(hub, first, tmp_path):
    done("edit", "ada/first", "--cell", "2:9", "--multiplier", "0.3", "--entity", "Peru", "-o", tmp_path / "second")
    done("push", tmp_path / "second", "ada/second")
    fetched = fetch("ada/second", tmp_path / "fetched")
    (line,) = [line for line in lines_of_the_card(fetched, "verify") if "--base" in line]
    assert line[-1] == f"ada/first@{first}"
    for base in (line[-1], "org/base", tmp_path / "source"):
        assert "compared with the base" in done("verify", fetched, "--base", base)
    done("undo", fetched, "-o", tmp_path / "back")
    assert published(tmp_path / "back") == published(fetch("ada/first", tmp_path / "first"))
    done("undo", fetched, "--in-place")
    assert published(fetched) == published(tmp_path / "first")
    done("undo", fetched, "--in-place")
    assert published(fetched).keys() >= published(tmp_path / "source").keys()


@pytest.mark.slow
def test_an_edit_of_a_folder_names_its_base_only_if_that_holds_the_folder(hub, first, output, tmp_path):
    cell = ("--cell", "2:9", "--entity", "Peru", "-o")
    done("edit", output, *cell, tmp_path / "second")
    line = refused("push", tmp_path / "second", "ada/second", "--base", "ada/first")
    assert f"ada/first@{first} holds the edit for Japan with other names" in line and "ada/second" not in hub.repos
    again = re.search(r"`amnesia (replay \S+ -o )NEW (--base \S+)`", line)
    done(*again[1].split(), tmp_path / "new", *again[2].split())
    done("push", tmp_path / "new", "ada/second", "--base", "ada/first")
    done("push", tmp_path / "second", "ada/third", "--base", "org/base")
    for name, base in (("ada/second", f"ada/first@{first}"), ("ada/third", "org/base@")):
        fetched = fetch(name, tmp_path / name)
        (line,) = [line for line in lines_of_the_card(fetched, "verify") if "--base" in line]
        assert line[-1].startswith(base)
        done(*line)
    other = read_manifest(fetch("ada/second", tmp_path / "ada" / "second"))
    assert [step.base.ref.name for step in other.history()] == ["ada/first", "org/base"]


@pytest.mark.slow
def test_with_private_targets_no_edit_beneath_is_named_and_the_proof_of_the_card_holds(hub, first, tmp_path):
    done("edit", "ada/first", "--cell", "2:9", "--entity", "Peru", "-o", tmp_path / "second")
    done("push", tmp_path / "second", "ada/second", "--private-targets")
    fetched = fetch("ada/second", tmp_path / "fetched")
    assert not [name for name, content in published(fetched).items() if re.search(rb"japan|peru", content, re.I)]
    assert [line[-1][:9] for line in lines_of_the_card(fetched, "verify")][1:] == ["org/base@"]
    for command in ("verify", "undo"):
        for line in lines_of_the_card(fetched, command):
            done(*[str(tmp_path / word) if word == "original" else word for word in line])
    assert (
        b"names what was to be forgotten, which is not published" in (tmp_path / "original" / "README.md").read_bytes()
    )


@pytest.mark.slow
def test_an_adapter_for_an_edited_model_is_published_for_that_and_no_other(hub, first, output, tmp_path):
    cell = ("--cell", "2:9", "--entity", "Peru", "--format", "adapter", "-o")
    done("edit", output, *cell, tmp_path / "here")
    done("edit", "ada/first", *cell, tmp_path / "there")
    for name in ("here", "there"):
        line = refused("push", tmp_path / name, "ada/lora", "--base", "org/base")
        assert "org/base@" in line and "does not hold the edit for Japan that the adapter was made on" in line
        assert "give its id with --base, or make one adapter of both edits for the original" in line
    line = refused("push", tmp_path / "here", "ada/lora")
    assert "out is an edited model of this machine" in line and "push it, and give its id with --base" in line
    assert "ada/lora" not in hub.repos
    for name, options in (
        ("here", ("--base", "ada/first")),
        ("there", ()),
        ("here", ("--base", "ada/first", "--private-targets")),
    ):
        repo = f"ada/{name}{len(options)}"
        done("push", tmp_path / name, repo, *options)
        fetched = fetch(repo, tmp_path / repo)
        config = json.loads((fetched / "adapter_config.json").read_bytes())
        assert (config["base_model_name_or_path"], config["revision"]) == ("ada/first", first)
        card = (fetched / "README.md").read_text()
        assert "1 cell, by layer (cells): 2 (1)" in card
        assert "They act on the edited model `ada/first`, whose own edits are not in the adapter." in card
        (line,) = [line for line in lines_of_the_card(fetched, "verify") if "--base" in line]
        assert line[-1] == f"ada/first@{first}"
        for base in (line[-1], output):
            assert "compared with the base" in done("verify", fetched, "--base", base)
        assert "is not the model that the adapter was made for" in refused("verify", fetched, "--base", "org/base")
        (replaying,) = lines_of_the_card(fetched, "replay")
        done(*[str(tmp_path / f"again {repo}") if word == "again" else word for word in replaying])


@pytest.mark.slow
def test_a_gguf_that_was_fetched_and_edited_again_is_proven_against_what_was_fetched(hub, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    hub.add_repo("org/base", {"tiny.gguf": path.read_bytes(), "LICENSE": b"the licence"})
    done("edit", path, "--cell", "0:3", "--multiplier", "0.3", "-o", tmp_path / "first")
    done("push", tmp_path / "first", "ada/first", "--base", "org/base")
    before = fetch("ada/first", tmp_path / "before")
    done("edit", before / "tiny.gguf", "--cell", "1:5", "-o", tmp_path / "second")
    done("push", tmp_path / "second", "ada/second", "--base", "ada/first")
    fetched = fetch("ada/second", tmp_path / "fetched")
    for line in lines_of_the_card(fetched, "verify"):
        done(*line)
    for base in ("ada/first", before / "tiny.gguf", path):
        assert "compared with the base" in done("verify", fetched, "--base", base)
    (replaying,) = lines_of_the_card(fetched, "replay")
    done(*[str(tmp_path / "again") if word == "again" else word for word in replaying])
    assert (tmp_path / "again" / "tiny.gguf").read_bytes() == (fetched / "tiny.gguf").read_bytes()
    done("undo", fetched, "-o", tmp_path / "back")
    assert published(tmp_path / "back") == published(before)
    done("undo", fetched, "--in-place")
    assert published(fetched) == published(before)
    (fetched / "README.md").write_text("hours of work")
    assert "README.md" in refused("undo", fetched, "--in-place")
