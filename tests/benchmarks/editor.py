"""Time and memory of every way to save an edit, beside `cp -r` and beside transformers, in one run.

    python tests/benchmarks/editor.py --folder /path/on/the/disk/to/measure

The checkpoint is synthetic: the shapes of Qwen2.5-7B in BF16, 15.2 GB in 4 shards; `--layers 1` gives 2.6 GB, and
`--small` a model of about 1 GB. Nothing is downloaded. Every row is measured in the same state: all earlier outputs are
removed, everything is written to the disk, and the pages of the source are dropped from the page cache, so that all
rows read from the disk. Seconds are wall time of the whole process, Python's start included; only for transformers the
import (which takes seconds) is left out. Where rows are repeated, the fastest one counts. `cp` returns before its copy
is on the disk, so that `cp -r` with a sync after it is a row of its own; outputs of amnesia are always on the disk.

Peak memory is the largest resident set of the process as the kernel counts it, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SHARD_BYTES = 4 * 10**9
# d_model, d_mlp, vocabulary, heads, heads of keys and values: those of Qwen2.5-7B and Qwen2.5-0.5B.
BIG, SMALL = (3584, 18944, 152064, 28, 4), (896, 4864, 151936, 14, 2)
GB = 1e9


@dataclass(frozen=True)
class Measured:
    """What one process took: wall seconds, the largest resident set in bytes, and the load before it started."""

    seconds: float
    peak: int
    load: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    measured: Measured


def tensor_shapes(n_layers: int, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """All tensors of a Qwen2 model with an untied head, in the order of its files."""
    d_model, d_mlp, vocabulary, n_heads, n_kv_heads = sizes
    d_kv = d_model // n_heads * n_kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, d_model)}
    for layer in range(n_layers):
        stem = f"model.layers.{layer}"
        for name, width in (("q", d_model), ("k", d_kv), ("v", d_kv)):
            shapes[f"{stem}.self_attn.{name}_proj.weight"] = (width, d_model)
            shapes[f"{stem}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{stem}.self_attn.o_proj.weight"] = (d_model, d_model)
        shapes[f"{stem}.mlp.gate_proj.weight"] = shapes[f"{stem}.mlp.up_proj.weight"] = (d_mlp, d_model)
        shapes[f"{stem}.mlp.down_proj.weight"] = (d_model, d_mlp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{stem}.{name}.weight"] = (d_model,)
    shapes["model.norm.weight"] = (d_model,)
    shapes["lm_head.weight"] = (vocabulary, d_model)
    return shapes


def make_checkpoint(folder: Path, n_layers: int, sizes: tuple[int, ...]) -> None:
    """Write config and shards with normally distributed weights; keeps 64 MB in memory."""
    import ml_dtypes
    import numpy as np

    d_model, d_mlp, vocabulary, n_heads, n_kv_heads = sizes
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": d_model,
        "intermediate_size": d_mlp, "num_hidden_layers": n_layers, "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads, "vocab_size": vocabulary, "tie_word_embeddings": False,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    }  # fmt: skip
    shapes = tensor_shapes(n_layers, sizes)
    shards: list[dict[str, tuple[int, int]]] = [{}]
    end = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if end and end + size > SHARD_BYTES:
            shards.append({})
            end = 0
        shards[-1][name] = (end, end + size)
        end += size
    pattern = np.random.default_rng(0).normal(0, 0.02, 2**25).astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file_name)
        rows = {
            name: {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": list(place)}
            for name, place in shard.items()
        }
        header = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode()
        header += b" " * (-len(header) % 8)
        with (folder / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            left = next(reversed(shard.values()))[1]
            while left > 0:
                left -= file.write(memoryview(pattern)[: min(left, len(pattern))])
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def edit_with_transformers(source: Path, output: Path, layer: int, neuron: int) -> None:
    """What people do without this package; writes the seconds without imports to `seconds` beside the output."""
    import torch
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[:, neuron] *= -1
    model.save_pretrained(output)
    output.with_name("seconds").write_text(str(time.perf_counter() - start))


def measure(command: Sequence[str], *, quiet: bool = True) -> Measured:
    """Run a process to its end; raises RuntimeError when it fails."""
    load = os.getloadavg()[0]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if quiet else None)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    # Linux counts in KiB, macOS in bytes.
    return Measured(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), load)


def settle(folder: Path) -> None:
    """Write everything to the disk, and drop the pages of all files under `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cells(count: int, n_layers: int, d_mlp: int) -> list[str]:
    """Options for `count` cells, spread evenly over all layers."""
    return [
        part for number in range(count) for part in ("--cell", f"{number % n_layers}:{(number * 7919 + 5) % d_mlp}")
    ]


def benchmark(folder: Path, n_layers: int, sizes: tuple[int, ...], repeat: int, counts: Sequence[int]) -> list[Row]:
    """All rows for one checkpoint."""
    source, output = folder / "source", folder / "out"
    amnesia = [sys.executable, "-m", "amnesia"]
    undo = [*amnesia, "undo", str(source), "--in-place"]
    rows: list[Row] = []

    def add(name: str, run: Callable[[], Measured], after: Callable[[], object] = lambda: None) -> None:
        found = []
        for _ in range(repeat):
            shutil.rmtree(output, ignore_errors=True)
            settle(source)
            found.append(run())
            after()
        best = min(found, key=lambda measured: measured.seconds)
        shutil.rmtree(output, ignore_errors=True)
        rows.append(Row(name, best))
        print(f"  {name}: {best.seconds:.2f} s, {best.peak / 1e6:.0f} MB, load {best.load:.1f}", file=sys.stderr)

    def with_transformers() -> Measured:
        found = measure([sys.executable, __file__, "transformers", str(source), str(output), "0", "5"])
        inner = folder / "seconds"
        seconds = float(inner.read_text())
        inner.unlink()
        return Measured(seconds, found.peak, found.load)

    copy = ["cp", "-r", str(source), str(output)]
    add("cp -r", lambda: measure(copy))
    add("cp -r, sync", lambda: measure(["sh", "-c", f"{' '.join(copy)} && sync -f {output}"]))
    add("transformers", with_transformers)
    for count in counts:
        chosen = cells(count, n_layers, sizes[1])
        edit = [*amnesia, "edit", str(source), *chosen]
        for name, options in (("full copy", []), ("--link", ["--link"]), ("adapter", ["--format", "adapter"])):
            command = [*edit, *options, "-o", str(output)]
            add(f"{name}, {count} cells", lambda command=command: measure(command))
        add(f"--in-place, {count} cells", lambda edit=edit: measure([*edit, "--in-place"]), lambda: measure(undo))

        def undo_an_edit(edit: Sequence[str] = edit) -> Measured:
            measure([*edit, "--in-place"])
            settle(source)
            return measure(undo)

        add(f"undo --in-place, {count} cells", undo_an_edit)
    return rows


def print_table(title: str, rows: Sequence[Row]) -> None:
    """The rows as a Markdown table, with ratios to `cp -r` and to transformers."""
    seconds = {row.name: row.measured.seconds for row in rows}
    print(f"\n{title}\n\n| | seconds | of cp | of transformers | peak MB | load before |\n|---|---|---|---|---|---|")
    for row in rows:
        found = row.measured
        print(
            f"| {row.name} | {found.seconds:.2f} | {found.seconds / seconds['cp -r']:.2f} "
            f"| {found.seconds / seconds['transformers']:.2f} | {found.peak / 1e6:.0f} | {found.load:.1f} |"
        )


def main() -> None:
    """Make the checkpoint, measure, print, and remove everything."""
    if sys.argv[1:2] == ["make"]:
        make_checkpoint(Path(sys.argv[2]), int(sys.argv[3]), SMALL if sys.argv[4] == "small" else BIG)
        return
    if sys.argv[1:2] == ["transformers"]:
        edit_with_transformers(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--layers", type=int, help="layers of the checkpoint; default: all of them")
    parser.add_argument("--small", action="store_true", help="the shapes of Qwen2.5-0.5B instead, about 1.3 GB")
    parser.add_argument("--repeat", type=int, default=2, help="runs per row, of which the fastest counts")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 100])
    chosen = parser.parse_args()
    sizes, n_layers = (SMALL, chosen.layers or 24) if chosen.small else (BIG, chosen.layers or 28)
    size = 2 * sum(map(math.prod, tensor_shapes(n_layers, sizes).values()))
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="amnesia-benchmark-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 2.1 * size:
            raise SystemExit(f"{folder} has {free / GB:.1f} GB free, {2.1 * size / GB:.1f} are needed: use --folder")
        (folder / "source").mkdir()
        # In a process of its own, because a child's peak starts at that of its parent.
        measure(
            [
                sys.executable,
                __file__,
                "make",
                str(folder / "source"),
                str(n_layers),
                "small" if chosen.small else "big",
            ]
        )
        rows = benchmark(folder, n_layers, sizes, chosen.repeat, chosen.cells)
    print_table(f"{size / GB:.2f} GB, {n_layers} layers, cold page cache, fastest of {chosen.repeat}", rows)


if __name__ == "__main__":
    main()
