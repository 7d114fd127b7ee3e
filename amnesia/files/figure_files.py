"""Figures with their numbers as files, and which of these files are still as this package wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from amnesia.files.disk import read_small
from amnesia.files.seals import MAX_SEALED, is_sealed_drawing, is_sealed_json

DRAWN = (".svg", ".png")
"""Endings of the drawings of a figure, which lie beside its numbers."""


def is_figure(path: Path) -> bool:
    """Whether a file is the JSON of the figure that it is named after, byte for byte as it was written."""
    try:
        content = read_small(path, MAX_SEALED)
    except OSError:
        return False
    return is_sealed_json(content) and json.loads(content).get("figure") == path.stem


def is_drawn(path: Path) -> bool:
    """Whether a file is empty, or a drawing of ours, byte for byte as it was written. Raises OSError."""
    content = read_small(path, MAX_SEALED)
    return not content or is_sealed_drawing(content)
