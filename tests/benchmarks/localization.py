"""Prompts per second of localization on the demo model: 10 entities × 100 prompts and the contrast baseline.

Three ways with the same top-10 lists: one prompt at a time through plain transformers with a hook in every layer,
left-padded batches, and shared prefixes as `amnesia localize` does it. Run it with
`python tests/benchmarks/localization.py [--threads N] [--entities N]` on an idle machine.
"""

import argparse
import time
from collections import defaultdict

import torch
from torch.nn.functional import linear

from amnesia.domain import Cell
from amnesia.encoding import place
from amnesia.loading import load
from amnesia.localization import CellMap, cell_maps, contrast_pairs
from amnesia.model import batches
from amnesia.packing import trees
from amnesia.prompts import ENTITY_TEMPLATES, share_words
from amnesia.sources import resolve
from amnesia.statistics import Moments, stability, z_moments

ENTITIES = (
    "France", "Paris", "Michael Jordan", "Isaac Newton", "Harry Potter", "Star Wars", "Google", "Julius Caesar",
    "Barack Obama", "Japan",
)  # fmt: skip


def matrix_rate(d_model: int, d_mlp: int) -> float:
    """Best measured rate (FLOP/s) of a matrix product of the model's own shape."""
    inputs, weight = torch.randn(1024, d_model), torch.randn(d_mlp, d_model)
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
        tops.append([row.cell for row in CellMap(layers, stability(mean_z, std_z), mean_z, std_z).top(10)])
    return tops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--entities", type=int, default=len(ENTITIES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    names = ENTITIES[: options.entities]
    pairs = [(template, name) for name in names for template in ENTITY_TEMPLATES]
    contrasts = contrast_pairs(ENTITY_TEMPLATES)
    rows = place(live.tokenizer, [*pairs, *contrasts])
    owners = [("own", name) for _, name in pairs] + [("contrast", name) for _, name in contrasts]
    cells_in_blocks = [p.numel() for name, p in live.model.named_parameters() if ".layers." in name and p.dim() == 2]
    tokens = sum(len(tree.ids) for tree in trees([row.ids for row in rows], 192, 512))

    rates, tops = {}, {}
    for label, run in (
        ("loop", lambda: ranked(live, names, owners, one_by_one(live, rows))),
        ("batches", lambda: ranked(live, names, owners, in_batches(live, rows))),
        ("shared prefixes", lambda: [
            [row.cell for row in each.top(10)]
            for each in cell_maps(live, names, baseline="contrast", n_prompts=len(ENTITY_TEMPLATES))[0]
        ]),
    ):  # fmt: skip
        wall, cpu = time.perf_counter(), time.process_time()
        tops[label] = run()
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rates[label] = len(rows) / seconds
        print(f"{label:>16}: {rates[label]:7.1f} prompts/s ({seconds:.1f} s, of processors {cpu:.1f} s)")
    assert tops["loop"] == tops["batches"] == tops["shared prefixes"], "the ways disagree"
    assert all(isinstance(cell, Cell) for top in tops["loop"] for cell in top)
    peak = matrix_rate(live.shape.d_model, live.shape.d_mlp)
    reached = 2 * sum(cells_in_blocks) * tokens / (len(rows) / rates["shared prefixes"])
    print(
        f"{len(rows)} prompts, {sum(len(row.ids) for row in rows)} tokens, {tokens} after sharing, top-10 lists equal"
    )
    print(f"shared prefixes: {rates['shared prefixes'] / rates['loop']:.1f} × the loop")
    print(f"matrix products at {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of {peak / 1e9:.0f} GFLOP/s measured")


if __name__ == "__main__":
    main()
