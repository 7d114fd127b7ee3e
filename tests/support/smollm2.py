"""The real demo model, asked briefly: few facts, and of every neutral text only its beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from amnesia.evaluation import damage
from amnesia.facts.neutral import neutral_text
from support.brief import N_CHARACTERS
from support.folders import DATA

FEW_CHARACTERS = N_CHARACTERS // 4
"""Of each text, where its damage is not looked at."""

MODEL = "smollm2-135m"
BRIEF_RECIPE = DATA / "steve_jobs_brief.toml"


@contextlib.contextmanager
def brief_texts(n_characters: int = N_CHARACTERS) -> Iterator[None]:
    """While this is open, damage is measured on the first characters of each neutral text, by default an eighth."""
    texts = tuple(replace(text, passages=(text.passages[0][:n_characters],)) for text in neutral_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damage, "neutral_text", lambda: texts)
        yield
