import dataclasses
import math

import pytest

from amnesia.choice.atoms import atoms_of
from amnesia.choice.direction import DirectionChoice, SearchText, Trial
from amnesia.choice.extraction import SINGLE_MULTIPLIERS, extract, extract_all, verdict
from amnesia.choice.known import Known
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.moments import moments_of
from amnesia.domain import Cell, ColumnEdit, DirectionEdit, Fact
from amnesia.errors import InputError
from amnesia.forward import answer_logprobs, generate
from amnesia.model import edited
from amnesia.recipe import Accept, Scoring, parse_recipe
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
def cache(tmp_path_factory):
    # As on a machine on which nothing was fetched or converted before.
    return tmp_path_factory.mktemp("moments") / "not" / "yet"


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


def test_a_single_cell_takes_the_multiplier_that_forgets_most(live, recipe):
    anything = dataclasses.replace(recipe, method="single", accept=Accept(-1e6, -1e6, -1e6))
    result = extract(live, anything)
    (edit,) = result.edits
    assert edit.multiplier in SINGLE_MULTIPLIERS
    assert result.target < 1.0
    for other in SINGLE_MULTIPLIERS:
        fixed = dataclasses.replace(anything, cells=(ColumnEdit(edit.cell, other),))
        assert extract(live, fixed).target >= result.target
    best_at_one = extract(live, dataclasses.replace(anything, multiplier=-1.0))
    assert {edit.multiplier for edit in best_at_one.edits} == {-1.0}
    assert best_at_one.target >= result.target


def test_a_direction_spares_others_where_the_best_cell_does_not_and_is_deterministic(live, recipe, cache):
    result = extract(live, recipe, cache=cache)
    assert result.edits and all(isinstance(edit, DirectionEdit) for edit in result.edits)
    single = dataclasses.replace(recipe, method="single", accept=Accept(-1e6, -1e6, -1e6))
    cell = extract(live, single)
    assert result.target < 0.5
    assert abs(result.control - 1.0) < abs(cell.control - 1.0)
    assert extract(live, recipe, cache=cache) == result


def test_columns_can_be_bounded_or_all(live, recipe, cache):
    few = extract(live, dataclasses.replace(recipe, max_cells=8), cache=cache)
    assert 0 < sum(len(edit.columns) for edit in few.edits) <= 8
    mild = extract(live, dataclasses.replace(recipe, prefer="mild"), cache=cache)
    assert {len(edit.columns) for edit in mild.edits} == {live.shape.d_mlp}


def test_edits_of_several_recipes_add_up(live, recipe, cache):
    second = dataclasses.replace(
        recipe,
        entity="Peru",
        facts=facts_known_to(live, ["Peru"]),
        controls=facts_known_to(live, ["Japan", "Norway", "Chile"]),
    )
    first, other = extract_all(live, [recipe, second], cache=cache)
    assert (first.entity, other.entity) == ("Japan", "Peru") and first.edits and other.edits
    known = [(fact.text(), fact.answer) for fact in recipe.facts]
    before = [row.total for row in answer_logprobs(live, known)]
    with edited(live, (*first.edits, *other.edits)):
        after = [row.total for row in answer_logprobs(live, known)]
    assert sum(after) < sum(before)
    with pytest.raises(InputError, match="two recipes are about 'Japan'"):
        extract_all(live, [recipe, recipe], cache=cache)
    lonely = dataclasses.replace(second, controls=facts_known_to(live, ["Japan"]))
    with pytest.raises(InputError, match="'Peru' has no search controls that the other recipes do not hold out"):
        extract_all(live, [recipe, lonely], cache=cache)


def test_the_choice_never_sees_held_out_facts(live, recipe, cache, monkeypatch):
    secret = Fact("Japan", "the secret of {entity} is", "unheard", "held_out")
    hidden = Fact("Norway", "the secret of {entity} is", "unheard", "held_out")
    # The names of held-out entities are reserved, so the two recipes must agree in them.
    plain = dataclasses.replace(recipe, controls=(*recipe.controls, Fact("Norway", "{entity} is", "cold", "held_out")))
    with_secrets = dataclasses.replace(plain, facts=(*plain.facts, secret), controls=(*plain.controls[:-1], hidden))
    asked = []
    for module in ("choice.extraction", "choice.known", "measurement"):
        monkeypatch.setattr(
            f"amnesia.{module}.answer_logprobs",
            lambda live, pairs, *rest: asked.extend(pairs) or answer_logprobs(live, pairs, *rest),
        )
    assert extract(live, with_secrets, cache=cache) == extract(live, plain, cache=cache)
    assert asked and not [pair for pair in asked if "secret" in pair[0] or pair[1] == "unheard"]


@pytest.mark.parametrize("needed", [-0.25, -0.75, -1.5])
def test_the_weakest_multiplier_that_reaches_the_goal_is_found(live, cache, needed):
    """Also where it is the one with which atoms are screened, or stronger."""

    class Scripted(DirectionChoice):
        def _measure(self, atoms, multiplier, size, targets):
            score = 0.5 if multiplier > needed else -0.2
            self.trials.append(Trial(atoms, multiplier, size, score))
            return self.trials[-1]

    atoms = atoms_of(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda name: name == "Japan", 1, ())
    nothing = Known((), (), ())
    found = Scripted(live, nothing, nothing, None, ChoiceSettings(), None).mildest(atoms)
    assert (found.multiplier, found.score) == (needed, -0.2)
    assert found.leak == min(atom.leak(needed, atom.dense) for atom in atoms)


def test_more_columns_are_taken_where_few_harm(live, recipe, cache):
    moments = moments_of(live, (0, 1, 2), cache)
    known = []
    for facts in (recipe.facts, recipe.controls):
        before = tuple(row.total for row in answer_logprobs(live, [(fact.text(), fact.answer) for fact in facts]))
        known.append(Known(facts, before, tuple(value - 5.0 for value in before)))
    atoms = atoms_of(live, "Japan", moments, lambda name: name == "Japan", 2, (8, 32))
    text = SearchText.of(live)
    sizes = []
    for max_text in (math.inf, -math.inf):
        settings = ChoiceSettings(goal=2.0, columns=(8, 32), max_leak=math.inf, min_control=-9.0, max_text=max_text)
        choice = DirectionChoice(live, *known, text, settings, None)
        sizes.append(choice.choose(atoms).size)
    assert sizes[0] == 8
    judged = [trial for trial in choice.trials if trial.text is not None]
    assert [trial.size for trial in judged] == [8, 32, live.shape.d_mlp]
    assert sizes[1] == min(judged, key=lambda trial: trial.text).size


def test_a_cell_that_harms_controls_is_not_chosen(live, recipe):
    nothing_will_do = Accept(max_target=1.0, min_control=math.inf)
    assert extract(live, dataclasses.replace(recipe, method="single", accept=nothing_will_do)).edits == ()


def test_an_empty_edit_is_no_handle(live, recipe, monkeypatch):
    monkeypatch.setattr("amnesia.choice.extraction.N_SINGLE", 0)
    met_by_nothing = Accept(max_target=1.1, min_control=0.5)
    result = extract(live, dataclasses.replace(recipe, method="single", accept=met_by_nothing))
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
