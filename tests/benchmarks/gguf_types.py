"""What an edit keeps when the matrix that it changes is stored in each GGUF type, beside quantizing it anew.

    python tests/benchmarks/extraction.py --model smollm2-135m --per-type 10 --results smollm2.jsonl
    python tests/benchmarks/gguf_types.py --model smollm2-135m --results smollm2.jsonl --output types.jsonl

For the first entities of a results file of `extraction.py` and each type whose codes can be chosen, the touched
`ffn_down` matrices are quantized and the edit is added as the product adds it: codes of its columns, nothing else. The
effect kept is (W′q − Wq)·k projected on (W′ − W)·k, as a share of the latter, where Wq is the quantized matrix, k the
key of a direction, and of several directions the lowest share counts. As rounding errors of many rows cancel in a
projection, the error at the key is given too: the size of their difference, as a share of (W′ − W)·k, the highest of
all directions. Beside both stands what quantizing the edited matrix anew gives, with other scales, as it happens where
an edited model is converted.

The scores are those of the model with W′q in memory, relative to the model with Wq: what quantizing these matrices does
by itself is in both. All other weights are those of the model that was edited. Facts that the model with Wq no longer
knows are left out.

The `gguf` package quantizes F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4. The others come from ggml itself, as it is
in the package `xllamacpp` (`pip install '.[quantizers]'`), without an importance matrix. The built-in smollm2-135m is itself made of a Q4_1
file, so that quantizing its matrices to Q4_1 loses nothing.

Lines are appended to the output as they come, so that a run that was broken off goes on where it stopped, and
`--report` prints the table of what is there. Answers are kept beside both files, in `.measured` files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from extraction import JSON
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from judging import BOUNDS, tenth_percentile
from mined import TABLE, lines, minable

from amnesia.domain import Loading
from amnesia.edits import DirectionEdit, Place, directions_of
from amnesia.errors import NumericalError
from amnesia.evaluation.damage import impression
from amnesia.evaluation.labels import kind_of
from amnesia.evaluation.measurement import known_facts, measure
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.neutral import neutral_text
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import questions_of
from amnesia.live.loading import load
from amnesia.live.model import LiveModel
from amnesia.recipe import Recipe
from amnesia.sources.resolve import resolve
from amnesia.stress.quantization import by_llama_cpp
from amnesia.weights.edit_rows import read_edit
from amnesia.weights.gguf.codes import CODES, codes_of
from amnesia.weights.gguf.container import GgufFile, GgufTensor
from amnesia.weights.gguf.pieces import Down, TensorBytes

TYPES = tuple(kind.name for kind in CODES if kind is not GGMLQuantizationType.F32)
KINDS = ("target", "held_out_target", "control", "held_out_control")
NUMBERS = {"target": "targets", "held_out_target": "held-out targets", "held_out_control": "held-out controls"}


def bits_per_weight(kind: GGMLQuantizationType) -> float:
    """Bits of a weight with its share of scales."""
    size, n_bytes = GGML_QUANT_SIZES[kind]
    return 8 * n_bytes / size


def quantized(matrix: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """A float32 matrix in blocks, uint8 (n_rows, row_bytes)."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    try:
        return quantize(matrix, kind).view(np.uint8).reshape(len(matrix), -1)
    except NotImplementedError:
        return by_llama_cpp(matrix, kind)


@dataclass(frozen=True)
class DownInMemory(Down):
    """A matrix that is in memory, in `stored`, and not in a file."""

    stored: np.ndarray

    def rows(self, overlays: Sequence[TensorBytes] = ()) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.stored.copy()


@dataclass(frozen=True)
class Stored:
    """A matrix in a GGUF type, dequantized, before and after its edit.

    `kept` and `error` are the share of the effect that the chosen codes keep and the error at the key, and `plain` and
    `plain_error` those of a new quantization. `changed` of `n` weights in the columns of the edit have other codes.
    """

    before: np.ndarray
    after: np.ndarray
    kept: float
    error: float
    plain: float
    plain_error: float
    changed: int
    n: int


def stored(matrix: np.ndarray, edits: Sequence[DirectionEdit], kind: GGMLQuantizationType) -> Stored:
    """Quantize a matrix, float32 (d_model, d_mlp), and edit it as a GGUF file is edited."""
    rows = quantized(matrix, kind)
    tensor = GgufTensor("ffn_down", kind, matrix.shape, 0, rows.nbytes)
    down = DownInMemory(cast(GgufFile, None), tensor, tuple(edits), {}, Place(edits[0].layer), {}, rows)
    changed = rows.copy()
    down.edit().after.put(changed, 0)
    exact = matrix.astype(np.float64)
    wanted = down.add(exact.copy()) - exact
    anew = quantized(exact + wanted, kind)
    before, after, plain = (dequantize(found, kind).reshape(matrix.shape) for found in (rows, changed, anew))
    layout, columns = codes_of(kind, tensor.name), down.columns
    differing = layout.values(rows, columns) != layout.values(changed, columns)
    return Stored(
        before,
        after,
        *effect(after.astype(np.float64) - before, wanted, edits),
        *effect(plain.astype(np.float64) - before, wanted, edits),
        int(differing.sum()),
        differing.size,
    )


def effect(change: np.ndarray, wanted: np.ndarray, edits: Sequence[DirectionEdit]) -> tuple[float, float]:
    """The lowest share that a direction's key gets of what it should, and the highest error there."""
    shares, errors = [], []
    for edit in edits:
        columns, key = list(edit.columns), edit.key.array.astype(np.float64)
        intended, found = wanted[:, columns] @ key, change[:, columns] @ key
        shares.append(float(found @ intended / (intended @ intended)))
        errors.append(float(np.linalg.norm(found - intended) / np.linalg.norm(intended)))
    return min(shares), max(errors)


@contextlib.contextmanager
def with_matrices(live: LiveModel, matrices: Mapping[int, np.ndarray]) -> Generator[None]:
    """Put other output projections, by layer, into a model while the block runs."""
    weights = {layer: cast(torch.Tensor, live.out_proj(layer).weight) for layer in matrices}
    originals = {layer: weight.detach().clone() for layer, weight in weights.items()}
    try:
        with torch.no_grad():
            for layer, weight in weights.items():
                matrix = torch.from_numpy(matrices[layer])
                weight.copy_(matrix if live.shape.layout.neuron_axis else matrix.T)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(originals[layer])


def neutral_logprob(live: LiveModel, cache: MeasurementCache | None = None) -> float:
    """Log-probability (nats) of all neutral text."""
    known = {} if cache is None else cache.known("neutral")
    if "all" not in known:
        known["all"] = sum(sum(reading.logprobs) for reading in impression(live, []).neutral)
        if cache is not None:
            cache.add("neutral", known)
    return known["all"]


def judged(
    live: LiveModel,
    recipe: Recipe,
    before: Mapping[int, np.ndarray],
    after: Mapping[int, np.ndarray],
    cache: MeasurementCache,
) -> dict[str, Any]:
    """What `extraction.Judge` says of an edit, with one set of matrices as the original and one as the edited model.

    `cache` is for answers of the original. Means over no known facts are None.
    """
    with with_matrices(live, before):
        facts = known_facts(live, questions_of(recipe), recipe.scoring, cache=cache, unlikely=True)
        old_text = neutral_logprob(live, cache)
    with with_matrices(live, after):
        new = measure(live, [fact.pair for fact in facts])
        try:
            lost = old_text - neutral_logprob(live)
        except NumericalError:
            lost = None
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for fact in facts:
        if not fact.excluded:
            kind = kind_of(fact.question.role, fact.question.split)
            found[kind].append(fact.score(new[fact.pair].logprob))
    n_words = sum(len(passage.split()) for text in neutral_text() for passage in text.passages)
    return {
        **{kind: statistics.fmean(scores) if scores else None for kind, scores in found.items()},
        "control_p10": tenth_percentile(found["held_out_control"]) if found["held_out_control"] else None,
        "perplexity_ratio": None if lost is None else math.exp(lost / n_words),
        "n": {kind: len(scores) for kind, scores in found.items()},
    }


def sources(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The first results of the method that hold directions."""
    rows = [row for row in lines(arguments.results) if row["method"] == arguments.method]
    return [row for row in rows if row["edits"] and all("columns" in edit for edit in row["edits"])][: arguments.n]


def run(arguments: argparse.Namespace) -> None:
    """Append a line for each entity and type that is not in the output yet."""
    torch.set_num_threads(arguments.threads)
    done = {(row["entity"], row["stored"]) for row in lines(arguments.output)}
    wanted = [
        (source, [name for name in arguments.types if (source["entity"], name) not in done])
        for source in sources(arguments)
    ]
    for kind in (GGMLQuantizationType[name] for _, names in wanted for name in names):
        quantized(np.zeros((1, 256)), kind)  # A package that is missing must not end hours of work.
    live = load(resolve(arguments.model).folder, arguments.model, Loading(device=arguments.device))
    cache = MeasurementCache(arguments.results.with_suffix(".measured"), arguments.model)
    table = read_popqa(TABLE)
    for source, names in wanted:
        recipe = minable(live, table, source["entity"], cache) if names else None
        by_layer: dict[int, list[DirectionEdit]] = defaultdict(list)
        for edit in directions_of([read_edit(JSON, row) for row in source["edits"]]):
            by_layer[edit.layer].append(edit)
        layers = ", ".join(map(str, sorted(by_layer)))
        for name in names:
            if recipe is None:
                raise SystemExit(
                    f"{source['entity']} gives no recipe with {arguments.model}: give the model of --results"
                )
            kind, start = GGMLQuantizationType[name], time.perf_counter()
            if live.shape.d_mlp % GGML_QUANT_SIZES[kind][0]:
                print(f"{name}: rows of {live.shape.d_mlp} weights are not whole blocks", flush=True)
                continue
            found = {
                layer: stored(live.out_weight(layer).cpu().numpy(), edits, kind) for layer, edits in by_layer.items()
            }
            row = {
                "entity": source["entity"],
                "type": source["type"],
                "stored": name,
                "bits": bits_per_weight(kind),
                "columns": [len(edit["columns"]) for edit in source["edits"]],
                "kept": min(each.kept for each in found.values()),
                "error": max(each.error for each in found.values()),
                "plain": min(each.plain for each in found.values()),
                "plain_error": max(each.plain_error for each in found.values()),
                "changed": sum(each.changed for each in found.values()) / sum(each.n for each in found.values()),
                **judged(
                    live,
                    recipe,
                    {layer: each.before for layer, each in found.items()},
                    {layer: each.after for layer, each in found.items()},
                    MeasurementCache(
                        arguments.output.with_suffix(".measured"), f"{arguments.model}, {name} in layers {layers}"
                    ),
                ),
            }
            row["seconds"] = time.perf_counter() - start
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{source['entity']}, {name}: {summary(row)}", flush=True)


def meets(row: Mapping[str, Any]) -> bool:
    """Whether all bounds hold; what could not be measured holds none."""
    scores = ("target", "held_out_target", "held_out_control", "control_p10", "perplexity_ratio")
    return all(row[name] is not None for name in scores) and all(holds(row) for holds in BOUNDS.values())


def summary(row: Mapping[str, Any]) -> str:
    """One result in one line."""
    scores = ", ".join(f"{label} {number(row[key], '.2f')}" for key, label in NUMBERS.items())
    return (
        f"{row['kept']:.4f} kept, error {row['error']:.4f} (quantized anew {row['plain']:.4f}, {row['plain_error']:.4f}), "
        f"{row['changed']:.0%} of codes changed, {scores}, "
        f"perplexity ratio {number(row['perplexity_ratio'], '.4f')}, {row['seconds']:.0f} s; "
        + ("all bounds met" if meets(row) else "not all bounds met")
    )


def number(value: float | None, shape: str) -> str:
    """A number that may be missing."""
    return "none" if value is None else format(value, shape)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown: a line for each type, from the most bits to the fewest."""
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_type[row["stored"]].append(row)
    text = [
        "| type | bits per weight | effect kept, median | min | error | quantized anew, median | min | error "
        "| codes changed | targets | held-out targets | held-out controls | their tenth percentile | perplexity ratio "
        "| all bounds |",
        "|---" * 15 + "|",
    ]
    for name, found in sorted(by_type.items(), key=lambda item: -item[1][0]["bits"]):
        cells = [name, f"{found[0]['bits']:g}"]
        for key, errors in (("kept", "error"), ("plain", "plain_error")):
            values = [row[key] for row in found]
            cells += [f"{statistics.median(values):.4f}", f"{min(values):.4f}"]
            cells.append(f"{statistics.median(row[errors] for row in found):.4f}")
        cells.append(f"{statistics.median(row['changed'] for row in found):.0%}")
        for key, shape in (*((key, ".2f") for key in NUMBERS), ("control_p10", ".2f"), ("perplexity_ratio", ".4f")):
            values = [row[key] for row in found if row[key] is not None]
            cells.append(number(statistics.median(values) if values else None, shape))
        cells.append(f"{sum(map(meets, found))} of {len(found)}")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON lines of extraction.py, which hold the edits")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to append to and to report")
    parser.add_argument("--model", default="smollm2-135m", help="the model of --results")
    parser.add_argument("--method", default="auto", help="the method whose edits are taken")
    parser.add_argument("--n", type=int, default=12, help="how many entities, the first ones")
    parser.add_argument("--types", nargs="*", choices=TYPES, default=list(TYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--report", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.results is None:
            parser.error("--results is needed, unless --report")
        run(arguments)
    print(report(lines(arguments.output)))


if __name__ == "__main__":
    main()
