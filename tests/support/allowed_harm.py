"""More harm for models with random weights, which know no text: within that of real ones they forget little."""

from __future__ import annotations

import functools

import pytest

from amnesia.choice import extraction
from amnesia.choice.settings import ChoiceSettings


def allow_harm(patch: pytest.MonkeyPatch, max_harm: float = 0.011) -> None:
    """Let choices cost text so many nats per token."""
    patch.setattr(extraction, "ChoiceSettings", functools.partial(ChoiceSettings, max_harm=max_harm))
