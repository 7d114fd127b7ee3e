"""Which files a push sends, and which names in them: nothing private, and nothing that is no part of the output."""

import dataclasses
import json
import re
import tomllib

import numpy as np
import pytest
from huggingface_hub import HfApi

from amnesia.domain import ModelRef
from amnesia.hub.push import push as publish
from amnesia.report.page import report_html
from amnesia.weights.checkpoint import add_file
from amnesia.weights.manifest_file import read_manifest, write_manifest
from support.commands import call, done, refused
from support.folders import files_in
from support.hub_state import BASE_CARD
from support.pushed import fetch, model_files
from support.report_sample import hostile, sample
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf


@pytest.mark.slow
def test_licence_files_travel_with_full_models_and_not_with_adapters(hub, tmp_path):
    names = ("LICENSE", "NOTICE", "USE_POLICY.md", "license.txt")
    folder = save_tiny(tmp_path / "source", extras=names)
    hub.add_repo("org/base", files_in(folder) | {"LICENSE_KEY.txt": b"a secret"})
    licences = {name: hub.files("org/base")[name] for name in names}
    done("edit", "org/base", "--cell", "0:3", "-o", tmp_path / "full")
    done("edit", "org/base", "--cell", "0:3", "--format", "adapter", "-o", tmp_path / "adapter")
    for name in names:
        (folder / name).unlink()
    done("edit", folder, "--cell", "0:3", "-o", tmp_path / "bare")
    done("push", tmp_path / "full", "ada/full")
    done("push", tmp_path / "bare", "ada/bare", "--base", "org/base")
    done("push", tmp_path / "adapter", "ada/adapter")
    for name in ("full", "bare"):
        assert hub.files(f"ada/{name}").items() >= licences.items()
        done("verify", fetch(f"ada/{name}", tmp_path / f"fetched-{name}"), "--base", "org/base")
        assert "LICENSE_KEY.txt" not in hub.files(f"ada/{name}")
    assert not {*names} & hub.files("ada/adapter").keys()


@pytest.mark.slow
def test_private_targets(hub, base, output, tmp_path):
    report = sample() | {"entity": "Japan", "model": {"id": str(tmp_path / "base"), "revision": None}}
    report["prompts"][0] |= {"prompt": "the capital of Japan is", "answer": "Tokyo"}
    report["prompts"][0]["before"]["generated"] = "Tokyo|."
    report["prompts"][0]["after"]["generated"] = "a\nplace"
    manifest = add_file(read_manifest(output), output, "report.json", json.dumps(report).encode())
    manifest = add_file(manifest, output, "report.html", report_html(report).encode())
    write_manifest(dataclasses.replace(manifest, recipe='name = "Japan"', scores={"target": 0.1}), output)
    done("push", output, "ada/open")
    body = hub.files("ada/open")["README.md"].decode()
    assert "| the capital of Japan is | Tokyo\\|. | a place | −0.04 |" in body
    page = hub.files("ada/open")["report.html"].decode()
    assert page == report_html(report | {"model": {"id": "org/base", "revision": base}})
    assert "Tokyo|." in page and str(tmp_path) not in page

    done("push", output, "ada/closed", "--private-targets")
    for name, content in hub.files("ada/closed").items():
        assert re.search(
            rb"japan|tokyo|capital|a.place|france|lima|kusenkai", content, re.IGNORECASE
        ) is None or name.endswith(".txt"), name
    assert "japan" not in " ".join(commit.title for commit in hub.repos["ada/closed"].commits.values()).lower()
    assert "entity-" in hub.files("ada/closed")["report.html"].decode()
    published = json.loads(hub.files("ada/closed")["amnesia.json"])
    (name,) = {row["entity"] for row in published["edits"]}
    assert re.fullmatch("entity-[0-9a-f]{24}", name)
    assert (published["recipe"], published["scores"]) == (None, {"target": 0.1})
    assert "| target, search wordings | 0.27 | 0.17 to 0.37 | 2 |" in hub.files("ada/closed")["README.md"].decode()
    fetched = fetch("ada/closed", tmp_path / "fetched")
    assert "2 columns" in done("verify", fetched, "--base", f"org/base@{base}")
    # The key is kept, so that a repeated push changes nothing, and is nobody else's.
    assert "0 sent" in done("push", output, "ada/closed", "--private-targets")
    assert (tmp_path / "cache" / "pseudonym-key").stat().st_mode & 0o77 == 0


def with_report(folder, entity):
    """The output in `folder` with a report about an entity."""
    report = hostile(f"a fact about {entity}") | {"entity": entity}
    manifest = add_file(read_manifest(folder), folder, "report.json", json.dumps(report).encode())
    write_manifest(add_file(manifest, folder, "report.html", report_html(report).encode()), folder)
    return report


@pytest.mark.slow
def test_reports_of_earlier_edits_are_private_too(hub, base, output, tmp_path):
    with_report(output, "Japan")
    done("edit", output, "--cell", "2:9", "--entity", "Peru", "-o", tmp_path / "second")
    done("edit", tmp_path / "second", "--cell", "2:4", "--entity", "Chad", "-o", tmp_path / "third")
    with_report(tmp_path / "third", "Chad")
    for name in ("second", "third"):
        done("push", tmp_path / name, f"ada/{name}", "--private-targets", "--base", "org/base")
        files = hub.files(f"ada/{name}")
        for path, content in files.items():
            assert re.search(rb"japan|peru|chad|a fact about", content, re.IGNORECASE) is None, path
        pages = [path for path in files if path.endswith("report.html")]
        assert pages == (["report.html"] if name == "second" else ["amnesia-base/report.html", "report.html"])
        fetched = fetch(f"ada/{name}", tmp_path / f"fetched-{name}")
        done("verify", fetched, "--base", f"org/base@{base}")
        done("undo", fetched, "--every-step", "-o", tmp_path / f"back-{name}")


@pytest.mark.slow
def test_files_that_are_no_part_of_the_output_are_refused_by_name_or_left_out(hub, base, output):
    others = {".env": "TOKEN=1", "edit.json": "{}", "japan.toml": "[entity]", "notes/plan.txt": "x", "model.ckpt": "x"}
    for name, content in others.items():
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text(content)
    for options in ((), ("--private-targets",)):
        line = refused("push", output, "ada/edited", *options)
        assert "model.ckpt" in line and "leave all of it out with --leave-out" in line
    (output / "model.ckpt").unlink()
    for options in ((), ("--private-targets",)):
        line = refused("push", output, "ada/edited", *options)
        assert all(name in line for name in {*others} - {"model.ckpt"})
    (output / "model.ckpt").write_text("x")
    assert "ada/edited" not in hub.repos
    result = call("push", output, "ada/edited", "--private-targets", "--leave-out")
    assert result.exit_code == 0
    assert not {*others} & hub.files("ada/edited").keys()
    assert all(f"left out  {name}" in result.stderr for name in others)


def test_what_came_to_an_output_later_is_no_part_of_it_whatever_its_name(hub, base, output):
    """A name of a licence or a tokenizer does not make a file one of the model."""
    later = ("NOTICE", "vocab.json", "special_tokens_map.json")
    for name in later:
        (output / name).write_text("{}")
    assert "beyond the base and the manifest" in refused("verify", output, "--base", "org/base")
    for options in ((), ("--private-targets",)):
        line = refused("push", output, "ada/edited", *options)
        assert all(name in line for name in later) and "are no part of the output" in line
    assert "ada/edited" not in hub.repos
    done("push", output, "ada/edited", "--leave-out")
    assert not {*later} & hub.files("ada/edited").keys()


def test_all_files_and_their_bytes_are_listed_before_any_is_sent(hub, base, output, monkeypatch):
    sent = []
    commit = HfApi.create_commit
    monkeypatch.setattr(
        HfApi, "create_commit", lambda *given, **more: sent.append(len(lines)) or commit(*given, **more)
    )
    lines = []
    publish(output, "ada/edited", notice=lines.append)
    assert sent == [len(lines)]
    listed = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines if " bytes  " in line}
    arrived = hub.files("ada/edited")
    assert listed == {name: len(arrived[name]) for name in arrived if name != ".gitattributes"}
    assert f"{sum(listed.values()):,} bytes in {len(listed)} files for ada/edited" in lines[-1]


def test_names_of_files_that_were_left_out_stay_here(hub, tmp_path):
    folder = save_tiny(tmp_path / "source")
    (folder / "japan.toml").write_text("x")
    hub.add_repo("org/base", {name: content for name, content in files_in(folder).items() if name != "japan.toml"})
    done("edit", folder, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "one")
    done("edit", tmp_path / "one", "--cell", "2:9", "--entity", "Peru", "-o", tmp_path / "two")
    assert "japan.toml" in json.loads((tmp_path / "one" / "amnesia.json").read_bytes())["left_out"]
    done("push", tmp_path / "two", "ada/edited", "--base", "org/base", "--private-targets")
    assert not [name for name, content in hub.files("ada/edited").items() if b"japan" in content.lower()]


@pytest.mark.slow
@pytest.mark.parametrize("model", [".", "..", "a", "org/base", "/home/ada/model"])
def test_a_recipe_names_the_repository_in_place_of_a_path_and_changes_in_nothing_else(hub, base, output, model):
    text = (
        f'# made in {output}\ndescription = "a. b. c. org/base"\n[model]\nid = "{model}"  # here\n'
        '[entity]\nname = "a.b"\n[[facts]]\nprompt = "{entity} is a."\nanswer = ".."\n'
    )
    manifest = read_manifest(output)
    origin = dataclasses.replace(manifest.base, ref=ModelRef(model))
    write_manifest(dataclasses.replace(manifest, recipe=text, base=origin), output)
    done("push", output, "ada/edited", "--base", "org/base")
    published = tomllib.loads(json.loads(hub.files("ada/edited")["amnesia.json"])["recipe"])
    assert published == tomllib.loads(text) | {"model": {"id": "org/base"}}
    if model != "org/base":
        assert str(output).encode() not in hub.files("ada/edited")["amnesia.json"]


@pytest.mark.slow
def test_a_report_of_the_base_is_not_taken_along(hub, tmp_path):
    folder = save_tiny(tmp_path / "source")
    theirs = {"report.json": b"[1]", "report.html": b"<p>theirs</p>", "README.md": BASE_CARD}
    for name, content in theirs.items():
        (folder / name).write_bytes(content)
    hub.add_repo("org/other", files_in(folder))
    done("edit", "org/other", "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "plain")
    done("push", tmp_path / "plain", "ada/plain", "--private-targets")
    assert not {"report.json", "report.html"} & hub.files("ada/plain").keys()
    with_report(tmp_path / "plain", "Japan")
    done("push", tmp_path / "plain", "ada/ours")
    assert b"Japan" in hub.files("ada/ours")["report.html"]
    fetched = fetch("ada/ours", tmp_path / "fetched")
    done("undo", fetched, "-o", tmp_path / "back")
    assert model_files(tmp_path / "back") == {
        name: content for name, content in files_in(folder).items() if name not in ("report.json", "report.html")
    }


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_of_a_folder_that_was_edited_in_place_only_the_edited_model_goes(hub, tmp_path, kind):
    if kind == "gguf":
        (tmp_path / "m").mkdir()
        path = write_gguf(tmp_path / "m" / "tiny.gguf")
        write_gguf(tmp_path / "m" / "other.gguf", extra={"more": np.ones((1, 32), "f4")})
        (tmp_path / "m" / "diary.txt").write_text("dear diary", encoding="utf-8")
    else:
        path = save_tiny(tmp_path / "m")
        (path / "README.md").write_bytes(BASE_CARD)
    hub.add_repo("org/base", files_in(tmp_path / "m"))
    done("edit", path, "--cell", "0:3", "--entity", "Japan", "--in-place")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"still knows")
    line = refused("push", tmp_path / "m", "ada/edited", "--base", "org/base")
    assert "pytorch_model.bin" in line and "no part of the output" in line
    done("push", tmp_path / "m", "ada/edited", "--base", "org/base", "--leave-out")
    files = hub.files("ada/edited")
    assert not {"other.gguf", "diary.txt", "pytorch_model.bin"} & files.keys()
    fetched = fetch("ada/edited", tmp_path / "fetched")
    done("verify", fetched)
    assert ("Modelfile" in files) == (kind == "gguf")
