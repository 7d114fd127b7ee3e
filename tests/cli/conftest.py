"""A tiny model in a folder, and a recipe for it, as commands take them."""

import shutil
from pathlib import Path

import pytest

from amnesia.live.loading import load
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def live(model):
    return load(model, "m")


@pytest.fixture(scope="module")
def recipe(live, model):
    path = model.parent / "japan.toml"
    path.write_text(recipe_text(live, model), encoding="utf-8")
    return path


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))
