"""What the moments of a large model take: peak memory, and the rate beside that of plain matrix products.

    python tests/benchmarks/moments_memory.py --n-layers 5 --sampled 0 --vocabulary 64

A model of Qwen2.5-7B's MLP width with narrow layers (random weights, d_model 64), whose forward passes cost next to
nothing, so that what is measured is the matrices: gathered into a file, and the read-out of one layer solved on all
cells. Rates count n·d² multiplications and additions of each layer, and d³/3 for the factor, whatever was computed; the
rate beside it is that of one float32 product in the same process. Seconds are those of the processor, so that other
work on the machine does not count; give one thread. Memory is the peak of the process (GB), mapped pages
included, above what it took before.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from amnesia.directions.bystanders import Bystanders, MomentSettings, bystanders_of
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import moments_of
from amnesia.directions.solve import Metric
from amnesia.live.loading import load_tokenizer
from amnesia.live.model import freeze, wrap
from amnesia.sources.resolve import resolve

ENTITY = "Steve Jobs"


def peak() -> float:
    """Peak memory of the process in GB, on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def product_rate(n: int = 4096) -> float:
    """Operations a second of the faster of two float32 products."""
    a, took = torch.randn(n, n), []
    for _ in range(2):
        began = time.process_time()
        a @ a
        took.append(time.process_time() - began)
    return 2 * n**3 / min(took)


def n_gathered(read: Bystanders) -> int:
    """How many activations are in the matrices of one layer."""
    own = sum(len(row) + read.n_following - 1 for row in read.beginnings)
    return sum(len(row) - 1 for row in read.sentences) + own + len(read.vocabulary) + len(read.name_rows)


def main() -> None:
    """Gather, solve, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-layers", type=int, default=5)
    parser.add_argument("--d-mlp", type=int, default=18_944)
    parser.add_argument("--sampled", type=int, default=MomentSettings.sampled, help="tokens that the model writes")
    parser.add_argument("--vocabulary", type=int, default=MomentSettings.vocabulary_size, help="rows of vocabulary")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=arguments.d_mlp,
        num_hidden_layers=arguments.n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    live = wrap(freeze(Qwen2ForCausalLM(config)), tokenizer, "wide")
    layers = tuple(range(arguments.n_layers))
    settings = replace(MomentSettings(), sampled=arguments.sampled, vocabulary_size=arguments.vocabulary)
    rate, before = product_rate(), peak()
    d = arguments.d_mlp
    with TemporaryDirectory(dir=Path.cwd()) as cache:
        began = time.process_time()
        moments = moments_of(live, layers, Path(cache), settings)
        gathering, after = time.process_time() - began, peak()
        n_tokens = n_gathered(bystanders_of(live, settings))
        print(f"{arguments.n_layers} layers of {d:,} cells, {n_tokens:,} tokens; {rate / 1e9:.0f} GFLOP/s in float32")
        done = 2 * n_tokens * d**2 * arguments.n_layers
        print(f"gathered in {gathering:.0f} s: {done / gathering / rate:.0%} of that rate, {after - before:.1f} GB")
        began = time.process_time()
        second, _ = moments.without(live, 0, lambda _: False, frozenset())
        (found,) = Metric(second).read_outs([name_keys(live, ENTITY, (0,), 1)[0][0]])
        solving = time.process_time() - began
        done += d**3 / 3
        print(f"one layer solved in {solving:.0f} s, leak {found.leak:.3g}, {peak() - before:.1f} GB")
        print(f"together {done / (gathering + solving) / rate:.0%} of the rate")


if __name__ == "__main__":
    main()
