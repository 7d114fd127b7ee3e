"""The real demo model's GGUF, for tests that are only run where it has been fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_gguf() -> Path:
    """Path of the file under the folder that AMNESIA_CACHE names; skips the test where it is not there."""
    cache = os.environ.get("AMNESIA_CACHE")
    found = sorted(Path(cache).rglob(DEMO_FILE)) if cache else []
    if not found:
        pytest.skip(f"no {DEMO_FILE} under AMNESIA_CACHE ({cache}): run `amnesia demo` once to fetch it")
    return found[0]
