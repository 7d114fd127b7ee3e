"""What becomes of a model when the edits of many entities, each chosen alone, are put into one.

    python tests/benchmarks/together.py --results smollm2.jsonl --n 10 --strengths 1 0.9 0.8

`--results` is a file of `extraction.py`. The edits of its first entities that met all bounds are joined as `choice.joint`
does, which tells by the search facts alone whether to add them up or to solve them together. Then everything that each
entity's recipe asks is asked again, of that edit and, with `--strengths`, of the sum, weakened to each strength (1 is the
edit as it was chosen). Controls about any of these entities are left out, because they are to be forgotten, too. Printed
for each edit: the targets and held-out targets of each entity, the held-out controls of all, perplexity of neutral text
by language.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from extraction import JSON
from judging import BOUNDS, scored, search_part
from mined import TABLE, lines, minable

from amnesia.choice.joint import Part, combined, join
from amnesia.choice.neighbors import facts_about
from amnesia.choice.several import sparing
from amnesia.edits import Edit, EntityEdits, weakened
from amnesia.evaluation.damage import Impression, impression
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.names import share_words
from amnesia.facts.neutral import neutral_text
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.live.loading import load
from amnesia.live.model import LiveModel, edited
from amnesia.sources.resolve import resolve
from amnesia.weights.edit_rows import read_edit


def perplexity_by_language(live: LiveModel, original: Impression, edits: Sequence[Edit]) -> dict[str, float]:
    """Ratio of perplexities per word, by language, of the model with an edit to the original."""
    with edited(live, edits):
        after = impression(live, [])
    lost: dict[str, float] = defaultdict(float)
    words: dict[str, int] = defaultdict(int)
    for text, old, new in zip(neutral_text(), original.neutral, after.neutral, strict=True):
        lost[text.language] += sum(old.logprobs) - sum(new.logprobs)
        words[text.language] += sum(len(part.split()) for part in text.passages)
    return {language: math.exp(lost[language] / words[language]) for language in lost}


def main() -> None:
    """Print a block for each strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines of extraction.py")
    parser.add_argument("--model", default="smollm2-135m", help="the model that they are about")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--n", type=int, default=10, help="entities to add up")
    parser.add_argument("--strengths", type=float, nargs="*", default=[], help="of the sum")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    live = load(resolve(arguments.model).folder, arguments.model)
    cache = MeasurementCache(arguments.results.with_suffix(".together"), arguments.model)
    found = [row for row in lines(arguments.results) if row["method"] == arguments.method]
    chosen = [row for row in found if all(holds(row) for holds in BOUNDS.values())][: arguments.n]
    names = [row["entity"] for row in chosen]
    rows = read_popqa(TABLE)
    recipes = [recipe for name in names if (recipe := minable(live, rows, name, cache)) is not None]
    groups = [EntityEdits(row["entity"], tuple(read_edit(JSON, edit) for edit in row["edits"])) for row in chosen]
    edits = [edit for group in groups for edit in group.edits]
    original = impression(live, [])
    print(f"{len(recipes)} entities, {len(edits)} edits: {', '.join(names)}")
    parts = []
    for recipe, group in zip(recipes, groups, strict=True):
        own, others = sparing(recipe, recipes), [name for name in names if name != recipe.target.entity]
        parts.append(Part(own, group, *search_part(live, own, cache), facts_about(live, own, others, cache=cache)))
    joint = join(live, parts, cache=cache_folder())
    for trial in joint.tried:
        print(f"  tried: {trial}", flush=True)
    print("  neighbors: " + ", ".join(f"{row.name} {row.score:.2f}" for row in joint.neighbors))
    tried: dict[str, Sequence[Edit]] = {
        f"joint, {joint.form}": combined(edit for group in joint.groups for edit in group.edits)
    }
    tried |= {f"sum, strength {strength:g}": [weakened(e, strength) for e in edits] for strength in arguments.strengths}
    for name, together in tried.items():
        controls: dict[tuple[str, str], float] = {}
        print(name)
        for recipe in recipes:
            scores = scored(live, questions_of(recipe), recipe.scoring, cache, partial(edited, live, together))
            means = [
                statistics.fmean(score for found, *_, score in scores if found == kind)
                for kind in ("target", "held_out_target")
            ]
            print(f"  {recipe.target.entity}: {means[0]:.2f} / {means[1]:.2f}", flush=True)
            for kind, entity, prompt, answer, score in scores:
                if kind == "held_out_control" and not share_words(entity, names) and not share_words(answer, names):
                    controls[prompt, answer] = score
        values = sorted(controls.values())
        tenth = values[round(0.1 * (len(values) - 1))]
        print(f"  held-out controls {statistics.fmean(values):.3f} of {len(values)}, tenth percentile {tenth:.2f}")
        ratios = perplexity_by_language(live, original, together)
        print("  perplexity " + ", ".join(f"{name} {ratio - 1:+.1%}" for name, ratio in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
