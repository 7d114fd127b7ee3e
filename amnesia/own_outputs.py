"""How a folder that this package wrote is told from one that it must not replace."""

from __future__ import annotations

import json
from pathlib import Path

# A folder with this file is a complete output; see `manifest`.
MANIFEST_NAME = "amnesia.json"
# The other things that outputs consist of: a folder for each format, or a report alone.
FORMAT_FOLDERS = frozenset(("safetensors", "adapter", "gguf"))
REPORT_NAME = "report.json"
_REPORT_KEYS = {"aggregates", "prompts"}
_MAX_REPORT = 2**28


def is_own(output: Path) -> bool:
    """Whether a folder is an output of this package: of one format, of several, or a report alone."""
    if not output.is_dir():
        return False
    if (output / MANIFEST_NAME).is_file():
        return True
    inside = {path.name for path in output.iterdir()}
    if inside <= FORMAT_FOLDERS:
        return all((output / name / MANIFEST_NAME).is_file() for name in inside)
    report = output / REPORT_NAME
    if not report.is_file() or report.stat().st_size > _MAX_REPORT or any(path.is_dir() for path in output.iterdir()):
        return False
    try:
        document = json.loads(report.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.keys() >= _REPORT_KEYS
