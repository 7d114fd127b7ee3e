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


@pytest.fixture(scope="module")
def asked(smollm2_live):
    """A plan of every probe, and what the model made of it."""
    plan = planned(smollm2_live, ProbeSettings(n_facts=5, n_controls=5))
    return plan, probe(smollm2_live, plan, "original", SILENT.task)


def probed_as(live, asked, cells, multiplier):
    plan, before = asked
    with edited(live, [ColumnEdit(cell, multiplier) for cell in cells]):
        return conclude(plan, before, probe(live, plan, "edited", SILENT.task))


@pytest.mark.exhaustive
def test_a_destroyed_model_fails_on_every_probe_that_finds_something(smollm2_live, asked):
    shape = smollm2_live.shape
    cells = [Cell(layer, neuron) for layer in (1, 2, 3, shape.n_layers // 2) for neuron in range(shape.d_mlp)]
    found = probed_as(smollm2_live, asked, cells, 0.0)
    finding = [row for row in found.probes if row.found]
    assert len(finding) >= 8
    for row in finding:
        assert share_of(row, "entity", "edited") <= max(0.25, row.chance), row.probe
        assert share_of(row, "control", "edited") <= max(0.4, row.chance), row.probe
    said = probe_findings(found, "Steve Jobs")
    assert sum(row.level == "damage" for row in said) >= 5


@pytest.mark.exhaustive
def test_an_edit_that_changes_nothing_is_no_change_in_any_probe(smollm2_live, asked):
    found = probed_as(smollm2_live, asked, [Cell(1, 7), Cell(20, 8)], 1.0)
    for row in found.probes:
        for subject in ("entity", "control", "never_known"):
            assert share_of(row, subject, "edited") == share_of(row, subject, "original"), row.probe
    assert all(text.original == text.edited for text in found.texts)
    ranks = {(row.place, row.subject, row.model): row.ranks for row in found.lens}
    assert all(ranks[place, subject, "edited"] == own for (place, subject, _), own in ranks.items())
    said = probe_findings(found, "Steve Jobs")
    assert {row.level for row in said} <= {"warning", "info"} and any("shows in the probe" in row.text for row in said)


@pytest.mark.exhaustive
def test_a_never_known_name_leaks_in_no_probe(asked):
    plan, before = asked
    for row in conclude(plan, before, None).probes:
        if row.rows and row.shows_knowledge:
            assert share_of(row, "never_known", "original") <= max(0.25, row.chance), row.probe
