"""Gemma 3 270M, the second built-in model: another family, with GELU and a norm after the MLP. Fetched once by pip."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from amnesia.domain import Loading
from amnesia.errors import NumericalError
from amnesia.files.disk import hash_file
from amnesia.live.forward import answer_logprobs, generate
from amnesia.live.loading import load
from amnesia.live.tokens import join
from amnesia.localization.cells import localize
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.resolve import resolve

pytestmark = pytest.mark.real
PAIRS = [
    ("The capital of France is", "Paris"),
    ("The capital of France is", "Vienna"),
    ("Albert Einstein developed the theory of", "relativity"),
    ("The Eiffel Tower is in the city of", "Paris"),
    ("Harry Potter was written by", "J. K. Rowling"),
]
ENTITIES = """Steve Jobs, Julius Caesar, Harry Potter, Albert Einstein, Charles Darwin, Star Wars, Eiffel Tower,
Chicago, Egypt, Volkswagen, Paris, Google, Michael Jordan, Thomas Edison, Sherlock Holmes, Isaac Newton, Grand Canyon,
Kyoto, Japan, France"""


@pytest.fixture(scope="module")
def source():
    return resolve("gemma-3-270m")


@pytest.fixture(scope="module")
def live(source):
    return load(source.folder, str(source))


def test_it_is_the_file_that_was_meant(source):
    assert hash_file(source.gguf) == BUILT_IN["gemma-3-270m"].sha256
    config = json.loads((source.folder / "config.json").read_bytes())
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("gemma3_text", 18, "float32")
    assert "license: gemma" in (source.folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.exhaustive
def test_answers_score_as_in_plain_transformers(source, live):
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    model = AutoModelForCausalLM.from_pretrained(source.folder)
    for (prompt, answer), found in zip(PAIRS, answer_logprobs(live, PAIRS), strict=True):
        ids = tokenizer(join(prompt, answer), return_tensors="pt").input_ids
        start = len(tokenizer(prompt).input_ids)
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(1)
        expected = logprobs[start - 1 : -1].gather(1, ids[0, start:, None]).sum().item()
        assert found.logprob == pytest.approx(expected, abs=1e-3)


def test_it_knows_who_founded_apple(live):
    assert generate(live, ["Steve Jobs was the founder of"], 2) == [" Apple."]


@pytest.mark.exhaustive
def test_every_entity_has_a_best_cell_of_its_own(live):
    best = [
        row.cells[0] for row in localize(live, ENTITIES.replace("\n", " ").split(", "), n_prompts=40, top=1).entities
    ]
    assert len({row.cell for row in best}) == 20
    assert min(row.mean_z for row in best) >= 1


# Tiny models that overflow are refused in the same words in the fast tier.
@pytest.mark.exhaustive
def test_float16_has_no_room_for_it(source):
    with pytest.raises(NumericalError, match="because it overflows in float16: use bfloat16 or float32"):
        answer_logprobs(load(source.folder, str(source), Loading("float16")), PAIRS[:1])
