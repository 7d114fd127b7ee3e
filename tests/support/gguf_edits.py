"""Edits of small GGUF files and what they did, read by the `gguf` package and by transformers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, DirectionEdit, Edit
from amnesia.vector import Vector
from amnesia.weights.gguf.edit import write_edited_gguf
from amnesia.weights.gguf.proof import prove_gguf, undo_gguf
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import write_manifest
from support.tiny import write_with
from support.tiny_gguf import D_MODEL, write_gguf

# Wide enough for a direction over many columns.
D_MLP = 512
DOWN = "blk.{}.ffn_down.weight"
F32, Q4_1, Q4_K, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "Q4_1", "Q4_K", "Q8_0"))


def edits(*cells: str, multiplier: float = -1.0) -> list[ColumnEdit]:
    """The edits that multiply some cells, each named by its text."""
    return [ColumnEdit(Cell.parse(cell), multiplier) for cell in cells]


def direction(
    layer: int = 0,
    columns: tuple[int, ...] = tuple(range(5, D_MLP, 9)),
    *,
    multiplier: float = -0.5,
    seed: int = 0,
    d_model: int = D_MODEL,
    size: float = 1.0,
) -> DirectionEdit:
    """A direction that reads a long-tailed key and writes numbers of about `size`."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.2, 1.0, len(columns))
    key = rng.standard_t(3, len(columns)) * spread
    read = key / spread**2 / (key**2 / spread**2).sum()
    write = rng.normal(size=d_model) * size
    return DirectionEdit(layer, 0, multiplier, columns, *map(Vector.of, (read, write, key, spread)))


def tiny(path: Path, down: GGMLQuantizationType = GGMLQuantizationType.Q4_1, **options) -> Path:
    """A file with matrices `ffn_down` of shape (D_MODEL, D_MLP) in the type `down`."""
    path.parent.mkdir(exist_ok=True)
    return write_gguf(path, GGMLQuantizationType.Q8_0, ffn_down=down, d_mlp=D_MLP, **options)


def write(source: Path, folder: Path, *changes: Edit, **options) -> Manifest:
    """What the command does: edit into an empty folder, then the manifest."""
    folder.mkdir()
    manifest = write_with(
        write_edited_gguf, source, changes, folder, **{"entity": "Ada", "base": ModelRef("tiny"), **options}
    )
    return write_manifest(manifest, folder)


def proven(folder: Path, base: Path | None = None) -> Manifest:
    """The manifest of `folder`, after the proof that `amnesia verify` makes of a GGUF."""
    return prove_gguf(folder, base)[0]


def undo(folder: Path, target: Path) -> Path:
    """The new folder `target` with what `folder` was made of."""
    target.mkdir()
    undo_gguf(folder, target)
    return target


def delta(*edits: DirectionEdit) -> np.ndarray:
    """What directions add to the matrix, float64 (d_model, D_MLP)."""
    total = np.zeros((edits[0].write.size, D_MLP))
    for edit in edits:
        outer = np.outer(edit.write.array.astype(float), edit.read.array.astype(float))
        total[:, edit.columns] += (edit.multiplier - 1) * outer
    return total


class _WithoutWords(GGUFReader):
    """A reader that passes over lists of strings: those of a tokenizer take longer than all numbers."""

    def _get_field_parts(self, orig_offs: int, raw_type: int):
        if raw_type == GGUFValueType.ARRAY:
            kind, n = struct.unpack_from("<IQ", self.data, orig_offs)
            if kind == GGUFValueType.STRING:
                end = orig_offs + 12
                for _ in range(n):
                    end += 8 + struct.unpack_from("<Q", self.data, end)[0]
                return end - orig_offs, [], [], [GGUFValueType.ARRAY, GGUFValueType.STRING]
        return super()._get_field_parts(orig_offs, raw_type)


def tensors(path: Path, part: str = "") -> dict[str, np.ndarray]:
    """Dequantized tensors by name, read by the `gguf` package; of those only whose name contains `part`."""
    reader = _WithoutWords(path)
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors if part in tensor.name
    }


def changed_bytes(before: Path, after: Path) -> np.ndarray:
    """Places of the bytes in which two files of one size differ."""
    first, second = (np.frombuffer(path.read_bytes(), np.uint8) for path in (before, after))
    assert first.shape == second.shape
    return np.flatnonzero(first != second)


def drawn_places(path: Path, n: int, rng: np.random.Generator) -> set[int]:
    """Places of bytes of a GGUF file: `n` of the whole, one of its header, and one of the first matrix `ffn_down`.

    The whole is mostly matrices that no edit touches. Of a file of what was saved, one of its header and one behind it.
    """
    size = path.stat().st_size
    if path.suffix == ".gguf":
        reader = GGUFReader(path)
        (down,) = (tensor for tensor in reader.tensors if tensor.name == DOWN.format(0))
        regions = [(0, reader.data_offset), (down.data_offset, down.data_offset + down.n_bytes)]
    else:
        start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
        regions = [(0, start), (start, size)]
    return {*rng.integers(0, size, size=n).tolist(), *(int(rng.integers(*region)) for region in regions)}


def load(path: Path) -> PreTrainedModel:
    """The file as transformers builds it, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits (2, 7, vocabulary) of two rows of tokens."""
    ids = torch.tensor([[1, 5, 9, 33, 60, 2, 17], [4, 4, 80, 7, 21, 50, 3]])
    return model(ids).logits
