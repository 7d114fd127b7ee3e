"""How a folder that this package wrote is told from one that it must not replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A folder with this file is a complete output; see `manifest`.
MANIFEST_NAME = "amnesia.json"
# The other things that outputs consist of: a folder for each format, a report alone, or a figure with its numbers.
FORMAT_FOLDERS = frozenset(("safetensors", "adapter", "gguf"))
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
_REPORT_KEYS = {"aggregates", "prompts"}
_MAX_REPORT = 2**28


def is_own(output: Path) -> bool:
    """Whether a folder is an output of this package: of one format, of several, a report alone, or a figure."""
    if not output.is_dir():
        return False
    if (output / MANIFEST_NAME).is_file():
        return True
    inside = {path.name for path in output.iterdir()}
    if inside <= FORMAT_FOLDERS:
        return all((output / name / MANIFEST_NAME).is_file() for name in inside)
    if any(path.is_dir() for path in output.iterdir()):
        return False
    if (_document(output / REPORT_NAME) or {}).keys() >= _REPORT_KEYS:
        return True
    stems = {Path(name).stem for name in inside}
    return len(stems) == 1 and all((_document(output / f"{stem}.json") or {}).get("figure") == stem for stem in stems)


def _document(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none."""
    if not path.is_file() or path.stat().st_size > _MAX_REPORT:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
