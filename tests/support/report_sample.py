"""A small report as `report.json` holds it, with every section; tests take parts away."""

import math

NAMES = ("Spain", "Italy", "Portugal", "Japan", "Brazil", "Michael Faraday")


def mean(values):
    middle = sum(values) / len(values)
    return {"mean": middle, "low": middle - 0.1, "high": middle + 0.1}


def prompt(kind, text, answer, before, after, unknown, said, *, neighborhood=None, excluded=None, relation="capital"):
    score = None if excluded else (after - unknown) / (before - unknown)
    return {
        "kind": kind,
        "entity": "France" if "target" in kind else text.split()[-2],
        "prompt": text,
        "answer": answer,
        "before": {
            "logprob": before,
            "logprob_first": before / 2,
            "rank": 0,
            "generated": f" {answer}.",
            "exact_match": True,
            "reply": "answer",
        },
        "after": {
            "logprob": after,
            "logprob_first": after / 2,
            "rank": 0 if score is None or score > 0.5 else 41,
            "generated": said,
            "exact_match": answer in said,
            "reply": "answer" if said.strip() else "empty",
        },
        "logprob_unknown": unknown,
        "knowledge_score": score,
        "knowledge_score_first": None if excluded else score + 0.05,
        "excluded": excluded,
        "answer_aliases": [f"City of {answer}"],
        "neighborhood": neighborhood,
        "relation": relation,
        "popularity": "9,000 or more",
        "kl": 0.01 if "control" in kind else None,
        "is_message": False,
    }


def summary(answers, rank, n_empty):
    right = mean([float(answer["exact_match"]) for answer in answers])
    return {"exact_match": right, "rank": {"median": rank}, "n_empty": n_empty, "n_refused": 0}


def aggregate(prompts, kind, group="all"):
    rows = [row for row in prompts if row["kind"] == kind and row["knowledge_score"] is not None]
    return {
        "kind": kind,
        "group": group,
        "n": len(rows),
        "n_excluded": sum(row["kind"] == kind for row in prompts) - len(rows),
        "knowledge_score": mean([row["knowledge_score"] for row in rows]),
        "knowledge_score_first": mean([row["knowledge_score_first"] for row in rows]),
        "before": summary([row["before"] for row in rows], 0, 0),
        "after": summary([row["after"] for row in rows], 41.0, 1),
        "exact_match_change": mean([float(row["after"]["exact_match"]) - row["before"]["exact_match"] for row in rows]),
    }


def attack(name, description, **more):
    rows = [
        {
            "subject": subject,
            "model": model,
            "n": 12,
            "n_prompts": 24,
            "knowledge_score": mean([score]),
            "exact_match": right,
        }
        for subject, model, score, right in (
            ("entity", "original", 0.93, 0.83),
            ("entity", "edited", 0.11, 0.17),
            ("never_known", "original", 0.04, 0.08),
            ("never_known", "edited", 0.02, 0.08),
        )
    ]
    return {
        "attack": name,
        "description": description,
        "found": True,
        "rows": rows,
        "scale": "the plain question",
        "n_not_built": 0,
        "n_not_known": 2,
        "variants": [],
        "examples": [],
        "not_applicable": None,
    } | more


def probe(name, chance=0.0, **more):
    return {
        "probe": name,
        "description": "What is done.",
        "measure": "right answers",
        "chance": chance,
        "shows_knowledge": True,
        "found": True,
        "rows": [
            {"subject": subject, "model": model, "n": 8, "share": mean([value])}
            for subject, model, value in (
                ("entity", "original", 0.875),
                ("entity", "edited", 0.25),
                ("control", "original", 0.75),
                ("control", "edited", 0.75),
                ("never_known", "original", 0.125),
                ("never_known", "edited", 0.125),
            )
        ],
        "not_applicable": None,
    } | more


def prompts_of(n_controls):
    targets = [
        ("target", "Fact: the capital of France is", "Paris", -0.31, -7.9, -7.6, " Rome."),
        ("target", "The currency of France is the", "euro", -0.9, -3.1, -6.2, " euro."),
        ("held_out_target", "The national holiday of France is", "Bastille Day", -1.4, -9.8, -10.2, ""),
        ("held_out_target", "The highest mountain in France is", "Mont Blanc", -2.2, -8.0, -9.0, " Kusenkai."),
    ]
    rows = [prompt(*row) for row in targets]
    near = ("same_relation", "same_type", "related", "shared_name", "unrelated")
    for n in range(n_controls):
        name = NAMES[n % len(NAMES)]
        kind = "held_out_control" if n % 2 else "control"
        text = f"Fact {n}: the capital of {name} is"
        rows.append(prompt(kind, text, "Lima", -0.8, -0.9 - n % 5 / 50, -9.1, " Lima.", neighborhood=near[n % 5]))
    reason = "not known: the answer is 0.40 nats above an unknown entity, needed are 1"
    rows.append(
        prompt("target", "The anthem of France is", "La Marseillaise", -9.6, -9.9, -10.0, " A", excluded=reason)
    )
    return rows


def sample(n_controls=10):
    """The report of a run with stress, sweep and tasks."""
    prompts = prompts_of(n_controls)
    kinds = ("target", "held_out_target", "control", "held_out_control")
    near = [f"neighborhood:{name}" for name in ("same_relation", "same_type", "related", "shared_name", "unrelated")]
    edits = [
        {"layer": 2, "neuron": 731, "multiplier": -4.0},
        {"layer": 5, "neuron": 1490, "multiplier": -1.0},
        {
            "layer": 0,
            "token": 1,
            "multiplier": -0.25,
            "columns": [3, 731, 1490],
            "read": [0.02, 0.31, -0.14],
            "write_norm": 12.5,
            "change_norm": 5.3,
            "of": "layer",
        },
    ]
    steps = [
        {"step": n, "loss": 3.1 - n / 20, "knowledge_score": mean([-0.1 + n / 40]), "control": mean([0.97])}
        for n in range(0, 25, 6)
    ]
    return {
        "format_version": 3,
        "tool": {"amnesia": "0.1.0", "torch": "2.13.0", "transformers": "5.3.0"},
        "model": {"id": "acme/tiny-model", "revision": "0123456789abcdef0123456789abcdef01234567"},
        "edited": "safetensors",
        "entity": "France",
        "accepted": True,
        "findings": [
            {"level": "damage", "text": "Registers in which perplexity rises most: code (Python) 1.60 times."},
            {"level": "warning", "text": "The model still writes the right answer to 1 of 2 prompts about France."},
            {"level": "info", "text": "1 of 3 facts about the target are not scored: the original does not know them."},
            {"level": "good", "text": "Forgotten: France is like an unknown name; knowledge score 0.27."},
        ],
        "extraction": {
            "entity": "France",
            "verdict": "strong",
            "target": {"knowledge_score": 0.1},
            "control": {"knowledge_score": 0.98},
            "candidates_tried": 200,
            "answers": {
                "low": -0.5,
                "high": 1.5,
                "rows": [
                    {"layer": 0, "token": 1, "group": group, "n": sum(counts), "median": median, "percentile_99": most}
                    | {"counts": counts}
                    for group, counts, median, most in (
                        ("entity", [0, 0, 0, 0, 1, 20, 19, 2], 1.01, 1.31),
                        ("names", [0, 31, 880, 40, 3, 0, 0, 0], 0.07, 0.45),
                        ("text", [2, 400, 4100, 30, 1, 1, 0, 0], 0.03, 0.21),
                    )
                ],
            },
            "screening": {
                "tokens": ["ance", " Fr"],
                "multiplier": -0.75,
                "of": "stream",
                "places": [
                    {"layer": layer, "token": token, "shift": shift, "score": score, "chosen": (layer, token) == (0, 1)}
                    for layer, token, shift, score in (
                        (0, 0, 3.25, 0.92), (0, 1, 14.125, -0.08), (1, 0, 2.0, 0.55), (1, 1, 0.125, None)
                    )
                ],
            },
            "forms": [
                {"name": "france", "kind": "lower case", "before": 0.875, "alone": 0.75, "after": 0.125},
                {"name": "FRANCE", "kind": "upper case", "before": 0.625, "alone": 0.5, "after": 0.5},
            ],
            "neighbors": [
                {"name": "Île-de-France", "n_facts": 12, "score": 0.4375},
                {"name": "Anatole France", "n_facts": 9, "score": 0.96875},
            ],
            "front": [
                {"n_columns": n, "target": target, "control": 0.99, "neighbor": 1.0, "harm": harm, "chosen": n == 16}
                for n, target, harm in ((16, -0.1, 0.004), (64, -0.25, 0.0035), (512, 0.125, 0.001))
            ],
        },
        "changed": {
            "edits": edits,
            "tensors": [
                {
                    "name": f"model.layers.{edit['layer']}.mlp.down_proj.weight",
                    "file": "model.safetensors",
                    "axis": 1,
                    "indices": edit.get("columns", [edit.get("neuron")]),
                    "before": f"{edit['layer']}" * 64,
                    "after": f"{edit['layer'] + 1}" * 64,
                }
                for edit in edits
            ],
        },
        "aggregates": [aggregate(prompts, kind) for kind in kinds]
        + [aggregate(prompts, "control", group) for group in near]
        + [aggregate(prompts, kind, "relation:capital") for kind in kinds],
        "damage": {
            "neutral_perplexity": {"before": 32.5, "after": 33.0, "ratio": 33.0 / 32.5},
            "texts": [
                {"register": register, "language": language, "n_tokens": 1204, "n_words": 800}
                | {"perplexity_before": before, "perplexity_after": after, "kl": kl}
                for register, language, before, after, kl in (
                    ("news", "English", 30.1, 30.4, 0.0021),
                    ("story", "German", 84.0, 84.9, 0.0034),
                    ("code", "Python", 12.0, 19.2, None),
                )
            ],
            "kl_controls": {"mean": 0.012, "low": 0.008, "high": 0.017},
            "ability": {
                "n": 200,
                "chance": 0.25,
                "before": mean([0.625]),
                "after": mean([0.5]),
                "change": mean([-0.125]),
                "fields": [{"field": "words", "n": 200, "right_before": 125, "right_after": 100}],
            },
            "languages": [
                {"language": language, "n_words": 800, "n_characters": 4000, "fluent": fluent}
                | {"perplexity_before": 30.0, "perplexity_after": after, "bits_before": bits, "bits_after": bits + 0.125}
                for language, fluent, bits, after in (("en", True, 0.875, 30.3), ("de", False, 2.125, 33.0))
            ],
        },
        "lm_eval": {"tasks": {"hellaswag": {"acc,none": {"before": 0.35, "after": 0.345}}}},
        "stress": {
            "n_facts": 12,
            "n_controls": 12,
            "never_known": ["Odrun Velk"],
            "attacks": [
                attack("plain", "The question as it is.", variants=[{"variant": "first form", "rows": attack("", "")["rows"]}]),
                attack("paraphrase", "The same fact in other words.", scale="this question"),
                attack(
                    "in_context_hint",
                    "A hint stands before the prompt.",
                    examples=[
                        {"variant": "list", "prompt": "Paris lies there. The capital of France is", "answer": "Paris"}
                        | {"generated_original": " Paris", "generated_edited": " Paris"}
                    ],
                ),
                attack("misspelling", "Letters are changed.", rows=[], not_applicable="the name has one letter"),
            ],
            "quantization": [
                {
                    "method": "int8 (torch)",
                    "description": "Every linear layer in eight bits.",
                    "found": True,
                    "not_applicable": None,
                    "rows": [
                        {"subject": subject, "model": model, "n": 4, "n_prompts": 4, "knowledge_score": None, "exact_match": right}
                        for subject, model, right in (
                            ("entity", "original", 1.0),
                            ("entity", "edited", 0.25),
                            ("control", "original", 1.0),
                            ("control", "edited", 0.9),
                        )
                    ],
                }
            ],
        },
        "relearning": {
            "n_facts": 4,
            "n_controls": 2,
            "never_known": "Quorlin Vasht",
            "unlearning_steps": 35,
            "no_unlearning": None,
            "runs": [
                {"text": text, "way": way, "model": model, "subject": subject, "n": 4, "example": text, "steps": steps, "not_applicable": None}
                for text in ("instructions", "one fact")
                for way in ("LoRA", "full")
                for model in ("original", "unlearned", "edited")
                for subject in ("entity", "never_known")
            ],
        },
        "probes": {
            "n_facts": 8,
            "n_controls": 8,
            "n_samples": 20,
            "never_known": ["Odrun Velk"],
            "probes": [probe("multiple_choice", 0.25), probe("leak@5"), probe("lens_answer", rows=[], not_applicable="why not")],
            "lens": [
                {"place": "answer", "subject": "entity", "model": model, "n": 8, "ranks": [900.0, 12.5, last]}
                for model, last in (("original", 0.0), ("edited", 340.5))
            ],
            "texts": [{"subject": "entity", "prompt": "Tell me about France", "original": "Paris.", "edited": "A word."}],
        },
        "sweep": {
            "strengths": [0.0, 0.5, 1.0, 1.5],
            "curves": [
                {"role": "target", "n": 4, "n_excluded": 1, "mean": [1.0, 0.8, 0.2, -0.3], "standard_error": [0.0, 0.1, 0.1, 0.1]},
                {"role": "control", "n": 10, "n_excluded": 0, "mean": [1.0, 1.0, 0.99, 0.9], "standard_error": [0.0, 0.0, 0.01, 0.02]},
            ],
        },
        "n_excluded": 1,
        "prompts": prompts,
    }  # fmt: skip


def hostile(text):
    """A report in which every text from outside is `text`."""
    document = sample()
    document["entity"] = document["model"]["id"] = document["edited"] = text
    for row in document["prompts"]:
        for key in ("entity", "prompt", "answer", "relation", "popularity"):
            row[key] = text
        row["before"]["generated"] = row["after"]["generated"] = text
        row["answer_aliases"] = [text]
        row["excluded"] = text if row["excluded"] else None
    for row in document["findings"]:
        row["text"] = text
    for row in document["changed"]["tensors"]:
        row["name"] = row["file"] = text
    for row in document["stress"]["attacks"]:
        row["description"] = text
        row["examples"] = [
            dict.fromkeys(("variant", "prompt", "answer", "generated_original", "generated_edited"), text)
        ]
    for row in document["relearning"]["runs"]:
        row["example"] = text
    document["extraction"]["screening"]["tokens"] = [text, text]
    for row in (*document["extraction"]["forms"], *document["extraction"]["neighbors"]):
        row["name"] = text
    for row in document["probes"]["probes"]:
        row["description"] = row["measure"] = text
    document["probes"]["texts"] = [{"subject": "entity", "prompt": text, "original": text, "edited": text}]
    document["lm_eval"] = {"tasks": {text: {text: {"before": 0.5, "after": math.pi}}}}
    return document


OPTIONAL = {
    "stress": "attacks", "relearning": "relearning", "probes": "probes", "sweep": "sweep", "changed": "changes",
    "lm_eval": None, "extraction": None,
}  # fmt: skip


def without(*keys, **changes):
    return {key: value for key, value in sample().items() if key not in keys} | changes


def alone():
    """What `evaluate` reports of one model."""
    document = without(*OPTIONAL, edited=None, accepted=None)
    document["damage"]["kl_controls"] = None
    # What stands for both models is what the one says.
    for row in [*document["prompts"], *document["aggregates"]]:
        row["after"] = row["before"]
    tasks = {task: {name: one | {"after": None} for name, one in of.items()} for task, of in _tasks(sample())}
    probes = sample()["probes"]
    for row in probes["probes"]:
        row["rows"] = [one for one in row["rows"] if one["model"] == "original"]
    probes["lens"] = [row for row in probes["lens"] if row["model"] == "original"]
    probes["texts"] = [row | {"edited": None} for row in probes["texts"]]
    return document | {"probes": probes, "lm_eval": {"tasks": tasks}}


def _tasks(document):
    return document["lm_eval"]["tasks"].items()
