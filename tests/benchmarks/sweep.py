"""A sweep of 20 multipliers × 10 facts on the demo model: one pass for each pair, against the batched sweep.

Run it with `python tests/benchmarks/sweep.py [--threads N]` on an idle machine.
"""

import argparse
import time
from pathlib import Path

import torch

from amnesia.domain import Cell
from amnesia.encoding import continuations
from amnesia.interventions import Asked, varied_logprobs
from amnesia.loading import load
from amnesia.recipe import load_recipe
from amnesia.sources import resolve

CELLS = [Cell(2, 273), Cell(5, 621), Cell(7, 117)]


@torch.inference_mode()
def one_by_one(live, rows, multipliers):
    """Log-probabilities of the answers, one prompt and one multiplier at a time."""
    result = []
    for multiplier in multipliers:

        def scale(neuron, multiplier=multiplier):
            def hook(_, args):
                values = args[0].clone()
                values[..., neuron] *= multiplier
                return (values,)

            return hook

        handles = [live.out_proj(cell.layer).register_forward_pre_hook(scale(cell.neuron)) for cell in CELLS]
        for row in rows:
            logprobs = live.model(torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
            places = range(len(row.ids) - row.n_answer, len(row.ids))
            result.append(sum(logprobs[place - 1, row.ids[place]].item() for place in places))
        for handle in handles:
            handle.remove()
    return torch.tensor(result).view(len(multipliers), len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "smollm2-135m" / "france.toml")
    asked = [Asked(fact.prompt, fact.entity, fact.answer) for fact in recipe.facts[:10]]
    rows = continuations(live.tokenizer, [row.pair for row in asked])
    multipliers = torch.linspace(1, -3, 20).tolist()
    seconds, found = {}, {}
    for label, run in (
        ("loop", lambda: one_by_one(live, rows, multipliers)),
        ("all tokens", lambda: varied_logprobs(live, asked, CELLS, multipliers)),
        ("entity's token", lambda: varied_logprobs(live, asked, CELLS, multipliers, entity_only=True)),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        found[label] = run()
        seconds[label] = time.perf_counter() - wall
        print(f"{label:>16}: {seconds[label]:6.2f} s, of processors {time.process_time() - cpu:6.2f} s")
    difference = (found["loop"] - found["all tokens"]).abs().max().item()
    assert difference < 1e-3, f"the ways differ by {difference} nats"
    for label in ("all tokens", "entity's token"):
        print(f"{label}: {seconds['loop'] / seconds[label]:.1f} × the loop")
    print(f"largest difference {difference:.1e} nats")


if __name__ == "__main__":
    main()
