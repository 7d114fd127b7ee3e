"""Probes of the real demo model: they find what it knows, and nothing of names that nobody knows."""

from dataclasses import replace

import pytest

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.evaluation.measurement import known_facts
from amnesia.facts.questions import facts_of_recipe
from amnesia.live.model import edited
from amnesia.probes.conclusion import conclude
from amnesia.probes.findings import probe_findings, share_of
from amnesia.probes.plan import prepare
from amnesia.probes.settings import ProbeSettings
from amnesia.probes.trial import probe
from amnesia.progress import SILENT
from amnesia.recipe_file import load_recipe
from support.smollm2 import BRIEF_RECIPE

pytestmark = pytest.mark.real

WITHOUT_TEXTS = ("multiple_choice", "leak@1", "leak@5", "lens_answer")


def planned(live, settings):
    facts = facts_of_recipe(load_recipe(BRIEF_RECIPE))
    return prepare(known_facts(live, facts.questions, facts.scoring), {}, settings)


def test_choices_drawn_answers_and_layers_know_the_entity_far_better_than_a_never_known_name(smollm2_live):
    plan = planned(smollm2_live, ProbeSettings(n_facts=3, n_controls=1, n_samples=5))
    # What is written takes longest, and is looked at in the other tier.
    plan = replace(plan, asked=(), free=())
    found = conclude(plan, probe(smollm2_live, plan, "original", SILENT.task), None)
    by_name = {row.probe: row for row in found.probes if row.rows and row.shows_knowledge}
    assert tuple(by_name) == WITHOUT_TEXTS
    for name in ("multiple_choice", "leak@5", "lens_answer"):
        known, never = (share_of(by_name[name], subject, "original") for subject in ("entity", "never_known"))
        assert by_name[name].found and known >= max(never, by_name[name].chance) + 0.3, name


@pytest.mark.exhaustive
def test_a_destroyed_model_fails_on_every_probe_that_finds_something(smollm2_live):
    plan = planned(smollm2_live, ProbeSettings())
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
