"""A cache of the test's own, and a tiny GGUF file."""

import pytest

from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder, of this test alone; it need not exist."""
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_file(tmp_path):
    """A tiny Llama GGUF with a tokenizer."""
    (tmp_path / "models").mkdir()
    model = tiny_model("llama", vocab_size=VOCAB_SIZE)
    return llama_gguf(tmp_path / "models" / "tiny.gguf", model, tokenizer=tiny_tokenizer())
