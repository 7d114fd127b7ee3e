"""A tiny model goes through all probes, on the way that a user takes."""

import json
from dataclasses import replace

import pytest
import torch

from amnesia.compare import assess
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.evaluation.measurement import Unknown, in_both_forms, known_facts
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.chat_form import chat_format
from amnesia.live.forward import generate, sampled
from amnesia.live.loading import load
from amnesia.live.model import edited
from amnesia.probes.conclusion import conclude
from amnesia.probes.plan import prepare
from amnesia.probes.settings import ProbeSettings
from amnesia.probes.trial import probe
from amnesia.progress import SILENT
from amnesia.recipe_file import parse_recipe
from amnesia.report.page import report_html
from support.commands import done, refused
from support.reports import check_report_json
from support.tiny_recipe import recipe_text
from support.tiny_text import VOCAB_SIZE, save_tiny_live, tiny_live
from support.tracker import Silent

SETTINGS = ProbeSettings(n_facts=2, n_controls=2, n_samples=3, counts=(1, 3), n_biography=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_live(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def recipe(model):
    return recipe_text(load(model, "m"), model)


@pytest.mark.slow
def test_a_model_without_an_edit_scores_as_before_on_every_probe(model, recipe):
    live = load(model, "m")
    facts = facts_of_recipe(parse_recipe(recipe))
    plan = prepare(known_facts(live, facts.questions, facts.scoring), {}, SETTINGS)
    before = probe(live, plan, "original", SILENT.task)
    after = probe(load(model, "m"), plan, "edited", SILENT.task)
    assert before == after
    found = conclude(plan, before, after)
    with edited(live, (ColumnEdit(Cell(0, 3), -40.0),)):
        assert probe(live, plan, "edited", SILENT.task) != before
    names = [row.probe for row in found.probes if not row.not_applicable]
    assert {"cloze", "multiple_choice", "role_play", "leak@1", "leak@3", "lens_answer"} <= {*names}
    assert all(0.0 <= row.share.low <= row.share.high <= 1.0 for one in found.probes for row in one.rows)


TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@pytest.mark.slow
def test_a_chat_model_is_asked_as_messages_too_and_otherwise_as_before(model, recipe):
    live = load(model, "m")
    parsed = facts_of_recipe(parse_recipe(recipe))
    bare = prepare(known_facts(live, parsed.questions, parsed.scoring), {}, SETTINGS)
    plain = probe(live, bare, "original", SILENT.task)
    live.tokenizer.chat_template = TEMPLATE
    # Whether the tiny model knows a message is chance, so that all of them count as known.
    known = known_facts(live, in_both_forms(live, parsed.questions), replace(parsed.scoring, max_rank=VOCAB_SIZE))
    known = [
        replace(fact, unknown=Unknown(fact.before.logprob - 1, -9.0)) if fact.question.is_message else fact
        for fact in known
    ]
    plan = prepare(known, {}, SETTINGS, chat_format(live.tokenizer))
    assert {subject: len(facts) for subject, facts in plan.messages.facts.items()} == {
        "entity": 1, "control": 1, "never_known": 1
    }  # fmt: skip
    asked = probe(live, plan, "original", SILENT.task)
    (own,) = plan.messages.facts["entity"]
    assert own.text().startswith("[user] Complete this sentence: ") and "[assistant] " in own.text()
    (reply,) = generate(live, [own.text()])
    assert asked.replies[own.text()] == reply
    assert len(asked.samples[own.text()]) == SETTINGS.n_samples and len(asked.ranks[own][1]) == live.shape.n_layers
    assert asked.choices[plan.messages.choices[0].fact.text(), own.answer].logprob < 0
    # What is asked otherwise is asked alone, and comes out as without a template to the bit.
    assert plain.choices.items() <= asked.choices.items() and plain.samples.items() <= asked.samples.items()
    assert plain.ranks.items() <= asked.ranks.items()
    found = conclude(plan, asked, asked)
    names = [row.probe for row in found.probes if not row.not_applicable]
    assert {"message", "multiple_choice_as_message", "leak@3_as_message", "lens_answer_as_message"} <= {*names}


@pytest.mark.slow
def test_probes_are_in_the_report_and_on_its_page(model, recipe):
    facts = facts_of_recipe(parse_recipe(recipe))
    tracker = Silent()
    found = assess(str(model), str(model), facts, tracker, probes=SETTINGS)
    assert [line for line in tracker.lines if line.startswith("probing")] == [
        "probing the original model",
        "probing the edited model",
    ]
    check_report_json(found.document)
    assert [row["probe"] for row in found.document["probes"]["probes"]] == [row.probe for row in found.probes.probes]
    page = report_html(json.loads(json.dumps(found.document)))
    assert "multiple choice" in page and "leak@3" in page


@pytest.mark.slow
def test_one_model_can_be_probed_alone(model, recipe, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(recipe, encoding="utf-8")
    shown = done("evaluate", model, "--recipe", path, "--probes", "--probe-facts", "1")
    assert "Japan in probes: shares of 1 facts" in shown
    assert "--probe-facts belongs to --probes" in refused("evaluate", model, "--recipe", path, "--probe-facts", "1")


def test_drawn_answers_follow_the_models_distribution_and_can_be_drawn_again():
    live = tiny_live()
    prompts = ["the capital of Peru is", "winter"]
    drawn = sampled(live, prompts, 400, 1, seed=0)
    assert drawn == sampled(live, prompts, 400, 1, seed=0)
    assert drawn != sampled(live, prompts, 400, 1, seed=1)
    with torch.no_grad():
        logits = live.model(torch.tensor([live.tokenizer(prompts[0])["input_ids"]])).logits[0, -1]
    texts = live.tokenizer.batch_decode(torch.arange(len(logits))[:, None], skip_special_tokens=True)
    text, second = generate(live, prompts, 1)[0], texts[int(logits.topk(2).indices[1])]
    # Several tokens are no whole character, and all of them are written with one sign.
    expected, other = (
        sum(p for p, own in zip(logits.softmax(0).tolist(), texts, strict=True) if own == wanted)
        for wanted in (text, second)
    )
    error = (expected * (1 - expected) / 400) ** 0.5
    assert abs(drawn[0].count(text) / 400 - expected) < 4 * error
    assert len({*drawn[0]}) > 20, "nothing is cut off"
    assert abs(drawn[0].count(second) / 400 - other) < 4 * (other * (1 - other) / 400) ** 0.5


def test_the_draw_leaves_the_random_numbers_of_others_alone():
    live = tiny_live()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sampled(live, ["winter"], 2, 2, seed=0)
    assert torch.equal(torch.rand(1), expected)
