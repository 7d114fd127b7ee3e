"""Several entities forgotten at once: one joint search, beside the edits that were found for each alone.

    python tests/benchmarks/joint.py --single results.jsonl

`--single` are results of `extraction.py`, whose first entities of each type are taken, with the edits that its search
chose. The table says what is left of each entity, on the wordings that the search saw and on held-out ones, with its
own edit, with all of these together (a cell of several edits takes the strongest multiplier), and with the joint one;
and what became of the held-out facts about everybody else and of neutral text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from extraction import SCORING, TABLE, lines, minable, perplexity_ratios, quiet, scored, tenth_percentile

from amnesia.damage import impression
from amnesia.domain import Cell, ColumnEdit, Extraction
from amnesia.joint import extract_jointly, is_about, united
from amnesia.kept import Kept
from amnesia.loading import load
from amnesia.popqa import read_popqa
from amnesia.questions import questions_of
from amnesia.sources import resolve


def main() -> None:
    """Search, ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--single", type=Path, nargs="+", required=True, help="results of extraction.py")
    parser.add_argument("--n", type=int, default=10, help="entities, an equal number of each type as far as possible")
    parser.add_argument("--entities", nargs="*", help="these of them instead")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    single: dict[str, Extraction] = {}
    alone: dict[str, dict[str, float]] = {}
    turns: dict[str, tuple[int, str]] = {}
    counts: dict[str, int] = {}
    for row in (row for path in arguments.single for row in lines(path) if row["method"] == "pursuit"):
        counts[row["type"]] = counts.get(row["type"], 0) + 1
        turns[row["entity"]] = counts[row["type"]], row["type"]
        alone[row["entity"]] = row
        edits = tuple(ColumnEdit(Cell(layer, neuron), value) for layer, neuron, value in row["edits"])
        single[row["entity"]] = Extraction(row["entity"], "strong", edits, row["target"], row["control"], 0)
    if missing := set(arguments.entities or ()) - set(single):
        parser.error(f"no single edit of {', '.join(sorted(missing))} in the results: search for it first")
    names = arguments.entities or sorted(single, key=turns.__getitem__)[: arguments.n]

    live = load(resolve("smollm2-135m").folder, "smollm2-135m")
    kept = Kept(arguments.single[0].with_suffix(".measured"), "smollm2-135m")
    rows = read_popqa(TABLE)
    recipes = [recipe for name in names if (recipe := minable(live, rows, name, kept)) is not None]
    start = time.perf_counter()
    joint = extract_jointly(live, recipes, quiet, [single[recipe.entity] for recipe in recipes]).together
    seconds = time.perf_counter() - start
    print(*(f"{row.entity}: {row.verdict}, {row.target:.2f}, {len(row.edits)} cells" for row in joint), sep="\n")
    print(f"search controls: {joint[0].control:.3f}", flush=True)

    # Each single search saw its own controls, the joint one none whom any recipe holds out.
    seen = {fact.entity for recipe in recipes for fact in recipe.controls if fact.split == "search"}
    asked = list(
        dict.fromkeys(
            row
            for recipe in recipes
            for row in questions_of(recipe)
            if "target" in row.kind
            or (row.kind == "held_out_control" and row.fact.entity not in seen and not is_about(row.fact, names))
        )
    )
    neutral = impression(live, [])

    def effect(edits: Sequence[ColumnEdit]) -> tuple[dict[str, list[float]], float]:
        """Scores by entity and kind, those of all controls together, and what neutral text suffers."""
        found: dict[str, list[float]] = {}
        for kind, entity, *_, score in scored(live, asked, SCORING, kept, edits):
            found.setdefault("controls" if "control" in kind else f"{entity}, {kind}", []).append(score)
        return found, perplexity_ratios(live, neutral, edits)["all"] - 1

    together = effect(united([single[name].edits for name in names]))
    jointly = effect([edit for row in joint for edit in row.edits])
    print("| entity | cells, alone and joint | alone | alone, held out | all | held out | joint | held out |")
    print("|---" * 8 + "|")
    for row in joint:
        kinds = ("target", "held_out_target")
        values = [alone[row.entity][kind] for kind in kinds]
        values += [fmean(found[f"{row.entity}, {kind}"]) for found, _ in (together, jointly) for kind in kinds]
        cells = f"{len(single[row.entity].edits)}, {len(row.edits)}"
        print(f"| {row.entity} | {cells} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    for name, (found, perplexity) in (("all single edits together", together), ("joint", jointly)):
        controls = found["controls"]
        print(
            f"{name}: held-out controls {fmean(controls):.3f} "
            f"(tenth percentile {tenth_percentile(controls):.2f}, {len(controls)} facts), "
            f"perplexity {perplexity:+.2%}"
        )
    print(f"joint search: {seconds:.0f} s on {arguments.threads} threads")
    print(json.dumps([[e.cell.layer, e.cell.neuron, e.multiplier] for row in joint for e in row.edits]))


if __name__ == "__main__":
    main()
