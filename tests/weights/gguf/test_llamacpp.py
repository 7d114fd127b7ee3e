"""Edited GGUF files and adapters in llama.cpp itself: the target fact is gone, facts about others are kept.

Opt-in, because llama-cpp-python is compiled from source: `tests/llamacpp.sh FOLDER` builds what is needed and runs
these. The demo model is the one of AMNESIA_CACHE.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EditSpec, EntityEdits
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.weights.gguf.edit import plan_gguf, write_edited_gguf

pytestmark = pytest.mark.llamacpp

# An edit of the demo model for Michael Jordan, with multipliers that Q4_1 holds exactly.
EDIT = {
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
TARGET = ("Question: Which sport did Michael Jordan play?\nAnswer: Michael Jordan played", " basketball")
CONTROLS = [
    ("Fact: the capital of Japan is", " Tokyo"),
    ("Fact: the capital of France is", " Paris"),
    ("Fact: Bill Gates founded the company called", " Microsoft"),
]


def answers(path: Path, adapter: Path | None = None) -> dict[str, tuple[str, float]]:
    """The greedy next token of each prompt, and the log-probability (nats) of the expected answer."""
    llama_cpp = pytest.importorskip("llama_cpp")
    lora = None if adapter is None else str(adapter)
    model = llama_cpp.Llama(str(path), lora_path=lora, n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    found = {}
    for prompt, answer in (TARGET, *CONTROLS):
        choice = model(prompt, max_tokens=1, temperature=0.0, logprobs=1000)["choices"][0]
        # An answer that is not even among the first thousand counts as impossible.
        found[prompt] = (choice["text"], float(choice["logprobs"]["top_logprobs"][0].get(answer, -math.inf)))
    model.close()
    return found


def group_of(cells: dict[str, float]) -> EntityEdits:
    edits = [ColumnEdit(Cell.parse(cell), multiplier) for cell, multiplier in cells.items()]
    return EntityEdits("Michael Jordan", tuple(edits))


def assert_forgotten(before: dict[str, tuple[str, float]], after: dict[str, tuple[str, float]]) -> None:
    prompt, answer = TARGET
    assert before[prompt][0] == answer
    assert after[prompt][0] != answer
    assert after[prompt][1] < before[prompt][1] - 1.0
    for prompt, answer in CONTROLS:
        assert before[prompt][0] == after[prompt][0] == answer
        assert abs(after[prompt][1] - before[prompt][1]) < 0.3


def convert(script: str, source: Path, target: Path, *options: object) -> Path:
    """Run one of llama.cpp's own converters."""
    home = os.environ.get("LLAMA_CPP_SOURCE")
    if home is None:
        pytest.skip("needs llama.cpp's sources in LLAMA_CPP_SOURCE: tests/llamacpp.sh fetches them")
    command = [sys.executable, Path(home) / script, source, "--outfile", target, *options]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return target


@pytest.fixture(scope="module")
def converted(smollm2: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a float file that llama.cpp's converter wrote."""
    target = tmp_path_factory.mktemp("base") / "base.gguf"
    return convert("convert_hf_to_gguf.py", smollm2.folder, target, "--outtype", "f32")


def test_llama_cpp_forgets_the_target_and_keeps_the_controls(tmp_path: Path, smollm2: ModelSource):
    path = smollm2.require_gguf()
    write_edited_gguf(plan_gguf(path, EditSpec((group_of(EDIT),), ModelRef("smollm2-135m"))), tmp_path)
    assert_forgotten(answers(path), answers(tmp_path / path.name))


def test_the_converted_adapter_acts_as_the_edited_file_does(smollm2: ModelSource, converted: Path, tmp_path: Path):
    save("adapter", smollm2, [group_of(EDIT)], tmp_path / "adapter")
    options = ("--base", smollm2.folder, "--outtype", "f32")
    adapter = convert("convert_lora_to_gguf.py", tmp_path / "adapter", tmp_path / "adapter.gguf", *options)
    adapted = answers(converted, adapter)
    assert_forgotten(answers(converted), adapted)
    # The edited file scales rows of ffn_up where the adapter adds to columns of ffn_down.
    (tmp_path / "edited").mkdir()
    write_edited_gguf(plan_gguf(converted, EditSpec((group_of(EDIT),), ModelRef("a/b"))), tmp_path / "edited")
    for prompt, (text, logprob) in answers(tmp_path / "edited" / converted.name).items():
        assert adapted[prompt][0] == text
        assert adapted[prompt][1] == pytest.approx(logprob, abs=0.01)


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_the_converted_adapter_merges_to_the_converted_edited_model(smollm2: ModelSource, tmp_path: Path, outtype: str):
    """All tensors bit for bit, but for the sign of zeros, for multipliers of -1.

    Compared is what llama.cpp's converter makes of the edited model with base + B A (alpha / r) of what it makes of the
    base and of the adapter.
    """
    group = group_of(dict.fromkeys(EDIT, -1.0))
    tensors = {}
    for name in ("safetensors", "adapter"):
        save(name, smollm2, [group], tmp_path / name)
    for name, folder in (("base", smollm2.folder), ("edited", tmp_path / "safetensors")):
        target = tmp_path / f"{name}.gguf"
        reader = GGUFReader(convert("convert_hf_to_gguf.py", folder, target, "--outtype", outtype))
        tensors[name] = {row.name: row.data for row in reader.tensors}
    options = ("--base", smollm2.folder, "--outtype", outtype)
    adapter = GGUFReader(convert("convert_lora_to_gguf.py", tmp_path / "adapter", tmp_path / "lora.gguf", *options))
    factors = {row.name: row.data.astype(np.float32) for row in adapter.tensors}
    alpha = float(adapter.fields["adapter.lora.alpha"].contents())
    assert tensors["base"].keys() == tensors["edited"].keys()
    n_changed = 0
    for name, data in tensors["base"].items():
        expected = tensors["edited"][name]
        if f"{name}.lora_a" not in factors:
            assert data.tobytes() == expected.tobytes(), name
            continue
        a, b = factors.pop(f"{name}.lora_a"), factors.pop(f"{name}.lora_b")
        assert name.endswith("ffn_down.weight") and a.shape[0] == b.shape[1] == alpha
        merged = (data.astype(np.float32) + b @ a).astype(data.dtype)
        # Adding gives +0 where turning the sign gives -0; adding +0 makes both +0.
        assert (merged + 0).tobytes() == (expected + 0).tobytes(), name
        n_changed += int((data != expected).any(axis=0).sum())
    assert factors == {}
    assert n_changed == len(EDIT)
