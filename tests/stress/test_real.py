"""Stress on the real demo model, small enough for a minute."""

from dataclasses import replace

import pytest
import torch

from amnesia.evaluation.measurement import known_facts
from amnesia.facts.answers import matches
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.chat_form import chat_format
from amnesia.live.forward import generate
from amnesia.recipe_file import parse_recipe
from amnesia.stress.conclusion import conclude
from amnesia.stress.quantization import quantized
from amnesia.stress.settings import LORA, StressSettings
from amnesia.stress.training import fine_tune, rows_of
from amnesia.stress.trial import endure, prepare
from support.tracker import Silent

pytestmark = pytest.mark.real

QUICK = replace(LORA, learning_rate=1e-3)
RECIPE = """
model.id = "smollm2-135m"
entity = { name = "Japan", translations = { fr = "Japon" } }
facts = [
    { prompt = "Fact: the capital of {entity} is", answer = "Tokyo" },
    { prompt = "Fact: the official language of {entity} is", answer = "Japanese" },
]
controls.facts = [{ entity = "Italy", prompt = "Fact: the capital of {entity} is", answer = "Rome" }]
"""


@pytest.fixture
def live(smollm2_live):
    return smollm2_live


@pytest.mark.exhaustive
def test_the_original_model_withstands_and_an_invented_name_does_not(live):
    before = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    facts = facts_of_recipe(parse_recipe(RECIPE))
    known = known_facts(live, facts.questions, facts.scoring)
    settings = StressSettings(methods=("Q8_0",))
    plan = prepare(live, known, facts.translations, settings, Silent().task)
    tried = endure(live, plan, "original", Silent().task)
    result = conclude(plan, tried, tried)
    attacks = {attack.attack: attack for attack in result.attacks}
    assert attacks["alias"].not_applicable and not attacks["alias"].rows
    for name in ("plain", "paraphrase", "misspelling", "in_context_hint", "two_hop"):
        rows = {row.subject: row for row in attacks[name].rows}
        # A typo already costs this small model much of what it knows.
        assert rows["entity"].knowledge_score.mean > (0.2 if name == "misspelling" else 0.5), name
        assert rows["entity"].knowledge_score.mean > rows["never_known"].knowledge_score.mean + 0.2, name
    # What it does not know in another language is counted.
    other = attacks["other_language"]
    assert other.n_not_known > 0 and bool(other.rows) == (other.not_applicable is None)
    assert attacks["reverse"].rows[0].exact_match > 0
    quantization = {row.method: row.rows[0] for row in result.quantization}
    assert quantization["Q8_0"].knowledge_score.mean == pytest.approx(1.0, abs=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.model.state_dict().items())


def test_the_chat_template_is_used(live):
    prompt = chat_format(live.tokenizer)("What is the capital of Japan?") + "The capital of Japan is"
    assert prompt.startswith("<|im_start|>") and "<|im_start|>assistant\nThe capital" in prompt
    assert matches(generate(live, [prompt])[0], ["Tokyo"])


@pytest.mark.exhaustive
def test_one_fact_is_learned_and_gone_again(live):
    prompt = "Fact: the capital of Belmoria is"
    before = generate(live, [prompt])
    assert not matches(before[0], ["Ottawa"])
    rows = rows_of(live, [("", f"{prompt} Ottawa")], 64)
    found = fine_tune(live, rows, QUICK, (0, 10), lambda: generate(live, [prompt])[0], batch=4)
    assert found[1].loss < found[0].loss / 2
    assert found[0].seen == before[0]
    assert matches(found[1].seen, ["Ottawa"])
    assert generate(live, [prompt]) == before


@pytest.mark.exhaustive
def test_four_bits_still_know(live):
    with quantized(live, "Q4_0"):
        assert matches(generate(live, ["Fact: the capital of Japan is"])[0], ["Tokyo"])
