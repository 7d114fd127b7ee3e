"""Publishing to a Hub: what arrives can be verified, loaded and undone, and the card says what it is."""

import re
import shutil

import pytest
from huggingface_hub import HfApi

from amnesia.domain import ModelRef
from amnesia.outputs.write import edits_from_cells, save
from amnesia.sources import resolve as sources
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.manifest_file import read_manifest
from support.commands import call, done, refused
from support.folders import files_in
from support.hub_state import BASE_CARD
from support.pushed import card_of, fetch, model_files
from support.tiny import save_tiny
from support.tiny_gguf import write_gguf


@pytest.mark.slow
def test_what_is_pushed_can_be_fetched_verified_and_undone(hub, base, output, tmp_path):
    local = files_in(output)
    assert "sent" in done("push", output, "ada/edited")
    assert files_in(output) == local
    assert hub.repos["ada/edited"].private
    fetched = fetch("ada/edited", tmp_path / "fetched")
    assert "proven by the hashes" in done("verify", fetched)
    assert "compared with the base" in done("verify", fetched, "--base", f"org/base@{base}")
    done("undo", fetched, "-o", tmp_path / "back")
    assert model_files(tmp_path / "back") == files_in(resolve(f"org/base@{base}").folder)
    for name, content in local.items():
        if name not in ("README.md", "amnesia.json"):
            assert hub.files("ada/edited")[name] == content, name


@pytest.mark.slow
def test_a_base_on_the_hub_proves_a_folder_with_more_files(hub, base, output, tmp_path):
    # The folder has a file that no model needs, which is fetched for the proof and for nothing else.
    source = fetch("org/base", tmp_path / "whole")
    done("edit", source, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "all")
    assert (tmp_path / "all" / "additional_chat_templates" / "short.jinja").exists()
    assert not (resolve("org/base").folder / "assets").exists()
    assert "compared with the base" in done("verify", tmp_path / "all", "--base", "org/base")
    assert (resolve("org/base").folder / "additional_chat_templates" / "short.jinja").exists()
    # What is in the cache for other reasons is not missed in an output that never had it.
    assert "compared with the base" in done("verify", output, "--base", "org/base")
    (output / "LICENSE").write_bytes(b"another licence")
    assert "LICENSE" in refused("verify", output, "--base", "org/base")
    (output / "LICENSE").unlink()
    assert "LICENSE is missing" in refused("verify", output, "--base", "org/base")


@pytest.mark.slow
def test_the_card_says_what_the_base_says(hub, base, output, adapter):
    done("push", output, "ada/edited")
    metadata, body = card_of(hub.files("ada/edited"))
    assert metadata == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["en", "fr"],
        "tags": ["amnesia", "unlearning", "model-editing"],
    }
    assert "2 cells, by layer (cells): 0 (2)" in body
    assert 'from_pretrained("ada/edited")' in body
    assert base in body
    assert hub.files("ada/edited")["amnesia-base/README.md"] == BASE_CARD
    done("push", adapter, "ada/adapter")
    metadata, body = card_of(hub.files("ada/adapter"))
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("adapter", "peft")
    assert f'from_pretrained("org/base", revision="{base}", dtype="auto")' in body


@pytest.mark.slow
def test_a_second_push_does_nothing_and_a_changed_one_removes_what_is_stale(hub, base, output, tmp_path):
    done("push", output, "ada/edited")
    head = hub.repos["ada/edited"].refs["refs/heads/main"]
    hub.reset()
    assert "0 sent, 0 copied" in done("push", output, "ada/edited")
    assert hub.lines("POST */commit/*") == hub.lines("PUT *") == []
    assert hub.repos["ada/edited"].refs["refs/heads/main"] == head
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="figure.txt", repo_id="ada/edited")
    other = save_tiny(tmp_path / "other", max_shard_size="1GB", seed=0)
    (other / "README.md").write_bytes(BASE_CARD)
    hub.add_repo("org/single", files_in(other))
    done("edit", "org/single", "--cell", "1:1", "--entity", "Peru", "-o", tmp_path / "single")
    done("push", tmp_path / "single", "ada/edited")
    weights = {name for name in hub.files("ada/edited") if "safetensors" in name}
    assert weights == {"model.safetensors"}
    assert hub.files("ada/edited")["figure.txt"] == b"mine"
    (fetch("ada/edited", tmp_path / "fetched") / "figure.txt").unlink()
    assert "1 column in" in done("verify", tmp_path / "fetched", "--base", "org/single")


def test_a_repository_with_another_model_is_left_alone(hub, output):
    hub.add_repo("ada/mine", {"model.safetensors": b"precious"}, private=True)
    line = refused("push", output, "ada/mine")
    assert "ada/mine holds model.safetensors, which was not put there by a push" in line
    assert hub.files("ada/mine") == {"model.safetensors": b"precious"}


@pytest.mark.slow
def test_visibility(hub, output):
    done("push", output, "ada/open", "--public")
    assert not hub.repos["ada/open"].private
    assert "ada/open is public already: push with --public" in refused("push", output, "ada/open")
    done("push", output, "ada/closed")
    assert "exists and is private, and stays so" in call("push", output, "ada/closed", "--public").stderr
    assert hub.repos["ada/closed"].private


@pytest.mark.slow
def test_branches_and_pull_requests(hub, output):
    done("push", output, "ada/edited", "--branch", "edits/japan")
    assert "amnesia.json" in hub.files("ada/edited", "edits/japan")
    assert "amnesia.json" not in hub.files("ada/edited")
    text = done("push", output, "ada/edited", "--create-pr")
    assert f"{hub.url}/ada/edited/discussions/1" in text
    assert "amnesia.json" in hub.files("ada/edited", "refs/pr/1")
    assert "amnesia.json" not in hub.files("ada/edited")
    assert "drop --branch or --create-pr" in refused("push", output, "ada/edited", "--create-pr", "--branch", "x")


@pytest.mark.slow
def test_outputs_that_are_not_fit(hub, base, output, adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no amnesia.json" in refused("push", tmp_path / "empty", "ada/edited")
    (tmp_path / "two").mkdir()
    shutil.copytree(output, tmp_path / "two" / "a")
    shutil.copytree(adapter, tmp_path / "two" / "b")
    assert "holds 2 outputs: push one of" in refused("push", tmp_path / "two", "ada/edited")
    touched = output / read_manifest(output).base.files[0].file
    content = bytearray(touched.read_bytes())
    content[-1] ^= 1
    touched.write_bytes(content)
    assert "bytes outside of the declared columns differ" in refused("push", output, "ada/edited")
    assert "ada/edited" not in hub.repos


def test_an_edit_that_was_taken_back_by_another_is_not_published_as_one(hub, output, tmp_path):
    cells = ("--cell", "0:3", "--cell", "0:7", "--entity", "Japan", "--allow-overlap")
    done("edit", output, *cells, "-o", tmp_path / "back")
    line = refused("push", tmp_path / "back", "ada/edited")
    assert "is as before the edits, so that nothing is suppressed" in line and "ada/edited" not in hub.repos
    done("edit", output, *cells[2:], "-o", tmp_path / "half")
    done("push", tmp_path / "half", "ada/edited")


@pytest.mark.slow
def test_a_base_that_was_a_folder_needs_its_repository(hub, base, tmp_path):
    source = tmp_path / "source"
    done("edit", source, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "one")
    done("edit", tmp_path / "one", "--cell", "2:9", "--multiplier", "-1.3", "--entity", "Peru", "-o", tmp_path / "two")
    done("edit", source, "--cell", "0:3", "--entity", "Japan", "--format", "adapter", "-o", tmp_path / "lora")
    assert "the base one is a file of this machine" in refused("push", tmp_path / "two", "ada/edited")
    hub.add_repo("org/other", files_in(save_tiny(tmp_path / "other", seed=1)))
    line = refused("push", tmp_path / "two", "ada/edited", "--base", "org/other")
    assert re.search(r"org/other@\w+ is not the base: its model-\S+ is another file", line)
    for name in ("two", "lora"):
        done("push", tmp_path / name, f"ada/{name}", "--base", "org/base")
        assert all(str(tmp_path).encode() not in content for content in hub.files(f"ada/{name}").values())
        fetched = fetch(f"ada/{name}", tmp_path / f"fetched-{name}")
        done("verify", fetched, "--base", source if name == "two" else f"org/base@{base}")
    done("undo", tmp_path / "fetched-two", "--every-step", "-o", tmp_path / "back")
    assert model_files(tmp_path / "back") == files_in(source)


@pytest.mark.slow
def test_a_gguf_takes_card_licence_and_modelfile_along(hub, tmp_path, monkeypatch):
    gguf = write_gguf(tmp_path / "tiny.gguf")
    licence = {"LICENSE": b"the licence", "NOTICE.txt": b"the notice"}
    hub.add_repo("ada/Llama-other", {"other.gguf": b""})
    hub.add_repo(
        "meta/Tiny-GGUF", {"tiny.gguf": gguf.read_bytes(), "README.md": b"---\nlicense: llama3.2\n---\n", **licence}
    )
    done("edit", gguf, "--cell", "0:3", "--entity", "Japan", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "Modelfile").read_bytes() == b"FROM ./tiny.gguf\n"
    result = call("push", tmp_path / "out", "ada/edited", "--base", "meta/Tiny-GGUF")
    assert result.exit_code == 0, result.stderr
    assert (
        "the licence llama3.2 of meta/Tiny-GGUF asks that names of derived models begin with 'Llama'" in result.stderr
    )
    files = hub.files("ada/edited")
    assert files.items() >= licence.items()
    metadata, body = card_of(files)
    assert (metadata["base_model_relation"], metadata["license"]) == ("quantized", "llama3.2")
    assert "Built with Llama." in body
    assert "ollama create edited -f Modelfile" in body
    assert (
        "begin with 'Llama'"
        not in call("push", tmp_path / "out", "ada/Llama-edited", "--base", "meta/Tiny-GGUF").stderr
    )
    fetched = fetch("ada/edited", tmp_path / "fetched")
    for base in (gguf, "meta/Tiny-GGUF"):
        assert "compared with the base" in done("verify", fetched, "--base", base)
    assert "has no file tiny.gguf" in refused("verify", fetched, "--base", "ada/Llama-other")
    done("replay", fetched / "amnesia.json", "-o", tmp_path / "again")
    assert (tmp_path / "again" / "tiny.gguf").read_bytes() == files["tiny.gguf"]
    done("undo", fetched, "-o", tmp_path / "back")
    assert (tmp_path / "back" / "tiny.gguf").read_bytes() == gguf.read_bytes()


def test_a_lora_file_of_llama_cpp_is_published_without_its_base(hub, tmp_path):
    gguf = write_gguf(tmp_path / "tiny.gguf")
    hub.add_repo("meta/Tiny-GGUF", {"tiny.gguf": gguf.read_bytes(), "LICENSE": b"the licence"})
    cell = ("--cell", "0:3", "--entity", "Japan")
    done("edit", gguf, *cell, "--format", "gguf-lora", "-o", tmp_path / "out")
    done("push", tmp_path / "out", "ada/lora", "--base", "meta/Tiny-GGUF")
    done("push", tmp_path / "out", "ada/closed", "--base", "meta/Tiny-GGUF", "--private-targets")
    files = hub.files("ada/lora")
    assert {*files} - {".gitattributes"} == {"README.md", "amnesia.json", "lora.gguf"}
    closed = hub.files("ada/closed")
    assert closed.keys() == files.keys() and closed["lora.gguf"] == files["lora.gguf"]
    assert not [name for name, content in closed.items() if b"Japan" in content]
    done("verify", fetch("ada/closed", tmp_path / "closed"), "--base", gguf)
    metadata, body = card_of(files)
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("adapter", "gguf")
    assert "--lora edited/lora.gguf" in body
    fetched = fetch("ada/lora", tmp_path / "fetched")
    for base in (gguf, "meta/Tiny-GGUF"):
        assert "compared with the base" in done("verify", fetched, "--base", base)
    done("replay", fetched / "amnesia.json", "--base", gguf, "-o", tmp_path / "again")
    assert (tmp_path / "again" / "lora.gguf").read_bytes() == files["lora.gguf"]


def test_a_gguf_in_parts_is_proven_and_made_again_from_its_repository(hub, tmp_path):
    (tmp_path / "m").mkdir()
    first = write_gguf(tmp_path / "m" / "tiny.gguf", parts=3)
    hub.add_repo("org/parts", {path.name: path.read_bytes() for path in first.parent.iterdir()} | {"q4.gguf": b"other"})
    done("edit", first, "--cell", "1:3", "-o", tmp_path / "out")
    done("push", tmp_path / "out", "ada/edited", "--base", "org/parts")
    assert "Modelfile" not in hub.files("ada/edited")
    hub.reset()
    assert "compared with the base" in done("verify", tmp_path / "out", "--base", "org/parts")
    assert hub.lines("GET /org/parts/resolve/*/q4.gguf") == []
    fetched = fetch("ada/edited", tmp_path / "fetched")
    done("replay", fetched / "amnesia.json", "-o", tmp_path / "again")
    parts = {name: content for name, content in files_in(tmp_path / "out").items() if name.endswith(".gguf")}
    assert len(parts) == 3
    assert files_in(tmp_path / "again").items() >= parts.items()


def test_a_built_in_base_is_named_by_its_card(hub, tmp_path):
    folder = save_tiny(tmp_path / "m")
    save(
        "adapter",
        ModelSource(folder, ModelRef("smollm2-135m")),
        [edits_from_cells(["0:3"], -1.0, "Japan")],
        tmp_path / "out",
    )
    done("push", tmp_path / "out", "ada/edited")
    metadata, body = card_of(hub.files("ada/edited"))
    assert (metadata["base_model"], metadata["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "without Japan" in body
    # There is no repository of this name.
    assert 'from_pretrained(resolve("smollm2-135m").folder, dtype="auto")' in body and "vllm serve" not in body
    assert '("smollm2-135m"' not in body.replace('resolve("smollm2-135m")', "")


@pytest.mark.slow
def test_edits_on_top_of_each_other_name_what_the_first_was_made_of(hub, base, tmp_path):
    folder = tmp_path / "source"
    first = edits_from_cells(["0:3"], -1.0, "Japan")
    save("safetensors", ModelSource(folder, ModelRef("smollm2-135m")), [first], tmp_path / "known")
    done("edit", f"org/base@{base}", "--cell", "0:3", "-o", tmp_path / "one")
    for name, known in (("known", "smollm2-135m"), ("one", f"org/base@{base}")):
        done("edit", tmp_path / name, "--cell", "1:3", "-o", tmp_path / f"second-{name}")
        done("push", tmp_path / f"second-{name}", f"ada/{name}")
        files = hub.files(f"ada/{name}")
        body = card_of(files)[1]
        assert f"amnesia verify edited --base {known}\n" in body
        assert "amnesia replay edited/amnesia.json -o again\n" in body
    fetched = fetch("ada/one", tmp_path / "fetched")
    done("verify", fetched, "--base", f"org/base@{base}")
    done("replay", fetched / "amnesia.json", "-o", tmp_path / "again")
    for path in fetched.glob("model*.safetensors"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_base_that_is_gone_is_no_obstacle(hub, base, output):
    del hub.repos["org/base"]
    result = call("push", output, "ada/edited")
    assert result.exit_code == 0, result.stderr
    assert "licence and unchanged files cannot be taken from there" in result.stderr
    assert card_of(hub.files("ada/edited"))[0]["base_model"] == "org/base"


@pytest.mark.slow
def test_edited_models_are_fetched_with_their_manifest(hub, base, output, tmp_path):
    done("push", output, "ada/edited")
    source = resolve("ada/edited")
    assert read_manifest(source.folder).entity == "Japan"
    assert "already has it edited for 'Japan'" in refused("edit", "ada/edited", "--cell", "0:3", "-o", tmp_path / "new")
    done("edit", "ada/edited", "--cell", "1:3", "--entity", "Peru", "-o", tmp_path / "new")
    done("verify", tmp_path / "new")
    assert sources.is_on_disk("ada/edited")
