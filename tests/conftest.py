"""The same examples in every run, so that a test fails because of a change and not because of a draw; and a Hub."""

import pytest
from hypothesis import settings

from local_hub import LocalHub

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


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
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        for name, value in {**environment, "HF_TOKEN": hub.add_user("ada")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        yield hub
