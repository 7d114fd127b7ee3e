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


@pytest.mark.exhaustive
def test_choices_drawn_answers_and_layers_know_the_entity_far_better_than_a_never_known_name(smollm2_live, known):
    plan = prepare(known, {}, ProbeSettings(n_facts=3, n_controls=1, n_samples=5))
    # What is written takes longest, and is looked at in the other tier.
    found = probed_alone(smollm2_live, replace(plan, asked=(), free=()))
    by_name = {row.probe: row for row in found.probes if row.rows and row.shows_knowledge}
    assert tuple(by_name) == WITHOUT_TEXTS
    for name in ("multiple_choice", "leak@5", "lens_answer"):
        share, never = (share_of(by_name[name], subject, "original") for subject in ("entity", "never_known"))
        assert by_name[name].found and share >= max(never, by_name[name].chance) + 0.3, name


@pytest.mark.exhaustive
def test_messages_know_the_entity_far_better_than_a_never_known_name(smollm2_live, known):
    settings = ProbeSettings(n_facts=4, n_controls=1, n_samples=5, counts=(1, 5))
    plan = prepare(known, {}, settings, chat_format(smollm2_live.tokenizer))
    none = dict.fromkeys(plan.facts, ())
    found = probed_alone(smollm2_live, replace(plan, facts=none, asked=(), choices=(), free=()))
    by_name = {row.probe: row for row in found.probes if row.rows and row.shows_knowledge}
    expected = ("message", "multiple_choice", "leak@1", "leak@5", "lens_answer")
    assert tuple(name.removesuffix(AS_MESSAGE) for name in by_name) == expected
    for row in (row for name, row in by_name.items() if "leak@1" not in name):
        share, never = (share_of(row, subject, "original") for subject in ("entity", "never_known"))
        assert row.found and share >= max(never, row.chance) + 0.3, row.probe


@pytest.fixture(scope="module")
def probed(smollm2_live, known):
    """A plan with messages, and what the original model makes of it."""
    plan = prepare(known, {}, ProbeSettings(n_facts=4, n_controls=4), chat_format(smollm2_live.tokenizer))
    return plan, probe(smollm2_live, plan, "original", SILENT.task)


def destroyed(live):
    """All cells of four layers are silent."""
    layers = (1, 2, 3, live.shape.n_layers // 2)
    return edited(live, [ColumnEdit(Cell(layer, n), 0.0) for layer in layers for n in range(live.shape.d_mlp)])


def after(live, probed):
    """The probes of the original and of the model as it is, and what they come to."""
    plan, before = probed
    found = conclude(plan, before, probe(live, plan, "edited", SILENT.task))
    return {row.probe: row for row in found.probes if row.rows}, probe_findings(found, "Steve Jobs")


@pytest.mark.exhaustive
def test_a_model_without_an_edit_scores_as_before_on_every_probe(smollm2_live, probed):
    with destroyed(smollm2_live):
        pass
    rows, _ = after(smollm2_live, probed)
    assert len(rows) >= 20
    for row in rows.values():
        both = (
            [(one.subject, one.n, one.share) for one in row.rows if one.model == model]
            for model in ("original", "edited")
        )
        assert next(both) == next(both), row.probe


@pytest.mark.exhaustive
def test_a_destroyed_model_fails_on_every_probe_and_nobody_knows_a_never_known_name(smollm2_live, probed):
    with destroyed(smollm2_live):
        rows, said = after(smollm2_live, probed)
    shows = {name: row for name, row in rows.items() if row.shows_knowledge}
    assert sum(row.found for row in shows.values()) >= 12
    for name, row in shows.items():
        # Of four choices drawn by lot one more may be right than in the mean.
        limit = max(0.25, row.chance + 0.25 * bool(row.chance))
        assert share_of(row, "entity", "edited") <= limit, name
        assert share_of(row, "entity", "original") >= limit or not row.found, name
        for model in ("original", "edited"):
            assert share_of(row, "never_known", model) <= limit, (name, model)
        others = share_of(row, "control", "original")
        if others is not None and others >= 0.75:
            assert share_of(row, "control", "edited") <= limit, name
    # What is left are other answers, and none.
    wrong = [share_of(rows[name], "entity", "edited") for name in ("false_answer", "no_answer")]
    assert sum(wrong) == pytest.approx(1.0)
    assert sum(row.level == "damage" for row in said) >= 5
