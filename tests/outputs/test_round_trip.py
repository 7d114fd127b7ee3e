"""What others download gives the numbers of the report, and loads where this package is not installed."""

import json
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from amnesia.compare import assess
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.loading import load
from amnesia.recipe_file import parse_recipe
from oracles.scores_elsewhere import assert_scores_of_the_reports
from support.commands import done
from support.folders import files_in
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_recipe import recipe_text
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer
from support.tracker import Silent


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    return save_tiny_live(tmp_path / "m")


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["prompts"]


def asked_again(base, edited, recipe):
    result = assess(str(base), str(edited), facts_of_recipe(recipe), Silent())
    return json.loads(json.dumps(result.document["prompts"]))


@pytest.mark.processes
def test_what_is_downloaded_gives_the_numbers_of_the_report(hub, model, tmp_path, monkeypatch):
    cases = [*weights_and_adapter(hub, model, tmp_path / "weights"), gguf(hub, model, tmp_path / "gguf", monkeypatch)]
    assert_scores_of_the_reports(*cases)


def weights_and_adapter(hub, model, folder):
    """What the reports say, and how others load it, of an edited model and of its adapter alone and merged."""
    hub.add_repo("org/base", files_in(model))
    text = recipe_text(load(model, "m"), "org/base", formats=("safetensors", "adapter"))
    folder.mkdir()
    (folder / "japan.toml").write_text(text, encoding="utf-8")
    done("run", folder / "japan.toml", "-o", folder / "out")
    recipe = parse_recipe(text)
    for name in ("safetensors", "adapter"):
        done("push", folder / "out" / name, f"ada/{name}")
        report = report_of(folder / "out" / name)
        again = asked_again("org/base", f"ada/{name}", recipe)
        if name == "safetensors":
            assert again == report
        logprobs = ([row["after"]["logprob"] for row in rows] for rows in (again, report))
        assert next(logprobs) == pytest.approx(next(logprobs), abs=1e-3)
        for form in ("adapter", "merged") if name == "adapter" else ("safetensors",):
            yield report, {"form": form, "model": f"ada/{name}", "base": "org/base", "tokenizer": "org/base"}


def gguf(hub, model, folder, monkeypatch):
    """The same of a GGUF."""
    # The tiny file has no tokenizer; transformers gets it from here.
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tiny_tokenizer())
    folder.mkdir()
    path = llama_gguf(folder / "tiny.gguf", tiny_model("llama", vocab_size=VOCAB_SIZE))
    hub.add_repo("org/base-gguf", {"tiny.gguf": path.read_bytes()})
    text = recipe_text(load(model, "m"), path, formats=("gguf",))
    (folder / "japan.toml").write_text(text, encoding="utf-8")
    done("run", folder / "japan.toml", "-o", folder / "out")
    done("push", folder / "out", "ada/gguf", "--base", "org/base-gguf")
    assert str(folder) not in hub.files("ada/gguf")["amnesia.json"].decode()
    fetched = Path(snapshot_download("ada/gguf", local_dir=folder / "fetched"))
    report = report_of(folder / "out")
    assert asked_again(path, fetched / "tiny.gguf", parse_recipe(text)) == report
    return report, {"form": "gguf", "model": "ada/gguf", "file": "tiny.gguf", "tokenizer": str(model)}
