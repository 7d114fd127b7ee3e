"""How far writing has come: all that is told is what was announced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.outputs.proofs import prove, take_back
from amnesia.outputs.replay import replay
from amnesia.outputs.write import save
from amnesia.progress import Progress
from amnesia.sources.source import ModelSource
from support.folders import tree
from support.gguf_edits import direction, tiny
from support.tiny import save_tiny

CELL = ColumnEdit(Cell(0, 3))


class Count:
    """A watch that keeps what was announced and what was told."""

    def __init__(self) -> None:
        self.announced: list[int] = []
        self.told: list[int] = []

    @contextlib.contextmanager
    def __call__(self, n_bytes: int) -> Iterator[Progress]:
        self.announced.append(n_bytes)
        yield self.told.append

    @property
    def total(self) -> int:
        """The bytes of the only task, which must have been told of to the last."""
        assert self.announced == [sum(self.told)]
        return sum(self.told)


def sizes(folder: Path, suffix: str = ".gguf") -> int:
    """Bytes of the files with `suffix` that no other folder shares."""
    return sum(path.stat().st_size for path in folder.glob(f"*{suffix}") if path.stat().st_nlink == 1)


@pytest.mark.slow
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("tensor_type", [None, "q8_0", "f16"])
def test_a_gguf_is_written_and_taken_back(tmp_path, tensor_type, link):
    first = tiny(tmp_path / "base" / "tiny.gguf", parts=3)
    base = ModelSource(first.parent, ModelRef("a/b"), gguf=first)
    before = sizes(first.parent)
    ada = EntityEdits("Ada", (direction(0), CELL))
    count = Count()
    save("gguf", base, [ada], tmp_path / "out", tensor_type=tensor_type, link=link, watch=count)
    assert count.total == sizes(tmp_path / "out")
    assert (count.total < before) == link or tensor_type == "f16"
    for origin in (None, base):
        count = Count()
        proven = prove(tmp_path / "out", origin, count).n_bytes
        # In a wider type what is read is put back first.
        assert count.total == (
            proven if tensor_type is None else sum(path.stat().st_size for path in first.parent.glob("*.gguf"))
        )
    count = Count()
    take_back(tmp_path / "out", tmp_path / "back", watch=count)
    assert count.total == before
    count = Count()
    replay(tmp_path / "out", tmp_path / "again", base=str(first), watch=count)
    assert count.total == sizes(tmp_path / "again")


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_is_written_and_taken_back(tmp_path, link):
    base = ModelSource(save_tiny(tmp_path / "base"), ModelRef("a/b"))
    before = tree(base.folder)
    count = Count()
    manifest = save("safetensors", base, [EntityEdits("Ada", (CELL,))], tmp_path / "out", link=link, watch=count)
    copied = [row.file for row in manifest.base.files] if link else [*before]
    assert count.total == sum(len(before[name]) for name in copied)
    for origin in (None, base):
        count = Count()
        prove(tmp_path / "out", origin, count)
        assert count.total == sum(map(len, before.values()))
    for work in (take_back, replay):
        options = {"base": str(base.folder)} if work is replay else {}
        count = Count()
        work(tmp_path / "out", tmp_path / work.__name__, watch=count, **options)
        assert count.total == sum(map(len, before.values()))
    count = Count()
    save("adapter", base, [EntityEdits("Ada", (CELL,))], tmp_path / "adapter", watch=count)
    assert count.total == 0
