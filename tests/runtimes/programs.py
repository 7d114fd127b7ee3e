"""What the programs here share: `with_NAME.py MODEL QUESTIONS OUTPUT`, run by the Python that has the runtime."""

import json
from pathlib import Path

import numpy as np


def ids_of(questions: str) -> list[list[int]]:
    """The token ids of each prompt."""
    return json.loads(Path(questions).read_text(encoding="utf-8"))["ids"]


def texts_of(questions: str) -> list[tuple[str, int]]:
    """Each prompt, and the number of tokens that the model has."""
    asked = json.loads(Path(questions).read_text(encoding="utf-8"))
    return [(text, asked["n_tokens"]) for text in asked["texts"]]


def save(rows: list[np.ndarray], output: str) -> None:
    """Write logits or log-probabilities of the next token; not a number where it was not told."""
    np.save(output, np.stack(rows).astype(np.float32))
