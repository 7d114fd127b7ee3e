import dataclasses

import pytest
import torch

from amnesia.domain import Cell, ColumnEdit, Fact
from amnesia.errors import InputError
from amnesia.extraction import extract, pose
from amnesia.joint import extract_jointly, joinable
from amnesia.observations import Observations
from amnesia.recipe import Accept
from test_extraction import facts_known_to, recipe_of
from tiny_text import tiny_live

NAMES = ("Japan", "Norway", "Chile")


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


@pytest.fixture(scope="module")
def recipes(live):
    return [
        dataclasses.replace(
            recipe_of(live),
            entity=name,
            facts=facts_known_to(live, [name]),
            controls=facts_known_to(live, ["Peru", "Kenya", *(other for other in NAMES[:2] if other != name)]),
            accept=Accept(max_target=0.9, min_control=0.5),
            method="pursuit",
            multiplier=None,
            max_cells=4,
        )
        for name in NAMES
    ]


def test_all_entities_fall_together_by_cells_of_their_own(live, recipes):
    result = extract_jointly(live, recipes)
    found = result.together
    assert [row.entity for row in found] == list(NAMES)
    edits = [edit for row in found for edit in row.edits]
    assert 0 < len(edits) <= 12
    assert len({edit.cell for edit in edits}) == len(edits)
    assert all(row.target < 0.95 and list(row.edits) == sorted(row.edits) for row in found)
    assert len({row.control for row in found}) == 1
    # Each entity's score is that of the whole edit.
    fixed = dataclasses.replace(recipes[0], cells=tuple(edits))
    assert extract(live, fixed).target == pytest.approx(found[0].target, abs=1e-5)
    assert [row.entity for row in result.alone] == list(NAMES)
    assert extract_jointly(live, recipes, alone=result.alone) == result


@pytest.fixture
def problems(monkeypatch):
    """Those that are posed: first the one of all entities, then one for each."""
    posed = []

    def noted(*arguments):
        posed.append(pose(*arguments))
        return posed[-1]

    monkeypatch.setattr("amnesia.joint.pose", noted)
    monkeypatch.setattr("amnesia.extraction.pose", noted)
    return posed


def test_facts_about_another_entity_to_forget_are_no_controls(live, recipes, problems):
    about = Fact("Kenya", "{entity} is far from", "Norway")
    with_answer = dataclasses.replace(recipes[0], controls=(*recipes[0].controls, about))
    extract_jointly(live, [with_answer, recipes[1]])
    problem = problems[0]
    kept = live.tokenizer.batch_decode([row.ids for row in problem.kept])
    assert [text for text in kept if "Peru" in text]
    assert not [text for text in kept if "Japan" in text or "Norway" in text]
    # Each entity counts the same, however many wordings are known.
    numbers = problem.entities.tolist()
    first = numbers.count(0)
    assert numbers == [0] * first + [1] * (len(numbers) - first)
    assert first != len(numbers) - first
    observed = Observations(problem, seed=0)
    observed.measure(torch.ones(3 * live.shape.d_mlp), torch.ones(len(problem.kept)))
    assert observed.shares[:first].sum().item() == pytest.approx(0.5)
    assert observed.shares[first:].sum().item() == pytest.approx(0.5)


def test_nobody_held_out_by_one_recipe_is_seen_in_the_search_for_another(live, recipes, problems):
    held_out = tuple(
        dataclasses.replace(fact, split="held_out") if fact.entity == "Kenya" else fact for fact in recipes[0].controls
    )
    extract_jointly(live, [dataclasses.replace(recipes[0], controls=held_out), recipes[1]])
    kept = [live.tokenizer.batch_decode([row.ids for row in problem.kept]) for problem in problems]
    assert len(kept) == 3
    assert all(any("Peru" in text for text in texts) for texts in kept)
    assert not any("Kenya" in text for texts in kept for text in texts)


def test_a_recipe_whose_search_controls_are_all_held_out_elsewhere_is_refused(live, recipes):
    held_out = tuple(dataclasses.replace(fact, split="held_out") for fact in recipes[1].controls)
    others = dataclasses.replace(recipes[0], controls=(*facts_known_to(live, ["Iceland"]), *held_out))
    with pytest.raises(InputError, match="'Norway' has no search control about someone whom no recipe"):
        joinable([others, recipes[1]])


def test_recipes_that_cannot_be_joined_are_refused(recipes):
    japan, norway, _ = recipes
    for other, words in (
        (japan, "two recipes are for 'Japan'"),
        (dataclasses.replace(norway, cells=(ColumnEdit(Cell(0, 1)),)), "'Norway' fixes its cells"),
        (dataclasses.replace(norway, method="greedy"), "asks for the method 'greedy'"),
        (dataclasses.replace(norway, model="other"), "model.id is other for 'Norway' and tiny for 'Japan'"),
        (dataclasses.replace(norway, revision="v2"), "model.revision is v2 for 'Norway' and None"),
        (dataclasses.replace(norway, layers=None), "localize.layers is None"),
        (dataclasses.replace(norway, min_multiplier=-2.0), "edit.min_multiplier is -2.0"),
    ):
        with pytest.raises(InputError, match=words):
            joinable([japan, other])
