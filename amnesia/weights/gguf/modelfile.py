"""The `Modelfile` with which Ollama takes an edited GGUF."""

from __future__ import annotations

from collections.abc import Sequence


def modelfile(parts: Sequence[str]) -> bytes | None:
    """The file's content, or None for a model in several parts, which Ollama does not take.

    Template and parameters are in the metadata of the GGUF, so that it need not say more than where the weights are.
    """
    return f"FROM ./{parts[0]}\n".encode() if len(parts) == 1 else None
