"""The header parser: against the `gguf` package's reader on valid files, and against damaged and lying ones."""

from __future__ import annotations

import math
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia.errors import CheckpointError
from amnesia.weights.gguf import container
from amnesia.weights.gguf.container import GgufFile, Skipped, read_header, read_model
from support.tiny_gguf import D_MODEL, write_gguf

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
UINT32, STRING, ARRAY = 4, 8, 9


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", GGMLQuantizationType.Q4_K)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("split")
    write_gguf(folder / "tiny.gguf", GGMLQuantizationType.Q8_0, parts=3)
    return sorted(folder.iterdir())


def text(value: bytes) -> bytes:
    return U64.pack(len(value)) + value


def info(
    name: bytes = b"a",
    shape: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
) -> bytes:
    return text(name) + U32.pack(len(shape)) + b"".join(map(U64.pack, shape)) + U32.pack(kind) + U64.pack(offset)


def build(
    path: Path,
    keys: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = bytes(256),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> Path:
    header = magic + U32.pack(version)
    header += U64.pack(len(tensors) if n_tensors is None else n_tensors)
    header += U64.pack(len(keys) if n_keys is None else n_keys)
    header += b"".join(keys) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def assert_refused(path: Path, fault: str, read=read_header) -> None:
    """A one-line CheckpointError that matches `fault`, for little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=fault) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_agrees_with_the_reader_of_the_gguf_package(valid: Path):
    reader, file = GGUFReader(valid), read_header(valid)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.tensor_type == theirs.tensor_type
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.offset, ours.n_bytes) == (theirs.data_offset, theirs.n_bytes)
        assert ours.row_bytes * math.prod(ours.shape[:-1]) == ours.n_bytes
    assert set(file.metadata) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert file.metadata["llama.embedding_length"] == D_MODEL
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["tokenizer.ggml.tokens"] == Skipped("array", 50)
    assert file.metadata["tokenizer.chat_template"] == Skipped("string", 5000)
    assert (file.size, file.data_offset) == (valid.stat().st_size, reader.data_offset)


def test_reads_version_2_every_scalar_and_nested_arrays(tmp_path: Path):
    keys = [
        text(b"a") + U32.pack(0) + b"\xff",
        text(b"b") + U32.pack(1) + b"\xff",
        text(b"c") + U32.pack(7) + b"\x01",
        text(b"d") + U32.pack(12) + struct.pack("<d", 0.5),
        text(b"e") + U32.pack(ARRAY) + U32.pack(ARRAY) + U64.pack(2) + 2 * (U32.pack(2) + U64.pack(3) + bytes(6)),
        text(b"f") + U32.pack(STRING) + text("é".encode()),
    ]
    file = read_header(build(tmp_path / "a.gguf", keys, [info()], version=2))
    assert dict(file.metadata) == {"a": 255, "b": -1, "c": True, "d": 0.5, "e": Skipped("array", 2), "f": "é"}
    assert file.tensors["a"].n_bytes == 32


def test_honours_the_alignment_of_the_file(tmp_path: Path):
    key = text(b"general.alignment") + U32.pack(UINT32) + U32.pack(64)
    file = read_header(build(tmp_path / "a.gguf", [key], [info(), info(b"b", offset=64)]))
    assert file.data_offset == 128
    assert [tensor.offset for tensor in file.tensors.values()] == [128, 192]


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ({"magic": b"GGML"}, "does not begin like a GGUF file"),
        ({"version": 1}, "GGUF version 1"),
        ({"version": 3 << 24}, "big-endian"),
        ({"version": 0}, "GGUF version 0"),
        ({"n_tensors": 2**63}, "declares 9223372036854775808 tensors"),
        ({"n_tensors": 60000}, "header asks for|has .* bytes, more than|dimensions"),
        ({"n_keys": 2**40}, "declares 1099511627776 metadata keys"),
        ({"n_keys": 4000}, "header asks for|listed twice"),
        ({"keys": [U64.pack(2**62)]}, "a metadata key has 4611686018427387904 bytes"),
        ({"keys": [text(b"k") + U32.pack(STRING) + U64.pack(2**62)]}, "asks for 4611686018427387904 more"),
        ({"keys": [text(b"k") + U32.pack(STRING) + text(b"\xff")]}, "not UTF-8"),
        ({"keys": [text(b"\xff") + U32.pack(0) + b"1"]}, "not UTF-8"),
        ({"keys": [text(b"k") + U32.pack(99)]}, "unknown type 99"),
        ({"keys": [text(b"k") + U32.pack(ARRAY) + U32.pack(99) + U64.pack(1)]}, "unknown type 99"),
        ({"keys": [text(b"k") + U32.pack(ARRAY) + U32.pack(UINT32) + U64.pack(2**60)]}, "asks for"),
        ({"keys": [text(b"k") + U32.pack(ARRAY) + U32.pack(STRING) + U64.pack(2**60)]}, "more than any tokenizer"),
        ({"keys": [text(b"k") + U32.pack(ARRAY) + 9 * (U32.pack(ARRAY) + U64.pack(1))]}, "nests more than 4"),
        ({"keys": 2 * [text(b"k") + U32.pack(0) + b"1"]}, "'k' is listed twice"),
        ({"keys": [text(b"general.alignment") + U32.pack(UINT32) + U32.pack(48)]}, "general.alignment is 48"),
        ({"keys": [text(b"general.alignment") + U32.pack(UINT32) + U32.pack(0)]}, "general.alignment is 0"),
        ({"keys": [text(b"general.alignment") + U32.pack(STRING) + text(b"32")]}, "general.alignment is 32"),
        ({"tensors": [info(), info()]}, "tensor 'a' is listed twice"),
        ({"tensors": [info(), info(b"b")]}, "'a' and 'b' overlap"),
        ({"tensors": [info(shape=(64,)), info(b"b", offset=96)]}, "'a' and 'b' overlap"),
        ({"tensors": [info(offset=8)]}, "not at a multiple of 32"),
        ({"tensors": [info(offset=2**63)]}, "ends at byte"),
        ({"tensors": [info(shape=(65,))]}, "ends at byte"),
        ({"tensors": [info(shape=(2**63, 2**63, 2**63, 2**63))]}, "ends at byte"),
        ({"tensors": [info(shape=(0,))]}, "is empty"),
        ({"tensors": [info(shape=())]}, "0 dimensions"),
        ({"tensors": [info(shape=5 * (1,))]}, "5 dimensions"),
        ({"tensors": [text(b"a") + U32.pack(2**31)]}, "2147483648 dimensions"),
        ({"tensors": [info(kind=77)]}, "unknown type 77"),
        ({"tensors": [info(kind=int(GGMLQuantizationType.Q4_K))]}, "not whole Q4_K blocks of 256"),
        ({"tensors": [info(name=bytes(600))]}, "a tensor has 600 bytes"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, case: dict, fault: str):
    assert_refused(build(tmp_path / "a.gguf", **case), fault)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    assert_refused(tmp_path / "none.gguf", "cannot be read")
    assert_refused(tmp_path, "not a regular file")


def _read_or_refuse(path: Path) -> None:
    """Nothing but success or a CheckpointError, and every tensor of a success lies inside the file."""
    try:
        file = read_header(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(file, GgufFile)
    assert all(tensor.offset + tensor.n_bytes <= file.size for tensor in file.tensors.values())


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_headers_give_a_clean_error_or_a_valid_header(valid: Path, tmp_path: Path, data: st.DataObject):
    content = bytearray(valid.read_bytes())
    header = read_header(valid).data_offset
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header - 9))
        match data.draw(st.sampled_from(["byte", "number", "delete", "insert"])):
            case "byte":
                content[place] = data.draw(st.integers(0, 255))
            case "number":
                # Numbers near the limits of each width are what a lying length looks like.
                bits = data.draw(st.sampled_from([31, 32, 40, 62, 63, 64]))
                content[place : place + 8] = U64.pack(2**bits - data.draw(st.integers(1, 2)))
            case "delete":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    mutated = tmp_path / "mutated.gguf"
    mutated.write_bytes(content)
    tracemalloc.start()
    try:
        _read_or_refuse(mutated)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused(valid: Path, tmp_path: Path):
    content = valid.read_bytes()
    header = read_header(valid).data_offset
    cut = tmp_path / "cut.gguf"
    for length in (*range(0, header, 7), header, len(content) // 2, len(content) - 64):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(cut)


def test_limits_hold_for_files_that_are_really_that_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(container, "MAX_ARRAY_STRINGS", 10)
    strings = text(b"k") + U32.pack(ARRAY) + U32.pack(STRING) + U64.pack(11) + 11 * text(b"x")
    assert_refused(build(tmp_path / "a.gguf", [strings]), "11 items, more than any tokenizer")
    monkeypatch.setattr(container, "MAX_KEYS", 3)
    keys = [text(b"%d" % index) + U32.pack(0) + b"1" for index in range(4)]
    assert_refused(build(tmp_path / "b.gguf", keys), "declares 4 metadata keys")


def test_millions_of_nested_arrays_are_refused_by_their_number(tmp_path: Path):
    count = 1 << 16
    arrays = text(b"k") + U32.pack(ARRAY) + U32.pack(ARRAY) + U64.pack(count) + (U32.pack(UINT32) + U64.pack(0)) * count
    start = time.process_time()
    assert_refused(build(tmp_path / "a.gguf", [arrays]), f"{count} items, more than any tokenizer")
    assert time.process_time() - start < 1


def test_a_part_that_is_a_link_out_of_the_folder_is_refused(parts: list[Path], tmp_path: Path):
    folder = tmp_path / "linked"
    folder.mkdir()
    for part in parts:
        (folder / part.name).symlink_to(part)
    with pytest.raises(CheckpointError, match=f"{parts[0].name} is a link to"):
        read_model(folder / parts[1].name)


def test_a_split_model_is_read_from_any_of_its_parts(parts: list[Path]):
    assert len(parts) == 3
    models = [read_model(part) for part in parts]
    assert models[0] == models[1] == models[2]
    assert [file.path for file in models[0].files] == parts
    assert models[0].metadata["llama.block_count"] == 2
    for file, tensor in models[0].tensors():
        assert models[0].find(tensor.name) == (file, tensor)
    assert models[0].find("blk.9.ffn_up.weight") is None


def test_a_missing_part_is_refused(parts: list[Path], tmp_path: Path):
    for part in (parts[0], parts[2]):
        shutil.copy(part, tmp_path)
    for part in (parts[0], parts[2]):
        assert_refused(tmp_path / part.name, f"1 of 3 parts are missing .* first is {parts[1].name}", read_model)


def test_parts_that_contradict_their_names_are_refused(parts: list[Path], tmp_path: Path):
    shutil.copy(parts[0], tmp_path / "whole.gguf")
    assert_refused(tmp_path / "whole.gguf", "one of 3 parts by its metadata, but not by its name", read_model)
    shutil.copy(parts[0], tmp_path / "a-00001-of-00002.gguf")
    assert_refused(tmp_path / "a-00001-of-00002.gguf", "its name says something else", read_model)
    for name, source in zip(("b-00001-of-00003", "b-00002-of-00003", "b-00003-of-00003"), (0, 2, 1), strict=True):
        shutil.copy(parts[source], tmp_path / f"{name}.gguf")
    assert_refused(tmp_path / "b-00001-of-00003.gguf", "b-00002-of-00003.gguf is not part 2 of 3", read_model)
    build(tmp_path / "c-00001-of-00001.gguf", tensors=[info()])
    assert_refused(tmp_path / "c-00001-of-00001.gguf", "lacks split.count", read_model)


def test_parts_that_repeat_or_lack_tensors_are_refused(tmp_path: Path):
    def keys(number: int, total: int) -> list[bytes]:
        values = {b"split.no": number, b"split.count": 2, b"split.tensors.count": total}
        return [text(key) + U32.pack(UINT32) + U32.pack(value) for key, value in values.items()]

    first = build(tmp_path / "a-00001-of-00002.gguf", keys(0, 2), [info(b"a")])
    build(tmp_path / "a-00002-of-00002.gguf", keys(1, 2), [info(b"a")])
    assert_refused(first, "tensor a is in two parts", read_model)
    first = build(tmp_path / "b-00001-of-00002.gguf", keys(0, 3), [info(b"a")])
    build(tmp_path / "b-00002-of-00002.gguf", keys(1, 3), [info(b"b")])
    assert_refused(first, "hold 2 tensors, but declare 3", read_model)
