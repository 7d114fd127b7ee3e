"""What a model scores where only the plain libraries are, against what a report says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Report = Sequence[Mapping[str, Any]]
"""The rows of prompts in a report."""


def plain_scores(asked: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The answers' log-probabilities from `plain_scores.py`, in a process that knows no paths of this package."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "AMNESIA_CACHE")}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("plain_scores.py")],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def assert_scores_of_the_reports(*cases: tuple[Report, Mapping[str, str]]) -> None:
    """What others download and load by themselves must score what the report says, but for the order of additions.

    Each case is a report and what is loaded, as `plain_scores.py` takes it.
    """
    rows = [{**what, "pairs": [(row["prompt"], row["answer"]) for row in report]} for report, what in cases]
    for (report, what), found in zip(cases, plain_scores(rows), strict=True):
        assert found == pytest.approx([row["after"]["logprob"] for row in report], abs=2e-3), what
        assert max(abs(row["after"]["logprob"] - row["before"]["logprob"]) for row in report) > 0.1
