"""Figures with their numbers as files, and which of these files are still as this package wrote them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amnesia.files.disk import read_range, read_small
from amnesia.files.strict_json import json_bytes

DRAWN = (".svg", ".png")
"""Endings of the drawings of a figure, which lie beside its numbers."""
MAX_FIGURE = 2**28
_HEAD = 4096
"""Bytes at the beginning of a drawing, in which its maker is named."""


def figure_bytes(document: Mapping[str, Any]) -> bytes:
    """The numbers of a figure as JSON, with the sha256 of all of it but this hash, by which a change by hand shows."""
    return json_bytes({**document, "sha256": hashlib.sha256(json_bytes(document)).hexdigest()})


def is_figure(path: Path) -> bool:
    """Whether a file is the JSON of the figure that it is named after, byte for byte as it was written."""
    try:
        content = read_small(path, MAX_FIGURE)
        document = json.loads(content)
        if not isinstance(document, dict) or document.pop("sha256", None) is None:
            return False
        return document.get("figure") == path.stem and figure_bytes(document) == content
    except (OSError, ValueError, RecursionError):
        return False


def is_drawn(path: Path) -> bool:
    """Whether a file is empty, or a drawing by the library that draws ours. Raises OSError."""
    size = path.stat().st_size
    return not size or b"Matplotlib" in read_range(path, min(size, _HEAD), 0)
