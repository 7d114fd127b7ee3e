"""A tiny model, and a list of entities for it."""

import pytest

from amnesia.live.loading import load
from support.queue_recipes import text_of
from support.smollm2 import FEW_CHARACTERS, brief_texts
from support.tiny_text import save_tiny_live


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Brief texts, which processes that are started here read, too."""
    with brief_texts(FEW_CHARACTERS):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def entities(tmp_path_factory, model):
    """A list of three recipes; the model knows nothing of the third by its bounds."""
    folder, live = tmp_path_factory.mktemp("list"), load(model, "m")
    for entity in ("Japan", "Canada"):
        (folder / f"{entity}.toml").write_text(text_of(live, model, entity), encoding="utf-8")
    (folder / "Norway.toml").write_text(text_of(live, model, "Norway", scoring="min_nats = 1e6"), encoding="utf-8")
    (folder / "list.txt").write_text("# who\nJapan.toml\n\nCanada.toml # and here\nNorway.toml\n", encoding="utf-8")
    return folder / "list.txt"
