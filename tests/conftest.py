"""The same examples in every run, so that a test fails because of a change and not because of a draw; and a Hub."""

import gc
import os
import signal
import sys
import tomllib
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tomli_w
from hypothesis import settings

from support.brief import N_CHARACTERS
from support.commands import done
from support.folders import ROOT, files_in
from support.further import further
from support.hub_state import BASE_CARD
from support.kept_moments import keep_moments
from support.local_hub import LocalHub

# Under `nohup` the end of a terminal is ignored, which the processes that tests start would inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Workers side by side share the cores. This must be known before torch is imported, by children of the tests too.
n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if n_workers > 1:
    assert "torch" not in sys.modules, "nothing that is imported above may import torch"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_workers)))

# In a new environment what is imported is compiled first, which takes longest of all. So that workers side by side do not
# all compile the same, others than the first begin with what torch and the tests import late.
if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
    for late in (
        "sympy",
        "matplotlib.figure",
        "huggingface_hub.hf_api",
        "gguf",
        "jinja2",
        "uvicorn",
        "starlette.testclient",
    ):
        with suppress(ImportError):
            import_module(late)

# What tests that are about something else ask: questions of each field of general ability.
N_COMMON = 2
FACTS = ROOT / "amnesia" / "facts"

users_cache = os.environ.get("AMNESIA_CACHE")
own_cache = TemporaryDirectory(prefix="amnesia-tests-")
own_data = TemporaryDirectory(prefix="amnesia-tests-data-")

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


# Tests that run only where `-m` names their marker.
OPT_IN = ("exhaustive", "runtimes")


@pytest.hookimpl(tryfirst=True)  # Before `-m` is asked.
def pytest_collection_modifyitems(config, items):
    """Without what nobody asked for; the longest first, so that workers side by side end together."""
    cases = [item for item in items if hasattr(item, "callspec")]
    for index in further([((item.path, item.originalname), item.callspec.params) for item in cases]):
        cases[index].add_marker(pytest.mark.further)
    closed = [name for name in OPT_IN if name not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in closed)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


def pytest_collection_finish():
    """What importing has made stays to the end: collections of garbage, of which commands ask some, need not look."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What is kept of tiny models goes into a folder of the tests; the user's cache is for tests of its real models.

    A hook comes before the fixtures of modules, too.
    """
    cache = own_cache.name
    if item.get_closest_marker("real") or item.get_closest_marker("runtimes"):
        cache = users_cache
    if cache is None:
        os.environ.pop("AMNESIA_CACHE", None)
    else:
        os.environ["AMNESIA_CACHE"] = cache
    is_real = item.get_closest_marker("real") or item.get_closest_marker("runtimes")
    measure_with(
        few_questions=item.path.name not in ("test_ability.py", "test_packaged.py"),
        little_text=not is_real and item.path.name not in ("test_damage.py", "test_neutral.py", "test_packaged.py"),
    )
    # Which text a model writes for its moments, and how, is what tests of their room are about.
    is_about_moments = item.path.parent.name == "directions"
    keep_moments(own_text=not is_about_moments, little_text=not is_real and not is_about_moments)


def measure_with(few_questions, little_text):
    """Let general ability be measured by few questions, or by all; damage by the beginnings of texts, or by all."""
    from amnesia.facts import ability, neutral

    for module, read, is_brief, brief in (
        (ability, ability.ability_questions, few_questions, brief_ability),
        (neutral, neutral.neutral_text, little_text, brief_neutral),
    ):
        name = f"{module.__name__.rpartition('.')[2]}.toml"
        wanted = Path(own_data.name) / name if is_brief else FACTS / name
        if not wanted.exists():
            rows = tomllib.loads((FACTS / name).read_text(encoding="utf-8"))
            wanted.write_text(tomli_w.dumps(brief(rows)), encoding="utf-8")
        if wanted != module._FILE:
            module._FILE = wanted
            read.cache_clear()


def brief_ability(rows):
    return {"fields": [row | {"questions": row["questions"][:N_COMMON]} for row in rows["fields"]]}


def brief_neutral(rows):
    return {"texts": [row | {"passages": [row["passages"][0][:N_CHARACTERS].strip()]} for row in rows["texts"]]}


@pytest.fixture(scope="session")
def smollm2():
    """The real demo model on disk, fetched and converted once."""
    from amnesia.sources.resolve import resolve

    return resolve("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_live(smollm2):
    """The real demo model in memory, for tests that leave it as it is."""
    from amnesia.live.loading import load

    return load(smollm2.folder, str(smollm2))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for which the client in this process takes the real one, with the token of user ada and an empty cache.

    Child processes find it by HF_ENDPOINT. Nobody waits before trying again.
    """
    with LocalHub() as hub:
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(f"{constants}ENDPOINT", hub.url)
        monkeypatch.setattr(
            f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(f"{constants}HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        # Large files would otherwise be sent with a protocol of their own, which ends in compiled code.
        monkeypatch.setattr(f"{constants}HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("time.sleep", lambda _: None)
        environment = {
            "AMNESIA_CACHE": str(tmp_path / "cache"),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        for name, value in {**environment, "HF_TOKEN": hub.add_user("ada")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        yield hub


@pytest.fixture
def base(hub, tmp_path):
    """The commit of org/base, a model in several shards on the Hub, which is also in the folder `source`."""
    from support.tiny import save_tiny  # Takes seconds to import, which tests without a model need not wait for.

    folder = save_tiny(tmp_path / "source")
    (folder / "README.md").write_bytes(BASE_CARD)
    return hub.add_repo("org/base", files_in(folder)).refs["refs/heads/main"]


@pytest.fixture
def output(base, tmp_path):
    """org/base with two cells of one layer edited, as a model folder."""
    done("edit", "org/base", "--cell", "0:3", "--cell", "0:7", "--entity", "Japan", "-o", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def adapter(base, tmp_path):
    """org/base with one cell edited, as an adapter."""
    done("edit", "org/base", "--cell", "0:3", "--entity", "Japan", "--format", "adapter", "-o", tmp_path / "adapter")
    return tmp_path / "adapter"
