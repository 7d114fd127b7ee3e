"""Prompts per second and memory of localization on a real model: 10 entities × 100 prompts and the contrast baseline.

From the root of the project, on an idle machine:

    OMP_NUM_THREADS=2 python tests/benchmarks/localization.py --model smollm2-135m
    python tests/benchmarks/localization.py --dtype bfloat16 --entities 2
    python tests/benchmarks/localization.py --memory

The first two compare ways to the top-10 cells of each entity, all layers ranked: the loop, one prompt at a time
through plain transformers with a hook in every layer; left-padded batches; and shared prefixes, as `amnesia localize`
computes them. In float32 the lists must be equal, in bfloat16 what they have in common is printed. With nnsight
installed (`pip install nnsight`), it traces the first prompts of the loop for comparison, as the authors of the
experiments do. Printed are prompts per second, and the matrix products that the shared way comes to, as a share of
what `torch.nn.functional.linear` reaches alone at the model's shapes.

`--memory` prints the peak memory of localizing one entity with 100, 400 and 1600 prompts, and four times as many of
the baseline, each in a process of its own.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import time
from collections import defaultdict

import torch
from torch.nn.functional import linear

from amnesia.domain import Loading
from amnesia.facts.names import entity_templates, share_words
from amnesia.live.batches import batches
from amnesia.live.loading import load
from amnesia.live.tokens import place
from amnesia.live.trees import TREE_TOKENS, trees
from amnesia.localization.cells import SETTINGS, CellMap, cell_maps, contrast_pairs
from amnesia.localization.moments import Moments, stability, z_moments
from amnesia.sources.resolve import resolve

OPENINGS = (
    "", "Well, ", "Now, ", "Yes, ", "So, ", "Then, ", "Once more, ", "First of all, ", "In short, ", "As we know, ",
    "By the way, ", "At last, ", "To begin with, ", "In a word, ", "As it happens, ", "For the record, ",
)  # fmt: skip
N_TRACED = 50
ENTITIES = (
    "France", "Paris", "Michael Jordan", "Isaac Newton", "Harry Potter", "Star Wars", "Google", "Julius Caesar",
    "Barack Obama", "Japan",
)  # fmt: skip


def matrix_rate(d_model: int, d_mlp: int, dtype: torch.dtype) -> float:
    """Best measured rate (FLOP/s) of a matrix product of the model's own shape."""
    inputs, weight = torch.randn(1024, d_model, dtype=dtype), torch.randn(d_mlp, d_model, dtype=dtype)
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        linear(inputs, weight)
        best = max(best, 2 * 1024 * d_model * d_mlp / (time.perf_counter() - began))
    return best


def hooked(live):
    """Record the activations (batch, tokens, d_mlp) of every layer."""
    seen = {}
    handles = [
        live.out_proj(layer).register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args[0]}))
        for layer in range(live.shape.n_layers)
    ]
    return seen, handles


@torch.inference_mode()
def one_by_one(live, rows):
    """The loop: a complete forward pass for each prompt."""
    seen, handles = hooked(live)
    found = []
    for row in rows:
        live.model(input_ids=torch.tensor([row.ids]), use_cache=False)
        found.append(torch.stack([seen[layer][0, row.token] for layer in range(live.shape.n_layers)]))
    for handle in handles:
        handle.remove()
    return found


def traced(live, rows):
    """The loop by nnsight: one trace for each prompt, the input of every output projection saved."""
    from nnsight import LanguageModel

    model = LanguageModel(live.model, tokenizer=live.tokenizer)
    found = []
    for row in rows:
        seen = []
        with torch.no_grad(), model.trace(torch.tensor([row.ids])):
            for layer in model.model.layers:
                seen.append(layer.mlp.down_proj.input[0, row.token].save())
        found.append(torch.stack(seen))
    return found


@torch.inference_mode()
def in_batches(live, rows):
    """Left-padded batches without the language-model head."""
    seen, handles = hooked(live)
    found = [None] * len(rows)
    for batch in batches(live, [row.ids for row in rows]):
        live.model.base_model(**batch.inputs, use_cache=False)
        for line, (index, padding) in enumerate(zip(batch.indices, batch.padding.tolist(), strict=True)):
            found[index] = torch.stack(
                [seen[layer][line, padding + rows[index].token] for layer in range(live.shape.n_layers)]
            )
    for handle in handles:
        handle.remove()
    return found


def ranked(live, names, owners, found):
    """Top-10 cells of each entity from the activations of all prompts, with the moments taken at once."""
    layers = tuple(range(live.shape.n_layers))
    groups = defaultdict(list)
    for (kind, name), values in zip(owners, found, strict=True):
        groups[kind, name].append(values)
    tops = []
    for name in names:
        others = [v for (kind, other), rows in groups.items() if kind == "contrast" for v in rows
                  if not share_words(other, (name,))]  # fmt: skip
        mean_z, std_z = z_moments(Moments.of(torch.stack(groups["own", name])), Moments.of(torch.stack(others)))
        tops.append(
            [row.cell for row in CellMap(layers, stability(mean_z, std_z, SETTINGS.std_floor), mean_z, std_z).top(10)]
        )
    return tops


def memory(model: str, n_prompts: int) -> None:
    """Print the peak memory of this process before and after localizing one entity."""
    live = load(resolve(model).folder, model)
    prompts = [opening + template for opening in OPENINGS for template in entity_templates()][:n_prompts]
    # A first small run, so that what libraries allocate once is not taken for what prompts cost.
    cell_maps(live, ["Paris"], baseline="contrast", n_prompts=100, prompts=prompts[:20])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    cell_maps(live, ["Paris"], baseline="contrast", n_prompts=100, prompts=prompts)
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n_prompts:>5} prompts and {4 * n_prompts} of the baseline: peak {peak:.0f} MB, "
        f"{peak - before:.0f} MB above that of 20 prompts ({seconds:.1f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model, a folder or a Hub id")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--entities", type=int, default=len(ENTITIES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory", nargs="?", const=0, type=int, metavar="PROMPTS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(options.model, options.memory)
        return
    if options.memory == 0:
        for n_prompts in (100, 400, 1600):
            given = ("--model", options.model, "--threads", str(options.threads), "--memory", str(n_prompts))
            subprocess.run([sys.executable, __file__, *given], check=True)
        return
    live = load(resolve(options.model).folder, options.model, Loading(options.dtype))
    names = ENTITIES[: options.entities]
    pairs = [(template, name) for name in names for template in entity_templates()]
    contrasts = contrast_pairs(entity_templates())
    rows = place(live.tokenizer, [*pairs, *contrasts])
    owners = [("own", name) for _, name in pairs] + [("contrast", name) for _, name in contrasts]
    cells_in_blocks = [p.numel() for name, p in live.model.named_parameters() if ".layers." in name and p.dim() == 2]
    tokens = sum(len(tree.ids) for tree in trees([row.ids for row in rows], TREE_TOKENS, len(rows)))

    rates, tops = {}, {}
    for label, run in (
        ("loop", lambda: ranked(live, names, owners, one_by_one(live, rows))),
        ("batches", lambda: ranked(live, names, owners, in_batches(live, rows))),
        ("shared prefixes", lambda: [
            [row.cell for row in each.top(10)]
            for each in cell_maps(live, names, baseline="contrast", n_prompts=len(entity_templates()))[0]
        ]),
    ):  # fmt: skip
        wall, cpu = time.perf_counter(), time.process_time()
        tops[label] = run()
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rates[label] = len(rows) / seconds
        print(f"{label:>16}: {rates[label]:7.1f} prompts/s ({seconds:.1f} s, of processors {cpu:.1f} s)", flush=True)
    if importlib.util.find_spec("nnsight"):
        traced(live, rows[:1])  # What it compiles once is not counted.
        began = time.perf_counter()
        found = traced(live, rows[:N_TRACED])
        rates["nnsight"] = N_TRACED / (time.perf_counter() - began)
        print(f"{'nnsight':>16}: {rates['nnsight']:7.1f} prompts/s (the first {N_TRACED})")
        for one, other in zip(found, one_by_one(live, rows[:N_TRACED]), strict=True):
            assert torch.equal(one, other), "nnsight sees other activations"
    print(f"{len(rows)} prompts, {sum(len(row.ids) for row in rows)} tokens, {tokens} after sharing")
    if options.dtype == "float32":
        assert tops["loop"] == tops["batches"] == tops["shared prefixes"], "the ways disagree"
        print("top-10 lists equal")
    else:
        pairs = list(zip(tops["loop"], tops["shared prefixes"], strict=True))
        common = sum(len(set(one) & set(other)) for one, other in pairs) / (10 * len(pairs))
        same = sum(one[0] == other[0] for one, other in pairs)
        print(f"of the top-10 lists {common:.0%} in common, the same first cell for {same} of {len(pairs)} entities")
    for other in ("loop", "batches", "nnsight"):
        if other in rates:
            print(f"shared prefixes: {rates['shared prefixes'] / rates[other]:.1f} × {other}")
    peak = matrix_rate(live.shape.d_model, live.shape.d_mlp, live.model.dtype)
    reached = 2 * sum(cells_in_blocks) * tokens / (len(rows) / rates["shared prefixes"])
    print(f"matrix products at {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of {peak / 1e9:.0f} GFLOP/s measured")


if __name__ == "__main__":
    main()
