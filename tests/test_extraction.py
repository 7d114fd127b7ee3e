import dataclasses
import math

import pytest

from amnesia.domain import Cell, ColumnEdit, Fact
from amnesia.errors import InputError
from amnesia.extraction import extract, pose, verdict
from amnesia.forward import answer_logprobs, generate
from amnesia.recipe import Accept, Scoring, parse_recipe
from amnesia.search import EXACT_MULTIPLIERS
from tiny_text import tiny_live

WORDINGS = ("the capital of {entity} is", "people in {entity} like", "the oldest building in {entity} was")


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


def facts_known_to(live, entities, split="search"):
    """Whatever the random model would say next is what it knows."""
    prompts = [(entity, wording) for entity in entities for wording in WORDINGS]
    words = generate(live, [wording.replace("{entity}", entity) for entity, wording in prompts], max_new_tokens=3)
    return tuple(
        Fact(entity, wording, word.strip(), split)
        for (entity, wording), word in zip(prompts, words, strict=True)
        if word.strip()
    )


@pytest.fixture(scope="module")
def recipe(live):
    return recipe_of(live)


def recipe_of(live):
    """A recipe for Japan of facts that the tiny model knows."""
    empty = parse_recipe(
        """
        model.id = "tiny"
        entity.name = "Japan"
        localize.n_prompts = 6
        facts = [{ prompt = "{entity} is", answer = "x" }]
        controls.facts = [{ entity = "Peru", prompt = "{entity} is", answer = "x" }]
        """
    )
    return dataclasses.replace(
        empty,
        facts=facts_known_to(live, ["Japan"]),
        controls=facts_known_to(live, ["Peru", "Kenya", "Cuba"]),
        scoring=Scoring(min_nats=0.05, max_rank=600),
        accept=Accept(max_target=0.5, min_control=0.5),
        layers=(0, 2),
    )


def test_fixed_cells_are_only_verified(live, recipe):
    cells = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), -2.0))
    result = extract(live, dataclasses.replace(recipe, cells=cells))
    assert result.edits == cells
    assert result.candidates_tried == 2


def test_a_fixed_multiplier_tries_the_top_cells(live, recipe):
    result = extract(live, recipe)
    assert result.candidates_tried == 15
    assert {edit.multiplier for edit in result.edits} <= {-1.0}
    assert len(result.edits) <= recipe.max_cells
    if result.edits:
        assert result.target < 1.0


def test_a_single_cell_takes_the_multiplier_that_forgets_most(live, recipe):
    anything = dataclasses.replace(recipe, method="single", multiplier=None, accept=Accept(-1e6, -1e6, -1e6))
    result = extract(live, anything)
    (edit,) = result.edits
    assert edit.multiplier in EXACT_MULTIPLIERS and edit.multiplier < 0
    for other in (-8.0, -4.0, -2.0, -1.0):
        fixed = dataclasses.replace(anything, cells=(ColumnEdit(edit.cell, other),))
        assert extract(live, fixed).target >= result.target
    (mild,) = extract(live, dataclasses.replace(anything, min_multiplier=-0.1)).edits
    assert mild.multiplier == -0.1
    best_at_one = extract(live, dataclasses.replace(anything, multiplier=-1.0))
    assert {edit.multiplier for edit in best_at_one.edits} == {-1.0}
    assert best_at_one.target >= result.target


def test_greedy_cells_are_added_once_each_while_they_help(live, recipe):
    greedy = dataclasses.replace(recipe, multiplier=None, max_cells=3, accept=Accept(-1e6, -1e6, -1e6))
    result = extract(live, greedy)
    cells = [edit.cell for edit in result.edits]
    assert 1 < len(set(cells)) == len(cells) <= 3
    assert result.target < extract(live, dataclasses.replace(greedy, method="single")).target


def test_the_free_search_is_deterministic_sparse_and_exact(live, recipe):
    free = dataclasses.replace(recipe, method="pursuit", multiplier=None, max_cells=4)
    result = extract(live, free)
    assert 0 < len(result.edits) <= 4
    assert all(edit.multiplier in EXACT_MULTIPLIERS for edit in result.edits)
    assert list(result.edits) == sorted(result.edits)
    assert result.target < 1.0
    assert extract(live, free) == result


def test_the_search_never_sees_held_out_facts(live, recipe, monkeypatch):
    free = dataclasses.replace(recipe, method="pursuit", multiplier=None, max_cells=4)
    secret = Fact("Japan", "the secret of {entity} is", "unheard", "held_out")
    hidden = Fact("Norway", "the secret of {entity} is", "unheard", "held_out")
    # The names of held-out entities are reserved, so the two recipes must agree in them.
    free = dataclasses.replace(free, controls=(*free.controls, Fact("Norway", "{entity} is", "cold", "held_out")))
    asked, problems = [], []
    real = answer_logprobs

    def noted(*arguments):
        problems.append(pose(*arguments))
        return problems[-1]

    monkeypatch.setattr("amnesia.extraction.pose", noted)
    monkeypatch.setattr(
        "amnesia.extraction.answer_logprobs", lambda live, pairs, *rest: asked.extend(pairs) or real(live, pairs, *rest)
    )
    monkeypatch.setattr(
        "amnesia.measurement.answer_logprobs",
        lambda live, pairs, *rest: asked.extend(pairs) or real(live, pairs, *rest),
    )
    with_secrets = dataclasses.replace(free, facts=(*free.facts, secret), controls=(*free.controls[:-1], hidden))
    assert extract(live, with_secrets) == extract(live, free)
    assert asked and len(problems) == 2
    for problem in problems:
        kept = live.tokenizer.batch_decode([row.ids for row in problem.kept])
        assert len(kept) > 100
        assert not [text for text in kept if "Norway" in text or "Japan" in text]
    assert not [pair for pair in asked if "secret" in pair[0] or pair[1] == "unheard"]


def test_an_edit_that_harms_controls_is_not_chosen(live, recipe):
    nothing_will_do = Accept(max_target=1.0, min_control=math.inf)
    assert extract(live, dataclasses.replace(recipe, accept=nothing_will_do)).edits == ()


def test_an_empty_edit_is_no_handle(live, recipe, monkeypatch):
    monkeypatch.setattr("amnesia.extraction.N_SINGLE", 0)
    met_by_nothing = Accept(max_target=1.1, min_control=0.5)
    result = extract(live, dataclasses.replace(recipe, accept=met_by_nothing))
    assert (result.edits, result.verdict) == ((), "none")


def test_facts_that_nobody_knows_are_an_error(live, recipe):
    with pytest.raises(InputError, match="knows none of the 3 target facts about 'Japan'"):
        extract(live, dataclasses.replace(recipe, scoring=Scoring(min_nats=50.0)))


@pytest.mark.parametrize(
    ("target", "control", "expected"),
    [(0.2, 0.95, "strong"), (0.21, 1.0, "weak"), (0.1, 0.94, "weak"), (0.61, 1.0, "none"), (0.0, 0.89, "none")],
)
def test_verdicts(target, control, expected):
    assert verdict(target, control, Accept()) == expected
