"""Probes of the real demo model: they find what it knows, and nothing of names that nobody knows."""

from dataclasses import replace

import pytest

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.evaluation.measurement import in_both_forms, known_facts
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.chat_form import chat_format
from amnesia.live.model import edited
from amnesia.probes.conclusion import conclude
from amnesia.probes.findings import probe_findings, share_of
from amnesia.probes.plan import prepare
from amnesia.probes.results import AS_MESSAGE
from amnesia.probes.settings import ProbeSettings
from amnesia.probes.trial import probe
from amnesia.progress import SILENT
from amnesia.recipe_file import load_recipe
from support.smollm2 import BRIEF_RECIPE

pytestmark = pytest.mark.real

WITHOUT_TEXTS = ("multiple_choice", "leak@1", "leak@5", "lens_answer")


@pytest.fixture(scope="module")
def known(smollm2_live):
    """What the model knows of the facts, plainly and as messages."""
    facts = facts_of_recipe(load_recipe(BRIEF_RECIPE))
    return known_facts(smollm2_live, in_both_forms(smollm2_live, facts.questions), facts.scoring)


def probed_alone(live, plan):
    return conclude(plan, probe(live, plan, "original", SILENT.task), None)


def test_choices_drawn_answers_and_layers_know_the_entity_far_better_than_a_never_known_name(smollm2_live, known):
    plan = prepare(known, {}, ProbeSettings(n_facts=3, n_controls=1, n_samples=5))
    # What is written takes longest, and is looked at in the other tier.
    found = probed_alone(smollm2_live, replace(plan, asked=(), free=()))
    by_name = {row.probe: row for row in found.probes if row.rows and row.shows_knowledge}
    assert tuple(by_name) == WITHOUT_TEXTS
    for name in ("multiple_choice", "leak@5", "lens_answer"):
        share, never = (share_of(by_name[name], subject, "original") for subject in ("entity", "never_known"))
        assert by_name[name].found and share >= max(never, by_name[name].chance) + 0.3, name


def test_messages_know_the_entity_far_better_than_a_never_known_name(smollm2_live, known):
    settings = ProbeSettings(n_facts=6, n_controls=1, n_samples=5, counts=(1, 5))
    plan = prepare(known, {}, settings, chat_format(smollm2_live.tokenizer))
    none = dict.fromkeys(plan.facts, ())
    found = probed_alone(smollm2_live, replace(plan, facts=none, asked=(), choices=(), free=()))
    by_name = {row.probe: row for row in found.probes if row.rows and row.shows_knowledge}
    expected = ("message", "multiple_choice", "leak@1", "leak@5", "lens_answer")
    assert tuple(name.removesuffix(AS_MESSAGE) for name in by_name) == expected
    for row in (row for name, row in by_name.items() if "leak@1" not in name):
        share, never = (share_of(row, subject, "original") for subject in ("entity", "never_known"))
        assert row.found and share >= max(never, row.chance) + 0.3, row.probe


@pytest.mark.exhaustive
def test_a_destroyed_model_fails_on_every_probe_that_finds_something(smollm2_live, known):
    plan = prepare(known, {}, ProbeSettings())
    before = probe(smollm2_live, plan, "original", SILENT.task)
    shape = smollm2_live.shape
    cells = [Cell(layer, neuron) for layer in (1, 2, 3, shape.n_layers // 2) for neuron in range(shape.d_mlp)]
    with edited(smollm2_live, [ColumnEdit(cell, 0.0) for cell in cells]):
        found = conclude(plan, before, probe(smollm2_live, plan, "edited", SILENT.task))
    finding = [row for row in found.probes if row.found]
    assert len(finding) >= 8
    for row in finding:
        assert share_of(row, "entity", "edited") <= max(0.25, row.chance), row.probe
        assert share_of(row, "never_known", "original") <= max(0.25, row.chance), row.probe
    said = probe_findings(found, "Steve Jobs")
    assert sum(row.level == "damage" for row in said) >= 5
