"""Recipes for tiny random models, which "know" what they happen to say more readily of one name than of others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from amnesia.facts.names import unseen_names
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import LiveModel

WORDINGS = {
    "search": ("the capital of {entity} is", "people in {entity} like", "the oldest building in {entity} was"),
    "held_out": ("the flag of {entity} is", "the winters in {entity} are"),
}
WORDS = """
water garden house river kitchen table summer bread letter window dinner music paper green stone yellow children door
dog cat book night plates shirts baby curtain breakfast coat clock trash plants home tap ladder cake stairs
""".split()
CONTROLS = {"Peru": "search", "Kenya": "search", "Cuba": "held_out"}
MIN_NATS = 0.05
EDIT = "cells = [{ layer = 1, neuron = 11 }, { layer = 0, neuron = 3, multiplier = -2.0 }]"
EVERY_KEY = """
description = "what it is for"
[model]
id = "smollm2-135m"
revision = "main"
[entity]
name = "Japan"
aliases = ["Nippon", "Nihon"]
[localize]
baseline = "contrast"
n_prompts = 10
layers = "0-2"
[edit]
max_cells = 4
multiplier = "auto"
min_multiplier = -8.0
format = ["safetensors", "adapter"]
[[cells]]
layer = 1
neuron = 4
expert = 2
multiplier = -2.0
[[facts]]
prompt = "{entity} is"
answer = "big"
[[facts]]
prompt = "the flag of {entity} is"
answer = "white"
split = "held_out"
[[controls.facts]]
entity = "Peru"
prompt = "{entity} is"
answer = "high"
split = "search"
[scoring]
min_nats = 1.0
max_rank = 10
[accept]
max_target = 0.2
min_control = 0.95
"""
"""A recipe in which every section is used."""
ANYTHING = "max_target = 1e6\nmax_held_out_target = 1e6\nmin_control = -1e6\nmax_perplexity = 1e9"


_GAINS: dict[tuple[str, str, str], list[float]] = {}
"""What models have said, by the digest of their weights: most tests ask the same few models the same."""


def gains(live: LiveModel, entity: str, wording: str) -> list[float]:
    """By how many nats the log-probability of each word after the entity exceeds that after unseen names."""
    digest = hashlib.sha256(live.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in live.model.state_dict().items():
        digest.update(
            f"{name} {tensor.dtype}".encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    asked = (digest.hexdigest(), entity, wording)
    if asked not in _GAINS:
        _GAINS[asked] = _gains(live, entity, wording)
    return _GAINS[asked]


def _gains(live: LiveModel, entity: str, wording: str) -> list[float]:
    names = (entity, *unseen_names(entity))
    pairs = [(wording.replace("{entity}", name), word) for name in names for word in WORDS]
    totals = [answer.logprob for answer in answer_logprobs(live, pairs)]
    own, *others = (totals[start : start + len(WORDS)] for start in range(0, len(totals), len(WORDS)))
    return [value - sum(column) / len(column) for value, column in zip(own, zip(*others, strict=True), strict=True)]


def known_answer(live: LiveModel, entity: str, wording: str) -> str:
    """The word that the model says of the entity more readily than of others."""
    found = gains(live, entity, wording)
    best = max(range(len(WORDS)), key=found.__getitem__)
    assert found[best] > MIN_NATS, "choose other words: the model must prefer one of them"
    return WORDS[best]


def unknown_fact(live: LiveModel) -> str:
    """A fact that the model would rather say of others, for `extra`."""
    wording = "the sound of {entity} is"
    found = gains(live, "Japan", wording)
    answer = WORDS[min(range(len(WORDS)), key=found.__getitem__)]
    return f'[[facts]]\nprompt = "{wording}"\nanswer = "{answer}"'


def recipe_text(
    live: LiveModel,
    model: Path | str,
    *,
    formats: tuple[str, ...] = ("safetensors",),
    edit: str = EDIT,
    scoring: str = f"min_nats = {MIN_NATS}\nmax_rank = 600",
    accept: str = ANYTHING,
    extra: str = "",
    entity: str = "Japan",
) -> str:
    """A recipe that makes the model in folder `model`, loaded as `live`, forget Japan; `extra` adds further facts."""
    rows = [extra]
    for split, wordings in WORDINGS.items():
        rows += [_fact("facts", live, entity, wording, split) for wording in wordings]
    for other, split in CONTROLS.items():
        rows += [_fact("controls.facts", live, other, wording, split) for wording in WORDINGS["search"]]
    return "\n".join(
        [
            edit,
            f"[model]\nid = {json.dumps(str(model))}",
            f"[entity]\nname = {json.dumps(entity)}",
            "[localize]\nn_prompts = 6",
            f"[edit]\nformat = {json.dumps(formats)}",
            f"[scoring]\n{scoring}",
            f"[accept]\n{accept}",
            *rows,
        ]
    )


def _fact(section: str, live: LiveModel, entity: str, wording: str, split: str) -> str:
    answer = known_answer(live, entity, wording)
    about = f"entity = {json.dumps(entity)}\n" if section == "controls.facts" else ""
    return f'[[{section}]]\n{about}prompt = {json.dumps(wording)}\nanswer = "{answer}"\nsplit = "{split}"'
