"""What a suite found: its contract, and the measures of each model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amnesia.evaluation.results import Estimate

FORMAT_VERSION = 1

SCORE = "knowledge score"
"""The metric of facts whose worth for an unknown entity is known: 1 is as before, 0 like an unknown entity."""

RATIO = "perplexity ratio"
"""The metric of neutral text: 1 is as before."""


@dataclass(frozen=True)
class Contract:
    """What is asked, and how it is judged: two figures can be compared where their contracts are equal.

    `data` are SHA-256 of the files, by name, and `prompts` that of all that is asked, with the answers, in its order.
    """

    suite: str
    version: int
    entities: tuple[str, ...]
    n_prompts: int
    data: Mapping[str, str]
    prompts: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of a model: of a set ("forget", "neighbor", "utility") and kind, in which metric, over `n` items."""

    set: str
    kind: str
    metric: str
    n: int
    value: Estimate


@dataclass(frozen=True)
class Entry:
    """The measures of one model, with what is left of the forget and of the neighbor set (1 as in the original)."""

    name: str
    measures: tuple[Measure, ...]
    forget_left: float
    neighbor_left: float


@dataclass(frozen=True)
class Bench:
    """A suite on several models, the original first; `source` is the Hub id and commit of its data, if it has one.

    It is no part of the contract: the same files in a folder are asked the same.
    """

    contract: Contract
    entries: tuple[Entry, ...]
    source: str | None = None


def prompts_hash(items: object) -> str:
    """SHA-256 of what is asked, a value of JSON, by which it is told from everything else."""
    return hashlib.sha256(json.dumps(items, ensure_ascii=False).encode()).hexdigest()
