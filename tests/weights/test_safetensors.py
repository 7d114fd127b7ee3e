"""Headers, indices and strided access, against the safetensors library; lying headers give clean errors."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from amnesia.errors import CheckpointError
from amnesia.weights.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    NewTensor,
    check_matrix,
    new_file,
    patches_of,
    read_header,
    read_vectors,
    read_weight_files,
)

DATA = b"\0" * 24
GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def write(path, header, data=DATA, length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def test_header_agrees_with_the_library(tmp_path):
    tensors = {
        "x": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
        "y": torch.randn(5).to(torch.float8_e4m3fn),
        "z": torch.zeros(2, 0, dtype=torch.int64),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    assert header.file_size == len(content)
    assert content.startswith(header.content)
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        info = header.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert info.item_size == tensor.element_size()
        expected = raw(tensor.reshape(-1)) if tensor.numel() else b""
        assert content[info.offset : info.offset + info.size] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"dtype": "F33", "shape": [2, 2], "data_offsets": [0, 16]}}, "unknown type 'F33'"),
        ({"a": {"dtype": ["F32"], "shape": [2, 2], "data_offsets": [0, 16]}}, "unknown type list"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}, "16 bytes, its shape and type need 24"),
        ({"a": {"dtype": "F32", "shape": [2**62, 2**62, 2**62], "data_offsets": [0, 16]}}, "its shape and type need"),
        ({"a": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}, "whole number"),
        ({"a": {"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}}, "whole number"),
        ({"a": {"dtype": "F32", "shape": [1] * 65 + [2, 2], "data_offsets": [0, 16]}}, "malformed offsets or shape"),
        ({"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}, "expected a list"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}}, "malformed offsets"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0]}}, "malformed offsets"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}}, "expected"),
        ({"a": {"dtype": "F32", "shape": [2, 2]}}, "lacks the key 'data_offsets'"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], "x": 1}}, "unknown key 'x'"),
        ({"a": None}, "expected an object"),
        ({"b": {"dtype": "BF16", "shape": [4], "data_offsets": [8, 16]}}, "expected"),
        ({"b": {"dtype": "BF16", "shape": [4], "data_offsets": [2**62, 2**62 + 8]}}, "expected 221"),
        ({"c": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}, "its header describes"),
        ({"__metadata__": {"format": 1}}, "not a string"),
        ({"__metadata__": []}, "expected an object"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, change, message):
    path = write(tmp_path / "m.safetensors", GOOD | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (GOOD, 2**63, "claims a header"),
        (GOOD, 99_999_999, "claims a header"),
        (GOOD, 0, "does not start"),
        (b"[1]", None, "does not start"),
        (b'{"a": 1, "a": 1}', None, "same key twice"),
        (b'{"a": NaN}', None, "NaN"),
        (b'{"a": ' + b"[" * 50_000, None, "nested too deeply|not valid JSON"),
        (b"{\xff}", None, "not valid JSON"),
        (b"{" + b"1" * 6000, None, "not valid JSON"),
        (b'{"a": ' + b"9" * 6000 + b"}", None, "not valid JSON"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path, header, length, message):
    path = write(tmp_path / "m.safetensors", header, length=length)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_truncated_and_missing_files(tmp_path):
    path = write(tmp_path / "m.safetensors", GOOD)
    content = path.read_bytes()
    for size in (0, 7, 8, 50, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            read_header(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="its header describes"):
        read_header(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "missing")


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_headers_never_surprise(tmp_path, data):
    content = bytearray(write(tmp_path / "m.safetensors", GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 6))
        content[start : start + length] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"9" * 18, b"-1", b"[[", b"{"])
        )
    (tmp_path / "m.safetensors").write_bytes(content)
    tracemalloc.start()
    try:
        header = read_header(tmp_path / "m.safetensors")
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        for tensor in header.tensors.values():
            assert len(header.content) <= tensor.offset <= tensor.offset + tensor.size <= len(content)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def two_shards(folder, weight_map=None):
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(2)}, folder / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_index_and_single_file(tmp_path):
    two_shards(tmp_path)
    weights = read_weight_files(tmp_path)
    assert weights.location == {"a": "one.safetensors", "b": "two.safetensors"}
    assert set(weights.headers) == {"one.safetensors", "two.safetensors"}
    (tmp_path / INDEX_FILE).unlink()
    (tmp_path / "one.safetensors").rename(tmp_path / SINGLE_FILE)
    assert read_weight_files(tmp_path).location == {"a": SINGLE_FILE}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../one.safetensors"}, "inside the folder"),
        ({"a": "/etc/passwd"}, "inside the folder"),
        ({"a": "sub/../../one.safetensors"}, "inside the folder"),
        ({"a": 3}, "inside the folder"),
        ({}, "empty weight_map"),
        ([], "expected an object"),
        ({"a": "one.safetensors", "b": "three.safetensors"}, "lacks three.safetensors, 1 of 2 shards"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "which lacks it"),
    ],
)
def test_indices_that_lie(tmp_path, weight_map, message):
    two_shards(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message):
        read_weight_files(tmp_path)


def test_ambiguous_weights(tmp_path):
    two_shards(tmp_path)
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' in one.safetensors and again in two.safetensors"):
        read_weight_files(tmp_path)
    two_shards(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match="remove the one"):
        read_weight_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        read_weight_files(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="has no safetensors weights: expected model.safetensors"):
        read_weight_files(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("indices", [(0,), (3, 9, 10), tuple(range(11))])
def test_vectors_against_torch(tmp_path, dtype, axis, indices, monkeypatch):
    monkeypatch.setattr("amnesia.weights.safetensors.BLOCK", 64)  # Several blocks, also in a small tensor.
    matrix = torch.randn(13, 11).to(dtype)
    path = tmp_path / "m.safetensors"
    save_file({"before": torch.ones(3), "m": matrix, "z": torch.ones(3)}, path)
    original = path.read_bytes()
    tensor = read_header(path).tensors["m"]
    with path.open("rb", buffering=0) as file:
        vectors = read_vectors(file.fileno(), tensor, axis, indices)
        assert vectors == {index: raw(matrix.select(axis, index)) for index in indices}
        zeros = {index: b"\0" * len(vector) for index, vector in vectors.items()}
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    for patch in patches_of(tensor, axis, zeros):
        patch.put(content, 0)
    expected = matrix.clone()
    expected.view(torch.uint8).view(13, 11, -1).index_fill_(axis, torch.tensor(indices), 0)
    end = tensor.offset + tensor.size
    assert content.tobytes() == original[: tensor.offset] + raw(expected) + original[end:]


def test_matrices_are_checked(tmp_path):
    save_file({"m": torch.zeros(3, 4), "v": torch.zeros(3)}, tmp_path / "m.safetensors")
    tensors = read_header(tmp_path / "m.safetensors").tensors
    check_matrix(tensors["m"], 1, (3,))
    with pytest.raises(CheckpointError, match="no index 3 on axis 0"):
        check_matrix(tensors["m"], 0, (3,))
    with pytest.raises(CheckpointError, match="expected a matrix"):
        check_matrix(tensors["v"], 0, (0,))


def test_new_files_load_in_the_library(tmp_path):
    a, b = torch.randn(2, 3).to(torch.bfloat16), torch.randn(5)
    blocks = new_file(
        [NewTensor("a", "BF16", (2, 3), (raw(a)[:4], raw(a)[4:])), NewTensor("b", "F32", (5,), iter([raw(b)]))]
    )
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"".join(blocks))
    loaded = load_file(path)
    assert torch.equal(loaded["a"], a)
    assert torch.equal(loaded["b"], b)
    assert read_header(path).tensors["a"].offset % 8 == 0
