"""A tiny model, and few texts for its moments."""

import pytest

from amnesia.directions import bystanders
from support.few_moments import WHOLE
from support.tiny_text import tiny_live


@pytest.fixture(scope="module")
def few_texts():
    """Moments are made of every sixth text and name: that tests of their arithmetic read all takes most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, every in WHOLE.items():
            patch.setattr(bystanders, name, lambda every=every: every()[::6])
        yield


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)
