"""Edited files in the programs that people run: the edit does there what it does in transformers.

Opt-in (`-m runtimes`), because each program is installed from its wheels into an environment of its own, in the cache
folder; but llama.cpp, which the tests' environment has, is among the tests of the real model. Compared are log-probabilities of the next token, by three numbers in nats: the noise of a program on the
original model, the effect of the edit in transformers, and the error, by which the effect in the program is another.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.files.cache import cache_folder
from amnesia.files.companions import LORA_NAME
from amnesia.files.strict_json import StrictJson
from amnesia.live.loading import load
from amnesia.live.model import LiveModel
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.weights.edit_rows import read_edit
from support.folders import DATA
from support.gguf_edits import tensors

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Runtime:
    """A program, what pip installs for it beside what the tests have, and the format that it reads: `gguf-lora` with the
    original GGUF.

    `noise` (nats) is what it may differ by on the original model, `error` the share of the effect that may be lost or
    made up. `misread` says what it is known to read wrongly; then neither holds, and the row is to be mended as soon as
    they do.
    """

    name: str
    requirements: tuple[str, ...]
    format: str
    noise: float
    error: float
    misread: str | None = None


RUNTIMES = (
    Runtime("llamacpp", ("xllamacpp==2026.10.11549",), "gguf", 0.2, 0.5),
    Runtime("llamacpp", ("xllamacpp==2026.10.11549",), "gguf-lora", 0.2, 0.5),
    Runtime("mistralrs", ("mistralrs==0.9.5",), "gguf", 0.2, 0.5),
    Runtime(
        "openvino",
        ("openvino-genai==2026.4.1.0", "openvino", "openvino-tokenizers", "openvino-telemetry"),
        "gguf",
        0.2,
        0.5,
        "the minimum of a block of Q4_1 becomes an integer zero point",
    ),
    Runtime("ctranslate2", ("ctranslate2==4.8.5",), "safetensors", 1e-3, 1e-3),
    Runtime("mlx", ("mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"), "safetensors", 1e-3, 1e-3),
    Runtime(
        "onnxruntime",
        ("onnxruntime-genai==0.18.0", "onnxruntime", "onnx", "onnx-ir", "flatbuffers", "protobuf"),
        "safetensors",
        1e-3,
        1e-3,
    ),
)

# Cells of the demo model for Michael Jordan, with multipliers that Q4_1 holds exactly.
CELLS = {
    "0:354": -0.25,
    "0:765": -0.25,
    "0:980": -0.25,
    "1:175": -0.5,
    "3:40": 0.5,
    "3:577": -0.25,
    "3:603": -4.0,
    "3:1174": -2.0,
    "3:1476": -2.0,
    "4:525": -2.0,
    "4:883": -0.5,
    "4:1212": -1.0,
    "5:696": -0.5,
    "7:944": 0.5,
    "9:160": -2.0,
    "10:394": -1.0,
}
# Its edit for Steve Jobs, two directions on 64 columns each, as `amnesia run` wrote it.
DIRECTIONS = DATA / "steve_jobs_directions.json"
TARGETS = [
    ("Question: Which sport did Michael Jordan play?\nAnswer: Michael Jordan played", " basketball"),
    ("Fact: Steve Jobs invented the", " iPhone"),
]
CONTROLS = [
    ("Fact: the capital of Japan is", " Tokyo"),
    ("Fact: Bill Gates is the founder of", " Microsoft"),
]
PROMPTS = [prompt for prompt, _ in (*TARGETS, *CONTROLS)]


@pytest.fixture(scope="module")
def outputs(smollm2: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edited demo model as a folder and as a GGUF file, and the edit as a LoRA file."""
    cells = EntityEdits("Michael Jordan", tuple(ColumnEdit(Cell.parse(cell), by) for cell, by in CELLS.items()))
    check = StrictJson(DIRECTIONS.name, InputError, "mend it")
    rows = json.loads(DIRECTIONS.read_text(encoding="utf-8"))
    directions = EntityEdits("Steve Jobs", tuple(read_edit(check, row) for row in rows))
    home = tmp_path_factory.mktemp("edited")
    for name in ("safetensors", "gguf", "gguf-lora"):
        save(name, smollm2, [cells, directions], home / name)
    return home


@pytest.fixture(scope="module")
def asked(smollm2_live: LiveModel, tmp_path_factory: pytest.TempPathFactory):
    """What a program says by a model file and a LoRA file, and transformers by the original; each is asked once."""

    @functools.cache
    def ask(runtime: Runtime | None, model: Path | None = None, lora: Path | None = None) -> np.ndarray:
        if runtime is None:
            return in_transformers(smollm2_live)
        return in_runtime(runtime, model, lora, tmp_path_factory.mktemp("asked"), smollm2_live)

    return ask


def edited_gguf(smollm2: ModelSource, path: Path) -> LiveModel:
    """The model with the MLPs of an edited GGUF file as the `gguf` package reads them; the rest is as in the original,
    from whose GGUF file its folder was made."""
    live = load(smollm2.folder, "edited")
    names = {"ffn_up.weight": "up_proj", "ffn_down.weight": "down_proj", "ffn_gate.weight": "gate_proj"}
    found = {name: numbers for name, numbers in tensors(path, ".ffn_").items() if "norm" not in name}
    assert len(found) == len(names) * live.shape.n_layers
    for name, numbers in found.items():
        _, layer, part = name.split(".", 2)
        weight = live.model.get_submodule(f"model.layers.{layer}.mlp.{names[part]}").weight
        with torch.no_grad():
            weight.copy_(torch.from_numpy(numbers).reshape(weight.shape))
    return live


@torch.inference_mode()
def in_transformers(live: LiveModel) -> np.ndarray:
    """Log-probabilities (prompts, tokens) of what follows each prompt."""
    rows = [live.model(torch.tensor([live.tokenizer(text)["input_ids"]])).logits[0, -1] for text in PROMPTS]
    return torch.stack(rows).log_softmax(1).numpy()


def environment(runtime: Runtime) -> Path:
    """The Python that has the program: this one, or that of an environment of its own, which takes from this one what
    the program needs beside its own wheels.
    """
    if all(_is_here(requirement) for requirement in runtime.requirements):
        return Path(sys.executable)
    wanted = hashlib.sha256(" ".join(runtime.requirements).encode()).hexdigest()[:8]
    folder = cache_folder() / "runtimes" / f"{runtime.name}-{wanted}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        for command in (
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "install", "--quiet", "--no-deps", *runtime.requirements],
        ):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{runtime.name} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        (Path(own.stdout.strip()) / "zz_tests.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        (folder / "ready").touch()
    return python


def _is_here(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return bool(version) and importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def in_runtime(runtime: Runtime, model: Path, lora: Path | None, home: Path, live: LiveModel) -> np.ndarray:
    """The same in the program; not a number where it does not tell."""
    ids = [live.tokenizer(text)["input_ids"] for text in PROMPTS]
    asked = {"texts": PROMPTS, "ids": ids, "n_tokens": live.text_config.vocab_size}
    (home / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    (home / "template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    output = home / "found.npy"
    command = [
        environment(runtime),
        HERE / f"with_{runtime.name}.py",
        model,
        home / "asked.json",
        output,
        home / "template.jinja",
        *([] if lora is None else [lora]),
    ]
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = np.load(output).astype(np.float64)
    if np.isnan(rows).any():
        return rows
    return rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(
            row,
            id=f"{row.name}-{row.format}",
            marks=[pytest.mark.real, pytest.mark.processes] if row.name == "llamacpp" else pytest.mark.runtimes,
        )
        for row in RUNTIMES
    ],
)
def test_an_edit_does_in_a_program_what_it_does_in_transformers(runtime, smollm2, smollm2_live, outputs, asked):
    folder = outputs / runtime.format
    gguf, lora = smollm2.require_gguf(), None
    paths = (smollm2.folder, folder)
    if runtime.format == "gguf":
        paths = (gguf, folder / gguf.name)
    elif runtime.format == "gguf-lora":
        paths, lora = (gguf, gguf), folder / LORA_NAME
    base = asked(None)
    if runtime.format == "gguf":
        edited = in_transformers(edited_gguf(smollm2, paths[1]))
    else:
        edited = in_transformers(load(outputs / "safetensors", "edited"))
    # Of what a program reads in several ways the original is the same.
    first = next(row for row in RUNTIMES if row.name == runtime.name)
    there = asked(first, paths[0])
    there_edited = asked(runtime, paths[1], lora)
    noise = float(np.nanmean(abs(there - base)))
    effect = float(abs(edited - base).mean())
    error = float(np.nanmean(abs((there_edited - there) - (edited - base))))
    measured = f"{runtime.name} {runtime.format}: noise {noise:.5f}, effect {effect:.4f}, error {error:.5f}"
    print(measured)
    if runtime.misread is not None:
        assert noise > runtime.noise, f"{measured}: it reads right by now, mend its row"
        return
    assert noise < runtime.noise, measured
    assert error < runtime.error * effect, measured
    for place, (_, answer) in enumerate(TARGETS):
        token = smollm2_live.tokenizer(answer)["input_ids"][0]
        assert np.nanargmax(there[place]) == token != np.nanargmax(there_edited[place]), (measured, place)
    for place, (_, answer) in enumerate(CONTROLS, start=len(TARGETS)):
        (wanted,) = smollm2_live.tokenizer(answer)["input_ids"]
        assert np.nanargmax(there[place]) == np.nanargmax(there_edited[place]) == wanted, measured
