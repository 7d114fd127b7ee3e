"""What the weights of the second moments are good for: each halved and doubled, on texts and names that are in none.

    python tests/benchmarks/moments.py --results smollm2.jsonl --n 24

The parts of the moments of a model are gathered once, apart: written and sampled text, vocabulary, other names. For the
place of each edit in a results file of `extraction.py` (method "name only") the read-out is solved anew with other weights,
on all columns and on 64, and asked what it does to what none of the parts holds: the divergence to expect on the
sentences of the other half (with the whole write taken away), and its mean square at the last tokens of other rows of
the vocabulary and of other subjects of `entities.tsv`. Printed are geometric means over the entities, as ratios to the
settings as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from amnesia.directions import moments as gathering
from amnesia.directions.bystanders import MomentSettings, bystanders_of
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import early_layers
from amnesia.directions.response import response_of
from amnesia.directions.samples import own_text, weights_digest
from amnesia.directions.solve import Metric
from amnesia.edits import directions_of
from amnesia.errors import InputError
from amnesia.facts.names import name_wordings, neutral_texts, share_words
from amnesia.facts.popqa import read_popqa
from amnesia.files.strict_json import StrictJson
from amnesia.live.loading import load
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Placed, encode
from amnesia.live.watching import activations, text_activations
from amnesia.sources.resolve import resolve
from amnesia.weights.edit_rows import read_edit

TABLE = Path(__file__).with_name("entities.tsv")
JSON = StrictJson("the results file", InputError, "remove it")
COLUMNS = 64
SETTINGS = MomentSettings()
VARIANTS = {
    "as they are": {},
    "text half": {"text": 0.5},
    "text double": {"text": 2.0},
    "vocabulary half": {"vocabulary": 0.5},
    "vocabulary double": {"vocabulary": 2.0},
    "no vocabulary": {"vocabulary": 0.0},
    "names half": {"names": 0.5},
    "names double": {"names": 2.0},
    "ridge half": {"ridge": 0.5},
    "ridge double": {"ridge": 2.0},
    "half of the sampled text": {"sampled": 0.5},
    "written text alone": {"sampled": 0.0},
    "half of the vocabulary's rows": {"rows": 0.5},
}


def mean_gram(live: LiveModel, layers: tuple[int, ...], batches: Iterator[Tensor]) -> tuple[Tensor, int]:
    """Sum of w·a·aᵀ (n_layers, d_mlp, d_mlp) over batches, and the number of rows."""
    total, count = torch.zeros(len(layers), live.shape.d_mlp, live.shape.d_mlp), 0
    for batch in batches:
        count += len(batch)
        for place, layer in enumerate(layers):
            total[place] += gathering.gram(live, layer, batch[:, place]).cpu()
    return total, count


def ends(live: LiveModel, rows: Sequence[Placed], layers: tuple[int, ...]) -> Iterator[Tensor]:
    """Activations at the tokens of rows."""
    return (batch for _, batch in activations(live, rows, layers))


@torch.no_grad()
def main() -> None:
    """Gather, solve, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines of extraction.py")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=24, help="how many entities, the first ones")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    live = load(resolve(arguments.model).folder, arguments.model)
    layers = early_layers(live.shape.n_layers)
    results = [json.loads(line) for line in arguments.results.read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in results if row["method"] == "name only"][: arguments.n]

    read = bystanders_of(live, SETTINGS)
    written = mean_gram(live, layers, text_activations(live, read.sentences, layers))
    own = own_text(live, read.beginnings, read.n_following, weights_digest(live))
    sampled = list(text_activations(live, list(own), layers))
    halves = [mean_gram(live, layers, iter([batch[half::2] for batch in sampled])) for half in (0, 1)]
    rows = [Placed(row, len(row) - 1) for row in read.vocabulary]
    vocabulary = [mean_gram(live, layers, ends(live, rows[half::2], layers)) for half in (0, 1)]
    names = mean_gram(live, layers, ends(live, read.name_rows, layers))

    held_out = response_of(live, [item.ids for item in encode(live.tokenizer, neutral_texts("held_out"))], layers)
    known = {row.ids[-1] for row in rows}
    wide = replace(SETTINGS, vocabulary_size=3 * SETTINGS.vocabulary_size)
    more = bystanders_of(live, wide).vocabulary
    others = [Placed(row, len(row) - 1) for row in more if row[-1] not in known][:4000]
    other_tokens = torch.cat(list(ends(live, others, layers)))
    subjects = list(dict.fromkeys(row.subject for row in read_popqa(TABLE)))[:200]
    texts = [(name, wording.replace("{entity}", name)) for name in subjects for wording in name_wordings()[1:]]
    ids = encode(live.tokenizer, [text for _, text in texts])
    other_names = torch.cat(list(ends(live, [Placed(item.ids, len(item.ids) - 1) for item in ids], layers)))

    def second(layer: int, factors: dict[str, float]) -> Tensor:
        place = layers.index(layer)
        share = factors.get("sampled", 1.0)
        parts = [written] + (halves if share == 1.0 else halves[: round(2 * share)])
        text = sum(part[0][place].double() for part in parts) / sum(part[1] for part in parts)
        kept = vocabulary[: 1 if "rows" in factors else 2]
        tokens = sum(part[0][place].double() for part in kept) / sum(part[1] for part in kept)
        found = (
            SETTINGS.text * factors.get("text", 1.0) * text
            + SETTINGS.vocabulary * factors.get("vocabulary", 1.0) * tokens
            + SETTINGS.names * factors.get("names", 1.0) * names[0][place].double() / names[1]
        )
        found.diagonal().add_(SETTINGS.ridge * factors.get("ridge", 1.0) * found.diagonal().mean())
        return found

    measured: dict[tuple[str, str], list[float]] = {}
    for row in chosen:
        strange = torch.tensor([not share_words(name, [row["entity"]]) for name, _ in texts])
        for edit in directions_of([read_edit(JSON, each) for each in row["edits"]]):
            place = layers.index(edit.layer)
            key = name_keys(live, row["entity"], (edit.layer,), edit.token + 1)[edit.token][0]
            write = torch.tensor(edit.write.array.copy())
            for name, factors in VARIANTS.items():
                metric = Metric(second(edit.layer, factors))
                for label, found in (
                    ("all", metric.read_outs([key])[0]),
                    ("few", metric.supports(key, [COLUMNS])[COLUMNS]),
                ):
                    change = held_out.to(place, found.cells, found.u, write)
                    read = found.u.float()
                    values = {
                        "text": change.square().mean(),
                        "tokens": (other_tokens[:, place, found.cells] @ read).square().mean(),
                        "names": (other_names[strange, place][:, found.cells] @ read).square().mean(),
                    }
                    for what, value in values.items():
                        measured.setdefault((name, f"{what}, {label}"), []).append(math.log(value.item()))
    columns = [f"{what}, {label}" for label in ("all", "few") for what in ("text", "tokens", "names")]
    print(f"{len(chosen)} entities; ratios to the settings as they are; few: {COLUMNS} columns")
    print("| weights | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name in VARIANTS:
        ratios = [
            math.exp(statistics.fmean(measured[name, column]) - statistics.fmean(measured["as they are", column]))
            for column in columns
        ]
        print(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
