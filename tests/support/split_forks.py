"""Two processes, forked with all modules loaded, that hold one model together as those that `torchrun` starts.

Run as a script with a model folder, a recipe of both formats, the file of the questions on general ability, an output
for the run of the recipe, beside which "alone" gets the adapter without weights, and a folder in which each process puts what it saw of the model as N.pt.
"""

import os
import socket
import sys
from pathlib import Path

import torch

from amnesia.directions.response import drawn_weights
from amnesia.domain import Loading
from amnesia.facts import ability
from amnesia.live.forward import answer_logprobs, continued
from amnesia.live.loading import load
from amnesia.live.split import end
from amnesia.live.tokens import place
from amnesia.live.watching import activations, write_gradients
from amnesia.pipeline import run
from amnesia.recipe_file import load_recipe, parse_recipe
from support.smollm2 import FEW_CHARACTERS, brief_texts
from support.warm import warm

WORDINGS = ("the capital of {entity} is", "people in {entity} like", "Once upon a time in {entity}")
N_PROCESSES = 2


def seen(live):
    """What is asked of a model, whole or shared."""
    rows = place(live.tokenizer, [(wording, "Japan") for wording in WORDINGS])
    prompts = [wording.replace("{entity}", "Peru") for wording in WORDINGS]
    layers = range(live.shape.n_layers)
    return {
        "weights": torch.stack([live.out_weight(layer).clone() for layer in layers]),
        "activations": torch.cat([batch.clone() for _, batch in activations(live, rows, layers)]),
        "gradients": torch.cat(
            [part for _, part in write_gradients(live, [row.ids for row in rows], layers, drawn_weights())]
        ),
        "logprobs": torch.tensor([answer.logprob for answer in answer_logprobs(live, [(p, "water") for p in prompts])]),
        "continued": torch.tensor([row.ids for row in continued(live, prompts[:1], 6)]),
    }


def child(rank, port, folder, recipe, output, results):
    """Do the work; never returns."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_PROCESSES)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    try:
        loading = Loading(split=True)
        torch.save(seen(load(Path(folder), "tiny", loading)), Path(results) / f"{rank}.pt")
        with brief_texts(FEW_CHARACTERS):
            run(load_recipe(Path(recipe)), Path(output), loading=loading)
            alone = Path(recipe).read_text(encoding="utf-8").replace('["safetensors", "adapter"]', '["adapter"]')
            run(parse_recipe(alone), Path(output).with_name("alone"), loading=loading)
        end()
    except BaseException as error:
        sys.stderr.write(f"process {rank}: {error!r}\n")
        os._exit(4)
    os._exit(0)


def main():
    """Fork, and end well if all did."""
    torch.set_num_threads(1)
    warm()
    folder, recipe, ability_file, output, results = sys.argv[1:]
    ability._FILE = Path(ability_file)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    children = [os.fork() or child(rank, port, folder, recipe, output, results) for rank in range(N_PROCESSES)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children))


if __name__ == "__main__":
    main()
