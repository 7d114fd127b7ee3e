"""GGUF files, cells and folders that no edit fits: refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amnesia.errors import CheckpointError, InputError, OutputError
from amnesia.weights.gguf.edit import write_edited_gguf
from support.gguf_edits import (
    Q4_1,
    Q4_K,
    Q8_0,
    edits,
    write,
)
from support.tiny import write_with
from support.tiny_gguf import (
    D_MLP,
    D_MODEL,
    write_gguf,
)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"arch": "rwkv7"}, "general.architecture = 'rwkv7': supported are llama"),
        ({"arch": "gpt2", "ffn_down": Q4_1, "d_mlp": 64}, "Q4_1, of which no single column .* with --tensor-type"),
        ({"arch": "gpt2", "omit": ("blk.0.ffn_down.weight",)}, "ffn_down.weight is missing"),
        ({"general_type": "adapter"}, "of type 'adapter', not a model"),
        ({"metadata": {"expert_count": 8}}, "declares a mixture of 8 experts, but its layers have others"),
        ({"arch": "gemma", "experts": (4, 32)}, "is a gemma model with a mixture of experts: supported are llama"),
        ({"arch": "qwen2", "experts": (4, 32)}, "supported are llama, .*granitehybrid, gpt-oss; edit the safetensors"),
        ({"arch": "gpt2", "experts": (4, 32)}, "is a gpt2 model with a mixture of experts: supported are llama"),
        ({"metadata": {"block_count": 3}}, "declares 3 layers, but has tensors of 2"),
        ({"metadata": {"block_count": 1}}, "declares 1 layers, but has tensors of 2"),
        ({"metadata": {"block_count": 2**31}}, "declares 2147483648 layers"),
        ({"metadata": {"block_count": 0}}, "has 0 for llama.block_count"),
        ({"metadata": {"embedding_length": 512}}, r"ffn_up.weight has shape \(12, 256\), expected shape \(12, 512\)"),
        ({"metadata": {"feed_forward_length": 6}}, r"expected shape \(6, 256\)"),
        ({"n_rows": 2 * D_MLP}, r"ffn_up.weight has shape \(24, 256\), expected shape \(12, 256\)"),
        ({"omit": ("blk.0.ffn_up.weight",)}, "ffn_up.weight is missing"),
        ({"omit": ("blk.0.ffn_gate.weight",)}, "ffn_gate.weight is missing"),
        ({"extra": {"blk.0.ffn_up.bias": np.zeros(D_MLP, np.float32)}}, "ffn_up.bias .* expected no such tensor"),
        ({"arch": "phi3"}, r"ffn_up.weight has shape \(12, 256\), expected shape \(24, 256\)"),
        ({"arch": "phi3", "n_rows": 2 * D_MLP}, "ffn_gate.weight .* expected no such tensor"),
    ],
)
def test_unfit_files_are_refused_before_writing(tmp_path: Path, options: dict, fault: str):
    source = write_gguf(tmp_path / "tiny.gguf", **options)
    with pytest.raises(CheckpointError, match=fault) as caught:
        write(source, tmp_path / "out", *edits("0:1"))
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


def test_sizes_of_another_model_are_refused(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    write(source, tmp_path / "out", *edits("0:1"), expected=(2, D_MODEL, D_MLP))
    for expected in [(3, D_MODEL, D_MLP), (2, 128, D_MLP), (2, D_MODEL, 13)]:
        with pytest.raises(CheckpointError, match=r"the model that the edit is for has \(") as caught:
            write(source, tmp_path / f"out{expected}", *edits("0:1"), expected=expected)
        assert str(expected) in str(caught.value)


@pytest.mark.parametrize("cell", ["2:0", "0:12"])
def test_cells_out_of_range_are_refused(tmp_path: Path, cell: str):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    with pytest.raises(InputError, match=r"out of range: .*tiny\.gguf"):
        write(source, tmp_path / "out", *edits(cell))


def test_a_folder_with_files_is_refused(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", Q8_0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny.gguf").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write_with(write_edited_gguf, source, edits("0:1"), tmp_path / "out")
    assert (tmp_path / "out" / "tiny.gguf").read_text() == "mine"


def test_a_split_model_with_a_missing_part_is_refused_before_writing(tmp_path: Path):
    (tmp_path / "base").mkdir()
    first = write_gguf(tmp_path / "base" / "tiny.gguf", Q4_K, parts=3)
    sorted((tmp_path / "base").iterdir())[2].unlink()
    with pytest.raises(CheckpointError, match="1 of 3 parts are missing"):
        write(first, tmp_path / "out", *edits("0:7"))
    assert not any((tmp_path / "out").iterdir())
