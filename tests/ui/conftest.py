"""A page's server for a tiny model, without a browser and with one."""

import pytest

from amnesia.live.loading import load_source
from amnesia.recipe_file import parse_recipe
from amnesia.sources.resolve import resolve
from amnesia.ui.session import Session
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live
from support.ui_client import served


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve(str(save_tiny_live(tmp_path_factory.mktemp("models") / "m")))


@pytest.fixture(scope="module")
def live(source):
    return load_source(source)


@pytest.fixture(scope="module")
def recipe(live, source):
    return parse_recipe(recipe_text(live, source.folder))


@pytest.fixture
def session(source, live, recipe):
    return Session(source, live, recipe)


@pytest.fixture
def client(session):
    with served(session) as client:
        yield client
