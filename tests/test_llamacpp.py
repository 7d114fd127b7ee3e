"""An edited GGUF in llama.cpp itself: the target fact is gone, facts about others are kept.

Opt-in (`pytest -m llamacpp`), because llama-cpp-python is compiled from source; needs the demo model of AMNESIA_CACHE.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from amnesia.domain import Cell, ColumnEdit
from amnesia.edits import EditSpec, EntityEdits
from amnesia.gguf_edit import write_edited_gguf
from demo_file import demo_gguf

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


def answers(path: Path) -> dict[str, tuple[str, float]]:
    """The greedy next token of each prompt, and the log-probability (nats) of the expected answer."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    found = {}
    for prompt, answer in (TARGET, *CONTROLS):
        choice = model(prompt, max_tokens=1, temperature=0.0, logprobs=1000)["choices"][0]
        # An answer that is not even among the first thousand counts as impossible.
        found[prompt] = (choice["text"], float(choice["logprobs"]["top_logprobs"][0].get(answer, -math.inf)))
    model.close()
    return found


def test_llama_cpp_forgets_the_target_and_keeps_the_controls(tmp_path: Path):
    source = demo_gguf()
    edits = [ColumnEdit(Cell.parse(cell), multiplier) for cell, multiplier in EDIT.items()]
    spec = EditSpec((EntityEdits("Michael Jordan", tuple(edits)),), "smollm2-135m")
    write_edited_gguf(source, spec, tmp_path)
    before, after = answers(source), answers(tmp_path / source.name)
    prompt, answer = TARGET
    assert before[prompt][0] == answer
    assert after[prompt][0] != answer
    assert after[prompt][1] < before[prompt][1] - 1.0
    for prompt, answer in CONTROLS:
        assert before[prompt][0] == after[prompt][0] == answer
        assert abs(after[prompt][1] - before[prompt][1]) < 0.3
