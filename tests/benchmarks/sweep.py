"""A sweep of 20 multipliers × 10 facts on a real model: one pass for each pair, against the batched sweep.

From the root of the project, on an idle machine:

    OMP_NUM_THREADS=2 python tests/benchmarks/sweep.py --model smollm2-135m

The loop runs plain transformers with a hook for each cell, one prompt and one multiplier at a time. With nnsight
installed (`pip install nnsight`), it traces the first multipliers, as the authors of the experiments do. The batched
sweep is timed with the cells scaled at all tokens, as a permanent edit acts, and at the entity's last token only; each
is compared with a loop that does the same. The fastest of three runs counts for the sweeps, and one run for the loops.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import torch

from amnesia.domain import Cell
from amnesia.live.interventions import Asked, place_asked, varied_logprobs
from amnesia.live.loading import load
from amnesia.live.tokens import continuations
from amnesia.recipe_file import load_recipe
from amnesia.sources.resolve import resolve

CELLS = [Cell(2, 273), Cell(5, 621), Cell(7, 117)]
N_TRACED = 3


def answer_logprob(row, logits) -> float:
    """Log-probability (nats) of the answer that ends a row, from the row's logits (tokens, vocabulary)."""
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[place - 1, row.ids[place]].item() for place in range(len(row.ids) - row.n_answer, len(row.ids)))


@torch.inference_mode()
def one_by_one(live, rows, places, multipliers):
    """Log-probabilities of the answers, with the cells scaled at the given places of each row."""
    result = []
    for multiplier in multipliers:
        for row, place in zip(rows, places, strict=True):

            def scale(neuron, multiplier=multiplier, place=place):
                def hook(_, args):
                    values = args[0].clone()
                    values[:, place, neuron] *= multiplier
                    return (values,)

                return hook

            handles = [live.out_proj(cell.layer).register_forward_pre_hook(scale(cell.neuron)) for cell in CELLS]
            result.append(answer_logprob(row, live.model(torch.tensor([row.ids]), use_cache=False).logits[0]))
            for handle in handles:
                handle.remove()
    return torch.tensor(result).view(len(multipliers), len(rows))


def traced(live, rows, multipliers):
    """The loop by nnsight, with the cells scaled at all tokens."""
    from nnsight import LanguageModel

    model = LanguageModel(live.model, tokenizer=live.tokenizer)
    result = []
    for multiplier in multipliers:
        for row in rows:
            with torch.no_grad(), model.trace(torch.tensor([row.ids])):
                for cell in CELLS:
                    model.model.layers[cell.layer].mlp.down_proj.input[:, :, cell.neuron] *= multiplier
                logits = model.lm_head.output[0].save()
            result.append(answer_logprob(row, logits))
    return torch.tensor(result).view(len(multipliers), len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model, a folder or a Hub id")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    live = load(resolve(options.model).folder, options.model)
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/smollm2-135m/candidates/france.toml")
    asked = [Asked(fact.prompt, fact.entity, fact.answer) for fact in recipe.facts[:10]]
    rows = continuations(live.tokenizer, [row.pair for row in asked])
    entity_at = [placed.token for placed in place_asked(live, asked)]
    multipliers = torch.linspace(1, -3, 20).tolist()
    everywhere = [slice(None)] * len(rows)
    one_by_one(live, rows[:1], everywhere[:1], multipliers[:1])  # Warm up.

    for label, places, entity_only in (("all tokens", everywhere, False), ("entity's token", entity_at, True)):
        began = time.perf_counter()
        loop = one_by_one(live, rows, places, multipliers)
        loop_seconds = time.perf_counter() - began
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            found = varied_logprobs(live, asked, CELLS, multipliers, entity_only=entity_only)
            seconds.append(time.perf_counter() - began)
        difference = (loop - found).abs().max().item()
        assert difference < 1e-3, f"the ways differ by {difference} nats"
        print(
            f"{label:>14}: loop {loop_seconds:.2f} s, batched {', '.join(f'{value:.2f}' for value in seconds)} s, "
            f"{loop_seconds / min(seconds):.1f} times as fast, largest difference {difference:.1e} nats",
            flush=True,
        )
        if not entity_only and importlib.util.find_spec("nnsight"):
            traced(live, rows[:1], multipliers[:1])  # What it compiles once is not counted.
            began = time.perf_counter()
            assert (traced(live, rows, multipliers[:N_TRACED]) - loop[:N_TRACED]).abs().max() < 1e-3
            whole = (time.perf_counter() - began) * len(multipliers) / N_TRACED
            print(
                f"       nnsight: {whole:.2f} s for all, from {N_TRACED} of the multipliers; "
                f"batched {whole / min(seconds):.1f} times as fast",
                flush=True,
            )


if __name__ == "__main__":
    main()
