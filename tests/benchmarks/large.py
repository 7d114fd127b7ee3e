"""What a checkpoint costs of which only a part is needed at a time: its first layers, or one layer after the other.

From the root of the project, on an idle machine with room on the disk (15.2 GB for all 28 layers):

    python tests/benchmarks/large.py make /tmp/qwen --layers 28
    python tests/benchmarks/large.py localize /tmp/qwen --beside OTHER_CHECKOUT --plain 50
    python tests/benchmarks/large.py offload /tmp/qwen
    python tests/benchmarks/large.py moments /tmp/qwen
    python tests/benchmarks/large.py fetch /tmp/qwen

`make` writes a model of Qwen2.5-7B's shape with random weights in bfloat16, some numbers repeated, and a tokenizer of
the package's own sentences. `localize` runs `amnesia localize` of five entities in layers 0 to 4, computed in bfloat16,
with this code and with that of another checkout, turn by turn, and prints seconds and peak memory (GB, 10⁹ bytes, of
the process, pages of mapped files included) of each. In the same turns a plain loop of transformers, the whole model
with a hook in each of these layers, asks as many of the same prompts as `--plain` says, one at a time; printed are its
seconds for all prompts at that rate, and how far the package's activations are from its own. `offload` asks the whole model some questions while its layers
are left on the disk, and prints peak memory, seconds, and what was read from the layers by the second. `moments` adds
one block of rows to the second moments of one layer, and solves for a read-out on all of its cells, with random rows;
it prints both as shares of the rate of large square products in the same type, and the peak memory. `fetch` puts the
model on a Hub on the loopback interface, localizes from there with an empty cache, and prints which share of the
repository's bytes was sent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from made_model import made_config, made_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from amnesia.directions import moments as gathering
from amnesia.directions.solve import Metric
from amnesia.domain import Loading
from amnesia.facts.names import contrast_entities, entity_templates
from amnesia.facts.relations import relation_templates
from amnesia.live.forward import answer_logprobs
from amnesia.live.loading import load
from amnesia.live.tokens import Placed, Tokenizer, place
from amnesia.live.watching import activations
from amnesia.localization.cells import contrast_pairs
from amnesia.weights.safetensors import INDEX_FILE, NewTensor, new_file

sys.path.append(str(Path(__file__).parents[1]))
from support.hub_state import Entry, Repo, is_lfs
from support.local_hub import LocalHub

ENTITIES = ("Michael Jordan", "Paris", "Harry Potter", "Google", "Isaac Newton")
LAYERS = (0, 1, 2, 3, 4)
PLAIN = "a plain loop"
SHARD = 4_000_000_000
GB = 1e9


def made(folder: Path, n_layers: int) -> None:
    """Write the model."""
    config = made_config("qwen2.5-7b", num_hidden_layers=n_layers)
    config.architectures, config.dtype = ["Qwen2ForCausalLM"], "bfloat16"
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    made_tokenizer(config.vocab_size).save_pretrained(folder)
    noise = (torch.randn(2**24 + 1, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    block = noise.view(torch.int16).numpy().astype(np.int16).tobytes()
    one = torch.ones(1).bfloat16().view(torch.int16).numpy().tobytes()

    def numbers(name: str, size: int) -> Iterator[bytes]:
        if name.endswith("norm.weight"):
            yield one * (size // 2)
            return
        for start in range(0, size, len(block)):
            yield block[: min(len(block), size - start)]

    shards: list[list[str]] = [[]]
    sizes = {name: tensor.numel() * 2 for name, tensor in described.items()}
    for name in described:
        if shards[-1] and sum(sizes[key] for key in shards[-1]) + sizes[name] > SHARD:
            shards.append([])
        shards[-1].append(name)
    location = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        location |= dict.fromkeys(names, file)
        tensors = [NewTensor(name, "BF16", tuple(described[name].shape), numbers(name, sizes[name])) for name in names]
        with (folder / file).open("xb") as out:
            out.writelines(new_file(tensors))
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": location}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    print(f"{folder}: {n_layers} layers, {sum(sizes.values()) / GB:.1f} GB")


def run(code: Path, *arguments: object, **variables: str) -> tuple[float, float, str]:
    """Seconds, peak memory (GB) and output of a command with the code of a checkout, in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(code), **variables}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd="/")
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / GB, output


def prompts_of(tokenizer: Tokenizer) -> list[Placed]:
    """What localizing the entities asks: their own prompts, and the baseline's."""
    pairs = [(template, name) for name in ENTITIES for template in entity_templates()]
    return place(tokenizer, [*pairs, *contrast_pairs(entity_templates())])


@torch.inference_mode()
def plain(folder: Path, n: int, dtype: str) -> None:
    """Ask the first prompts with transformers alone, in this process, and print what it took as JSON."""
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    loaded = time.perf_counter()
    rows = prompts_of(cast(Tokenizer, AutoTokenizer.from_pretrained(folder)))
    asked, seen, found = rows[:: max(1, len(rows) // n)][:n], {}, []
    for layer in LAYERS:
        module = model.model.layers[layer].mlp.down_proj
        module.register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args[0]}))
    start = time.perf_counter()
    for row in asked:
        model(input_ids=torch.tensor([row.ids]), use_cache=False)
        found.append(torch.stack([seen[layer][0, row.token].float() for layer in LAYERS]))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    own = load(folder, str(folder), Loading(dtype), n_layers=len(LAYERS))
    plainly, expected = torch.stack(found), torch.zeros(len(asked), len(LAYERS), own.shape.d_mlp)
    for indices, batch in activations(own, asked, LAYERS):
        expected[list(indices)] = batch
    apart = float((plainly - expected).abs().max() / plainly.abs().max())
    whole = loaded - began + seconds * len(rows) / len(asked)
    result = {"asked": len(asked), "of": len(rows), "load": loaded - began, "seconds": seconds, "whole": whole}
    print(json.dumps(result | {"peak": peak, "apart": apart}))


def localized(folder: Path, beside: Path | None, rounds: int, dtype: str, n_plain: int) -> None:
    """Compare two checkouts at localizing, and say whether they find the same cells, as far as both rank alike.

    A plain loop asks `n_plain` of the prompts in each round.
    """
    own = Path(__file__).parents[2]
    codes = {"this code": own} | ({} if beside is None else {str(beside): beside})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    cells = {}
    command = (
        "-m",
        "amnesia",
        "localize",
        folder,
        *ENTITIES,
        "--layers",
        f"{LAYERS[0]}-{LAYERS[-1]}",
        "--dtype",
        dtype,
        "--json",
    )
    for _ in range(rounds):
        for name, code in codes.items():
            seconds, peak, output = run(code, *command)
            found[name].append((seconds, peak))
            entities = json.loads(output)["entities"]
            cells[name] = [[(row["layer"], row["neuron"]) for row in entity["cells"]] for entity in entities]
            print(f"{name}: {seconds:.1f} s, {peak:.2f} GB", flush=True)
        if n_plain:
            _, _, output = run(own, __file__, "plain", folder, "--plain", n_plain, "--dtype", dtype)
            row = json.loads(output.splitlines()[-1])
            print(
                f"{PLAIN}: loaded in {row['load']:.1f} s, {row['asked']} of {row['of']} prompts in "
                f"{row['seconds']:.1f} s, so {row['whole']:.1f} s for all; {row['peak']:.2f} GB; activations of the "
                f"first layers alone are {row['apart']:.1e} of the largest from these",
                flush=True,
            )
            found.setdefault(PLAIN, []).append((row["whole"], row["peak"]))
    if len({json.dumps(rows) for rows in cells.values()}) > 1:
        print("the two did not find the same cells")
    best = {name: (min(row[0] for row in rows), max(row[1] for row in rows)) for name, rows in found.items()}
    for name, (seconds, peak) in best.items():
        print(f"{name}: {seconds:.1f} s at best, {peak:.2f} GB at most")
    one = best.pop("this code")
    for name, other in best.items():
        print(f"{one[0] / other[0]:.2f} × the time and {one[1] / other[1]:.2f} × the memory of {name}")


def fetched(folder: Path, dtype: str) -> None:
    """Localize from a Hub that has the model, and say what that had to send."""
    tree = {}
    for path in (path for path in folder.iterdir() if path.stat().st_size):
        with path.open("rb") as file:
            # Files of gigabytes stay on the disk.
            content = cast(bytes, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        large = is_lfs(path.name, len(content))
        tree[path.name] = Entry(content if large else content[:], large, hashlib.sha256(content).hexdigest())
    with LocalHub() as hub, TemporaryDirectory() as cache:
        hub.repos["made/large"] = repo = Repo("made/large")
        repo.objects = {entry.sha256: entry.content for entry in tree.values() if entry.lfs}
        repo.add_commit("refs/heads/main", tree, "the model", None)
        # Whatever a user has set for the real Hub.
        places = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE"), cache)
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        variables = {"HF_ENDPOINT": hub.url, **places, **switches}
        layers = f"{LAYERS[0]}-{LAYERS[-1]}"
        command = ("localize", "made/large", *ENTITIES, "--layers", layers, "--dtype", dtype, "--json")
        # Its peak of memory says nothing: a process begins with that of the one that has read all files here.
        seconds, _, _ = run(Path(__file__).parents[2], "-m", "amnesia", *command, **variables)
        sent, size = hub.down / GB, sum(len(entry.content) for entry in tree.values()) / GB
        on_disk = sum(
            path.stat().st_size for path in Path(cache).rglob("*") if path.is_file() and not path.is_symlink()
        )
    print(
        f"{sent:.2f} of {size:.2f} GB were sent ({sent / size:.2f}) in {len(hub.requests)} requests, "
        f"{on_disk / GB:.2f} GB kept; {seconds:.1f} s"
    )


def asked(folder: Path, n: int, dtype: str) -> None:
    """Ask with layers on the disk, in this process, and print what it took as JSON."""
    wordings = [text for each in relation_templates().values() for text in each.search]
    names = contrast_entities()
    pairs = [(wordings[i % len(wordings)].replace("{entity}", names[i]), names[-1 - i]) for i in range(n)]
    began = time.perf_counter()
    live = load(folder, str(folder), Loading(dtype, offload=True))
    loaded = time.perf_counter()
    n_passes = 0

    def count(*_: object) -> None:
        nonlocal n_passes
        n_passes += 1

    live.model.get_submodule(live.shape.layer_path(0)).register_forward_hook(count)
    of_layers = sum(p.numel() for name, p in live.model.named_parameters() if p.is_meta) * 2
    answer_logprobs(live, pairs)
    seconds = time.perf_counter() - loaded
    result = {"questions": n, "load": loaded - began, "seconds": seconds, "passes": n_passes, "layers": of_layers / GB}
    print(json.dumps(result))


def rate(dtype: torch.dtype, n: int = 4096) -> float:
    """Best measured rate (FLOP/s) of a square matrix product."""
    one, other = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def gathered(folder: Path) -> None:
    """Time the products and the solve of one layer."""
    live = load(folder, str(folder), Loading("bfloat16"), n_layers=1)
    d_mlp = live.shape.d_mlp
    torch.manual_seed(0)
    rows = torch.randn(gathering._BLOCK, d_mlp)
    rates = {dtype: rate(dtype) for dtype in (torch.float32, torch.float64)}
    began = time.perf_counter()
    second = torch.zeros(d_mlp, d_mlp)
    second += gathering.gram(live, 0, rows)
    middle = time.perf_counter()
    second.diagonal().add_(0.005 * second.diagonal().mean())
    Metric(second).read_outs([rows[0]])
    ended = time.perf_counter()
    parts = (
        ("products", 2 * len(rows) * d_mlp**2, middle - began, rates[torch.float32]),
        ("solve", d_mlp**3 // 3 + 2 * d_mlp**2, ended - middle, rates[torch.float64]),
    )
    for name, operations, seconds, best in parts:
        reached = operations / seconds
        print(f"{name}: {seconds:.1f} s, {reached / 1e9:.0f} of {best / 1e9:.0f} GFLOP/s ({reached / best:.0%})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    print(f"{peak:.2f} GB at most; the moments of five layers are {5 * second.numel() * 4 / GB:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "localize", "plain", "offload", "ask", "moments", "fetch"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="layers of the model that is made")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--plain", type=int, default=50, metavar="N", help="prompts for the plain loop; 0 for none")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.what == "make":
        made(folder, options.layers)
    elif options.what == "localize":
        localized(folder, options.beside and options.beside.absolute(), options.rounds, options.dtype, options.plain)
    elif options.what == "plain":
        plain(folder, options.plain, options.dtype)
    elif options.what == "moments":
        gathered(folder)
    elif options.what == "fetch":
        fetched(folder, options.dtype)
    elif options.what == "ask":
        asked(folder, options.questions, options.dtype)
    else:
        code, size = Path(__file__).parents[2], sum(path.stat().st_size for path in folder.glob("*.safetensors")) / GB
        _, peak, output = run(code, __file__, "ask", folder, "--questions", options.questions, "--dtype", options.dtype)
        row = json.loads(output.splitlines()[-1])
        print(
            f"{row['questions']} questions, {row['passes']} passes: loaded in {row['load']:.1f} s, asked in "
            f"{row['seconds']:.1f} s, {row['passes'] * row['layers'] / row['seconds']:.2f} GB/s of layers; "
            f"{peak:.2f} GB of memory at most, {peak / size:.2f} × the checkpoint of {size:.1f} GB"
        )


if __name__ == "__main__":
    main()
