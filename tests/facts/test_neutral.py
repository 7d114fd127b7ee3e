"""The neutral text is what it is said to be."""

import re

import pytest
from transformers import AutoTokenizer

from amnesia.facts.names import code_snippets, contrast_entities, foreign_sentences, generic_sentences, unseen_names
from amnesia.facts.neutral import neutral_text


def test_registers_and_languages():
    texts = neutral_text()
    assert len({(text.register, text.language) for text in texts}) == len(texts) >= 12
    assert {text.language for text in texts} == {"en", "de", "fr", "es", "code"}
    assert all(passage.strip() == passage and passage for text in texts for passage in text.passages)


def test_the_search_has_seen_none_of_it():
    whole = " ".join(" ".join(passage.split()) for text in neutral_text() for passage in text.passages)
    seen = [" ".join(text.split()) for text in (*generic_sentences(), *foreign_sentences(), *code_snippets())]
    assert not [text for text in seen if text in whole]


def test_it_names_nobody():
    words = {word for text in neutral_text() for passage in text.passages for word in re.findall(r"\w+", passage)}
    names = {name for name in (*contrast_entities(), *unseen_names("Japan")) if name.istitle() and " " not in name}
    assert not words & names


@pytest.mark.real
def test_it_has_five_thousand_tokens(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    sizes = {
        text.language: sum(len(tokenizer(passage)["input_ids"]) for passage in text.passages) for text in neutral_text()
    }
    assert all(size > 100 for size in sizes.values())
    assert sum(len(tokenizer(p)["input_ids"]) for text in neutral_text() for p in text.passages) >= 5000
