"""What others download gives the numbers of the report, and loads where this package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import snapshot_download

from amnesia.assessment import assess
from amnesia.cli import main
from amnesia.domain import Cell, ColumnEdit
from amnesia.loading import load
from amnesia.model import apply_edits
from amnesia.questions import facts_of_recipe
from amnesia.recipe import parse_recipe
from test_pipeline import Silent
from tiny import tiny_model
from tiny_gguf import llama_gguf
from tiny_recipe import recipe_text
from tiny_text import VOCAB_SIZE, save_tiny_live, tiny_tokenizer

# A finder that comes first and refuses: the package may be installed where the tests run, but must not be needed.
WITHOUT_AMNESIA = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "amnesia":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.arange(3, 13)[None]
def logits(model):
    with torch.inference_mode():
        return model(ids).logits[0, -1].tolist()
full, adapter = sys.argv[1:]
from peft import PeftModel
base = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
print(json.dumps([logits(AutoModelForCausalLM.from_pretrained(full)), logits(merged)]))
"""


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def done(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    return save_tiny_live(tmp_path / "m")


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["prompts"]


def asked_again(base, edited, recipe):
    result = assess(str(base), str(edited), facts_of_recipe(recipe), Silent())
    return json.loads(json.dumps(result.document["prompts"]))


def test_the_downloaded_model_and_adapter_give_the_numbers_of_the_report(hub, model, tmp_path):
    hub.add_repo("org/base", files_in(model))
    text = recipe_text(load(model, "m"), "org/base", formats=("safetensors", "adapter"))
    (tmp_path / "japan.toml").write_text(text, encoding="utf-8")
    done("run", tmp_path / "japan.toml", "-o", tmp_path / "out")
    recipe = parse_recipe(text)
    for name in ("safetensors", "adapter"):
        done("push", tmp_path / "out" / name, f"ada/{name}")
        assert asked_again("org/base", f"ada/{name}", recipe) == report_of(tmp_path / "out" / name)


def test_the_downloaded_gguf_gives_the_numbers_of_the_report(hub, model, tmp_path, monkeypatch):
    # The tiny file has no tokenizer; transformers gets it from here.
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tiny_tokenizer())
    gguf = llama_gguf(tmp_path / "tiny.gguf", tiny_model("llama", vocab_size=VOCAB_SIZE))
    hub.add_repo("org/base-gguf", {"tiny.gguf": gguf.read_bytes()})
    text = recipe_text(load(model, "m"), gguf, formats=("gguf",))
    (tmp_path / "japan.toml").write_text(text, encoding="utf-8")
    done("run", tmp_path / "japan.toml", "-o", tmp_path / "out")
    done("push", tmp_path / "out", "ada/gguf", "--base", "org/base-gguf")
    assert str(tmp_path) not in hub.files("ada/gguf")["amnesia.json"].decode()
    fetched = Path(snapshot_download("ada/gguf", local_dir=tmp_path / "fetched"))
    assert asked_again(gguf, fetched / "tiny.gguf", parse_recipe(text)) == report_of(tmp_path / "out")


def test_plain_libraries_load_the_outputs_without_this_package(model, tmp_path):
    for name in ("safetensors", "adapter"):
        done("edit", model, "--cell", "0:3", "--cell", "2:40", "--format", name, "-o", tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_AMNESIA, tmp_path / "safetensors", tmp_path / "adapter"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    with torch.inference_mode():
        ids = torch.arange(3, 13)[None]
        live = load(model, "m")
        before = live.model(ids).logits[0, -1]
        apply_edits(live, (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(2, 40))))
        expected = live.model(ids).logits[0, -1]
    full, merged = map(torch.tensor, json.loads(run.stdout))
    assert torch.equal(full, merged)
    assert torch.allclose(full, expected, atol=1e-5)
    assert not torch.allclose(full, before, atol=1e-3)
