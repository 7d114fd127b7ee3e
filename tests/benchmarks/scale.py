"""What one entity costs on a model of Qwen2.5-7B's shape: moments, solve and choice, as the product does them.

From the root of the project, on a machine with a large GPU, or in seconds on a CPU:

    python tests/benchmarks/scale.py --shape qwen2.5-7b --device cuda --json scale.json
    python tests/benchmarks/scale.py --shape tiny --device cpu

The model has random weights in bfloat16, made on the device, and a tokenizer that is made here: byte-level BPE over the
package's own sentences, filled up with entries that no text has to the size of the model's vocabulary. What costs time
depends on shapes alone, with one exception: nothing has been learned, so that hardly any edit brings the made-up facts
down to the goal, and the choice tries everything that it may try.

Printed for each part are seconds, floating-point operations, TFLOP/s, and the share of the matrix rate: the time that
the operations would take at the rates of large square matrix products, measured here for each type, by the time they
took. Operations are counted by formula:

    forward passes   2·n·in·out for n tokens, padding included, in every linear layer that ran, the head included;
                     attention scores are left out
    a·aᵀ             2·n·d_mlp² for n rows, in float32
    solve, all cells d_mlp³/3 + 2·d_mlp², in float64
    few cells        n³ + 2·n² for each round that n cells are left in: factor n³/3, inverse 2n³/3; in float64
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import transformers
from made_model import SHAPES, made_model

from amnesia.choice.atoms import Name
from amnesia.choice.direction import MAX_TOKENS, DirectionChoice
from amnesia.choice.known import KnownFacts, Scores
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions import moments as gathering
from amnesia.directions import response, solve
from amnesia.directions.bystanders import MomentSettings
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import BystanderMoments, early_layers, moments_of
from amnesia.directions.solve import MAX_ELIMINATED, Metric
from amnesia.domain import Fact
from amnesia.evaluation.measurement import KnownFact, Unknown, measure
from amnesia.facts.names import contrast_entities, share_words
from amnesia.facts.questions import Question
from amnesia.facts.relations import relation_templates
from amnesia.live.model import LiveModel
from amnesia.recipe import Scoring

SAMPLED = {"qwen2.5-7b": MomentSettings().sampled, "tiny": 1500}  # Tokens that the model writes for its moments.
N_SQUARE = {"cuda": 8192, "cpu": 1024}  # Rows of the matrices by which the matrix rates are measured.


ENTITY = "Ada Lovelace"
N_FACTS, N_CONTROLS = 24, 48
UNKNOWN_NATS = 5.0  # How much more likely an answer is said to be for the entity than for an unknown one.
TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


@dataclass
class Clock:
    """Seconds and operations by type of what runs between `start` and `stop`, once the device has finished."""

    device: torch.device
    operations: Counter[str] = field(default_factory=Counter)  # Of everything so far.

    def now(self) -> float:
        """Seconds, with nothing left to do for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak(self) -> float:
        """GB (10⁹ bytes): most memory of the device since the last `part` began, or of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    @contextlib.contextmanager
    def part(self, name: str, parts: list[Stage]) -> Generator[Stage]:
        """Measure what the block does and append it to `parts`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        found, before, began = Stage(name), self.operations.copy(), self.now()
        yield found
        found.seconds = self.now() - began
        found.operations += self.operations - before
        found.peak = self.peak()
        parts.append(found)

    def count_linear_layers(self, model: torch.nn.Module) -> None:
        """Count the operations of every linear layer that runs to its end."""

        def hook(module: torch.nn.Linear, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
            n = args[0].numel() // module.in_features
            self.operations[TYPES[module.weight.dtype]] += 2 * n * module.in_features * module.out_features

        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(hook)


@dataclass
class Stage:
    """One line of the table; `operations` by type, `peak` in GB."""

    name: str
    seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    peak: float = 0.0
    note: str = ""

    def share(self, rates: dict[str, float]) -> float:
        """The time that the operations would take at the matrix rates, by the time they took."""
        return sum(count / rates[dtype] for dtype, count in self.operations.items()) / self.seconds

    def row(self, rates: dict[str, float]) -> dict[str, Any]:
        """What is printed, for JSON."""
        total = sum(self.operations.values())
        return {
            "part": self.name,
            "seconds": self.seconds,
            "operations": dict(self.operations),
            "tflops": total / self.seconds / 1e12,
            "share_of_matrix_rate": self.share(rates),
            "peak_gb": self.peak,
            "note": self.note,
        }

    def line(self, rates: dict[str, float]) -> str:
        """What is printed."""
        total = sum(self.operations.values())
        return (
            f"{self.name:<34} {self.seconds:9.3f} s {total:9.2e} FLOP {total / self.seconds / 1e12:8.3g} TFLOP/s "
            f"{self.share(rates):6.1%} {self.peak:7.2f} GB  {self.note}"
        )


def matrix_rates(clock: Clock) -> dict[str, float]:
    """Best measured rate (FLOP/s) of a large square matrix product in each type."""
    n, rates = N_SQUARE[clock.device.type], {}
    for dtype, name in TYPES.items():
        one, other = (torch.randn(n, n, device=clock.device).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(6):
            began = clock.now()
            one @ other
            seconds.append(clock.now() - began)
        rates[name] = 2 * n**3 / min(seconds)
    return rates


def n_eliminated(d_mlp: int, sizes: tuple[int, ...]) -> int:
    """Operations of an inverse, the backward elimination down to the smallest of `sizes`, and the solves on the way."""
    left = min(d_mlp, MAX_ELIMINATED)
    total = left**3
    for size in sorted(sizes, reverse=True):
        while left > size:
            kept = max(size, int(left * solve._ROUND_SHARE))
            gone = left - kept
            total += 2 * left**2 + gone**3 // 3 + 2 * gone**2 * kept + 2 * gone * kept**2
            left = kept
        total += left**3 // 3 + 2 * left**2
    return total


def n_dense(d_mlp: int) -> int:
    """Operations of the solve on all cells."""
    return d_mlp**3 // 3 + 2 * d_mlp**2


@contextlib.contextmanager
def grams_counted(clock: Clock) -> Generator[Stage]:
    """Measure the sums of a·aᵀ while the block runs."""
    found, original = Stage("  of it: a·aᵀ"), gathering.add_gram

    @wraps(original)
    def timed(live: LiveModel, layer: int, rows: torch.Tensor, *further: Any) -> None:
        began = clock.now()
        original(live, layer, rows, *further)
        found.seconds += clock.now() - began
        starts, d_mlp = range(0, rows.shape[1], gathering._COLUMNS), rows.shape[1]
        n_products = sum(min(gathering._COLUMNS, d_mlp - start) * (d_mlp - start) for start in starts)
        found.operations["float32"] += 2 * len(rows) * n_products
        clock.operations["float32"] += 2 * len(rows) * n_products

    with mock.patch.object(gathering, "add_gram", timed):
        yield found


@contextlib.contextmanager
def steps_counted(clock: Clock, module: ModuleType, name: str, label: str) -> Generator[Stage]:
    """Measure what a generator of a module takes for its steps while the block runs."""
    found, original = Stage(label), getattr(module, name)

    @wraps(original)
    def timed(*args: Any) -> Iterator[Any]:
        steps = original(*args)
        while True:
            before, began = clock.operations.copy(), clock.now()
            step = next(steps, None)
            found.seconds += clock.now() - began
            found.operations += clock.operations - before
            if step is None:
                return
            yield step

    with mock.patch.object(module, name, timed):
        yield found


def gathered(live: LiveModel, settings: MomentSettings, clock: Clock, parts: list[Stage]) -> BystanderMoments:
    """The moments of the early layers, timed by kinds of cost."""
    n_rows: list[int] = []
    layers = early_layers(live.shape.n_layers)
    with (
        grams_counted(clock) as grams,
        steps_counted(clock, gathering, "activations", "  of it: forward passes") as forward,
        steps_counted(clock, gathering, "text_activations", "  of it: forward passes over text") as texts,
        steps_counted(clock, gathering, "own_text", "  of it: text that the model writes") as sampled,
        steps_counted(clock, response, "write_gradients", "  of it: gradients on text") as gradients,
        clock.part("moments", parts) as whole,
    ):
        moments = moments_of(live, layers, cache=None, settings=settings, progress=n_rows.append)
    whole.note = f"{len(layers)} layers, {sum(n_rows)} rows"
    gradients.note = "operations of the forward passes alone"
    for part in (grams, forward, texts, sampled, gradients):
        part.peak = whole.peak
        parts.append(part)
    return moments


def is_reserved(name: str) -> bool:
    """Whether another name counts as never seen."""
    return share_words(name, (ENTITY, *contrast_entities()[:4]))


def solved(live: LiveModel, moments: BystanderMoments, clock: Clock, parts: list[Stage]) -> None:
    """The read-outs of one key at one layer, on all cells and on few."""
    sizes, layer = ChoiceSettings().columns, moments.layers[-1]
    d_mlp = live.shape.d_mlp
    sizes = tuple(size for size in sizes if size < d_mlp)
    with torch.inference_mode():
        key = name_keys(live, ENTITY, (layer,), 1)[0][0]
        with grams_counted(clock), clock.part("one layer without reserved names", parts):
            second, _ = moments.without(live, layer, is_reserved, frozenset({moments.vocabulary[0][-1]}))
        Metric(second).supports(key, sizes)  # What the libraries set up once is not counted.
        with clock.part("solve, all cells", parts) as dense:
            Metric(second).read_outs([key])
        dense.operations["float64"] = n_dense(d_mlp)
        with clock.part("solve, few cells", parts) as few:
            found = Metric(second).supports(key, sizes)
        few.operations["float64"] = n_eliminated(d_mlp, sizes) + n_dense(d_mlp) * (d_mlp > MAX_ELIMINATED)
        few.note = f"on {', '.join(map(str, sorted(found)))} cells"


def made_facts(live: LiveModel, names: list[str], n: int) -> KnownFacts:
    """Facts about names in the wordings of the package, with whatever the model gives the answers."""
    wordings = [text for each in relation_templates().values() for text in each.search]
    facts = tuple(
        Fact(names[place % len(names)], wordings[place % len(wordings)], contrast_entities()[-1 - place])
        for place in range(n)
    )
    answers = measure(live, [fact.pair() for fact in facts])
    unknown = {pair: Unknown(answer.logprob - UNKNOWN_NATS, answer.logprob_first) for pair, answer in answers.items()}
    return tuple(
        KnownFact(Question("target", fact), answers[fact.pair()], unknown[fact.pair()], Scoring()) for fact in facts
    )


def chosen(live: LiveModel, moments: BystanderMoments, clock: Clock, parts: list[Stage]) -> None:
    """The atoms of the entity, and the choice among them."""
    settings = ChoiceSettings()
    name = Name(live, ENTITY, moments, is_reserved)
    with torch.inference_mode():
        with grams_counted(clock), clock.part("atoms", parts) as part:
            atoms = name.atoms(MAX_TOKENS)
        part.operations["float64"] += len(moments.layers) * n_dense(live.shape.d_mlp)
        part.note = f"{len(atoms)} atoms of {len(moments.layers)} layers"
        with clock.part("what the model knows", parts):
            targets = made_facts(live, [ENTITY], N_FACTS)
            controls = made_facts(live, list(contrast_entities()[4:]), N_CONTROLS)
        with clock.part("choice", parts) as part:
            choice = DirectionChoice(Scores(live), name, targets, controls, settings=settings)
            best = choice.on_few_columns(choice.mildest(atoms))
        part.note = f"{len(choice.trials)} trials, {N_FACTS} facts, {N_CONTROLS} controls; score {best.score:.2f}"


def shown(parts: Sequence[Stage], rates: dict[str, float]) -> None:
    """Print lines of the table."""
    for part in parts:
        print(part.line(rates), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = Clock(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    about = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": {options.shape: SHAPES[options.shape]},
        "tf32": tf32,
    }
    print(
        f"{name}, {about['threads']} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"TF32 {'on' if tf32 else 'off'}",
        flush=True,
    )
    rates = matrix_rates(clock)
    print(
        f"matrix rates at {N_SQUARE[device.type]}³: "
        + ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()),
        flush=True,
    )
    began = clock.now()
    live = made_model(options.shape, device, options.seed)
    seconds = clock.now() - began
    n_weights = sum(weight.numel() for weight in live.model.parameters())
    print(f"{options.shape}: {n_weights / 1e9:.3f}·10⁹ weights in bfloat16, made in {seconds:.1f} s", flush=True)
    clock.count_linear_layers(live.model)
    # What the libraries set up once is not counted.
    moments_of(live, (0,), settings=MomentSettings(sampled=32, length=4, vocabulary_size=64))
    if device.type == "cuda":
        torch.cuda.empty_cache()

    parts: list[Stage] = []
    settings = MomentSettings(sampled=SAMPLED[options.shape])
    moments = gathered(live, settings, clock, parts)
    n_gathered = len(parts)
    shown(parts, rates)
    solved(live, moments, clock, parts)
    n_solved = len(parts)
    shown(parts[n_gathered:], rates)
    chosen(live, moments, clock, parts)
    shown(parts[n_solved:], rates)
    if options.json:
        figures = {**about, "rates": rates, "weights": n_weights, "parts": [part.row(rates) for part in parts]}
        options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
