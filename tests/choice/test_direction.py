import dataclasses
import math

import pytest
import torch

from amnesia.choice import extraction
from amnesia.choice.atoms import Name, change_by
from amnesia.choice.direction import DirectionChoice, Trial
from amnesia.choice.extraction import extract
from amnesia.choice.known import Scores
from amnesia.choice.neighbors import neighbors_of
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.moments import moments_of
from amnesia.domain import Cell, Fact
from amnesia.edits import ColumnEdit, DirectionEdit
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, Unknown, measure
from amnesia.facts.names import contrast_entities, share_words, unseen_names
from amnesia.facts.questions import Question
from amnesia.live.forward import answer_logprobs
from amnesia.live.interventions import edited_logprobs
from amnesia.live.model import edited
from amnesia.localization.cells import LocalizationSettings
from amnesia.recipe import Accept, LocalizeOptions, Recipe, Scoring, Target
from support.allowed_harm import allow_harm
from support.known_recipes import recipe_of
from support.tiny_text import tiny_live


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    # As on a machine on which nothing was fetched or converted before.
    return tmp_path_factory.mktemp("moments") / "not" / "yet"


@pytest.fixture(scope="module")
def recipe(live):
    return recipe_of(live)


def with_edit(recipe: Recipe, accept: Accept | None = None, **options) -> Recipe:
    """The recipe with other options of its edit."""
    return dataclasses.replace(recipe, edit=dataclasses.replace(recipe.edit, **options), accept=accept or recipe.accept)


def test_fixed_cells_are_only_verified(live, recipe):
    cells = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), -2.0))
    result = extract(live, with_edit(recipe, cells=cells))
    assert result.edits.edits == cells
    assert result.candidates_tried == 1  # What is given is asked once, as a whole.
    assert (result.answers, result.screening) == (None, None)


@pytest.mark.slow
def test_a_single_cell_takes_the_multiplier_that_forgets_most(live, recipe):
    anything = with_edit(recipe, method="single", accept=Accept(-1e6, -1e6, -1e6))
    result = extract(live, anything)
    (edit,) = result.edits.edits
    assert edit.multiplier in extraction.SINGLE_MULTIPLIERS
    assert result.target < 1.0
    for other in extraction.SINGLE_MULTIPLIERS:
        fixed = with_edit(anything, cells=(ColumnEdit(edit.cell, other),))
        assert extract(live, fixed).target >= result.target
    best_at_one = extract(live, with_edit(anything, multiplier=-1.0))
    assert {edit.multiplier for edit in best_at_one.edits.edits} == {-1.0}
    assert best_at_one.target >= result.target


@pytest.mark.slow
def test_a_direction_spares_others_where_the_best_cell_does_not_and_is_deterministic(live, recipe, cache, monkeypatch):
    allow_harm(monkeypatch)
    result = extract(live, recipe, cache=cache)
    assert result.edits.edits and all(isinstance(edit, DirectionEdit) for edit in result.edits.edits)
    single = with_edit(recipe, method="single", accept=Accept(-1e6, -1e6, -1e6))
    cell = extract(live, single)
    assert result.target < 0.5
    assert abs(result.control - 1.0) < abs(cell.control - 1.0)
    assert extract(live, recipe, cache=cache) == result


@pytest.mark.slow
def test_the_places_that_were_considered_are_told(live, recipe, cache):
    reserved = dataclasses.replace(
        recipe, controls=(*recipe.controls, Fact("Norway", "{entity} is", "cold", "held_out"))
    )
    # Without neighbors, with whom the read-outs would be others.
    result = extract(live, reserved, cache=cache, avoided=neighbors_of(reserved.target, ()))
    moments = moments_of(live, (0, 1, 2), cache)
    atoms = Name(live, "Japan", moments, lambda name: name in ("Japan", "Norway")).atoms(3)
    screening = result.screening
    shifts = {(place.layer, place.token): place.shift for place in screening.places}
    assert shifts == pytest.approx({atom.place: atom.shift for atom in atoms})
    chosen = {(edit.layer, edit.token) for edit in result.edits.edits}
    assert {(place.layer, place.token) for place in screening.places if place.chosen} == chosen
    tried = {(place.layer, place.token): place.score for place in screening.places if place.score is not None}
    # All of them, because none of those that move the stream most reaches the goal.
    assert result.target > ChoiceSettings().goal and len(atoms) > ChoiceSettings().n_screened
    assert set(tried) == {atom.place for atom in atoms}
    atom = next(atom for atom in atoms if atom.place in tried)
    scores = []
    for fact in recipe.facts:
        ask = [(fact.text(name), fact.answer) for name in ("Japan", *unseen_names("Japan"))]
        before, *others = (row.logprob for row in answer_logprobs(live, ask))
        unknown = sum(others) / len(others)
        with edited(live, [atom.edit(screening.multiplier)]):
            after = answer_logprobs(live, ask[:1])[0].logprob
        if before - unknown >= recipe.scoring.min_nats:
            scores.append((after - unknown) / (before - unknown))
    assert tried[atom.place] == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    assert {(row.layer, row.token) for row in result.answers.rows} == chosen
    for row in (row for row in result.answers.rows if row.group == "names"):
        kept = [other for other in moments.names if not share_words(other.name, ("Japan", "Norway"))]
        assert row.n == sum(other.is_last or row.token > 0 for other in kept)


@pytest.mark.slow
def test_columns_can_be_bounded_or_all(live, recipe, cache):
    few = extract(live, with_edit(recipe, max_cells=8), cache=cache)
    assert 0 < sum(len(edit.columns) for edit in few.edits.edits) <= 8
    mild = extract(live, with_edit(recipe, prefer="mild"), cache=cache)
    assert {len(edit.columns) for edit in mild.edits.edits} == {live.shape.d_mlp}
    one = extract(live, with_edit(recipe, max_cells=1), cache=cache)
    assert [type(edit) for edit in one.edits.edits] == [ColumnEdit]
    two = extract(live, with_edit(recipe, max_cells=2), cache=cache)
    assert 0 < sum(len(getattr(edit, "columns", [0])) for edit in two.edits.edits) <= 2


@pytest.mark.slow
def test_the_choice_never_sees_held_out_facts(live, recipe, cache, monkeypatch):
    secret = Fact("Japan", "the secret of {entity} is", "unheard", "held_out")
    hidden = Fact("Norway", "the secret of {entity} is", "unheard", "held_out")
    # The names of held-out entities are reserved, so the two recipes must agree in them.
    plain = dataclasses.replace(recipe, controls=(*recipe.controls, Fact("Norway", "{entity} is", "cold", "held_out")))
    with_secrets = dataclasses.replace(plain, facts=(*plain.facts, secret), controls=(*plain.controls[:-1], hidden))
    asked = []
    for module in ("choice.known", "evaluation.measurement"):
        for ask in (answer_logprobs, edited_logprobs):
            monkeypatch.setattr(
                f"amnesia.{module}.{ask.__name__}",
                lambda live, pairs, *rest, ask=ask: asked.extend(pairs) or ask(live, pairs, *rest),
                raising=module == "choice.known",
            )
    assert extract(live, with_secrets, cache=cache) == extract(live, plain, cache=cache)
    assert asked and not [pair for pair in asked if "secret" in pair[0] or pair[1] == "unheard"]


CHAT = "{% for message in messages %}say {{ message['content'] }} {% endfor %}"


@pytest.mark.slow
def test_a_chat_model_is_also_asked_in_messages_by_the_choice(recipe):
    live = tiny_live("llama", seed=3)
    cells = (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), -2.0))
    fixed = with_edit(dataclasses.replace(recipe, scoring=Scoring(min_nats=0.05, max_rank=10**6)), cells=cells)
    plain = extract(live, fixed)
    live.tokenizer.chat_template = CHAT
    both = extract(live, fixed)

    def scores(facts):
        """Every other fact of a role is asked as a message, too: the score by one prompt at a time."""
        found = []
        for place, fact in enumerate(facts):
            begun = fact.prompt[0].upper() + fact.prompt[1:]
            for prompt in (fact.prompt, *([f"say Complete this sentence: {begun} ... {begun}"] * (place % 2 == 0))):
                ask = [
                    (prompt.replace("{entity}", name), fact.answer)
                    for name in (fact.entity, *unseen_names(fact.entity))
                ]
                before, *others = (row.logprob for row in answer_logprobs(live, ask))
                unknown = sum(others) / len(others)
                with edited(live, cells):
                    after = answer_logprobs(live, ask[:1])[0].logprob
                if before - unknown >= 0.05:
                    found.append((after - unknown) / (before - unknown))
        return sum(found) / len(found)

    assert both.target == pytest.approx(scores(fixed.facts), rel=1e-3)
    assert both.control == pytest.approx(scores(fixed.controls), rel=1e-3)
    assert both.control != plain.control


@pytest.mark.parametrize("needed", [-0.25, *(pytest.param(needed, marks=pytest.mark.slow) for needed in (-0.75, -1.5))])
def test_the_weakest_multiplier_that_reaches_the_goal_is_found(live, cache, needed):
    """Also where it is the one with which atoms are screened, or stronger."""

    class Scripted(DirectionChoice):
        def _measure(self, atoms, multiplier, targets):
            score = 0.5 if multiplier > needed else -0.2
            self.trials.append(Trial(atoms, multiplier, score, self._change(atoms, multiplier)))
            return self.trials[-1]

    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    atoms = name.atoms(1)
    found = Scripted(Scores(live), name, (), ()).mildest(atoms)[0]
    assert (found.multiplier, found.score) == (needed, -0.2)
    assert found.change.harm == min(change_by([atom], needed).harm for atom in atoms)


def n_columns(trial):
    return sum(atom.size for atom in trial.atoms)


def known_by(live, facts):
    """Facts that are worth five nats more than for an unknown entity."""
    answers = measure(live, [fact.pair() for fact in facts])
    unknown = {pair: Unknown(answer.logprob - 5.0, answer.logprob_first - 5.0) for pair, answer in answers.items()}
    return tuple(
        KnownFact(Question("target", fact), answers[fact.pair()], unknown[fact.pair()], Scoring()) for fact in facts
    )


def test_scores_are_those_of_each_fact_by_itself_and_are_asked_once(live, recipe, monkeypatch):
    facts = known_by(live, recipe.facts)
    variants = [(ColumnEdit(Cell(0, 3), -4.0),), (ColumnEdit(Cell(1, 4), -2.0), ColumnEdit(Cell(0, 5), 0.0))]
    expected = []
    for edits in variants:
        with edited(live, edits):
            after = [answer_logprobs(live, [fact.pair])[0].logprob for fact in facts]
        # They are worth five nats more than for an unknown entity.
        scores = [1.0 + (new - fact.before.logprob) / 5.0 for fact, new in zip(facts, after, strict=True)]
        expected.append(sum(scores) / len(scores))
    passes = []
    for ask in (answer_logprobs, edited_logprobs):
        monkeypatch.setattr(
            f"amnesia.choice.known.{ask.__name__}",
            lambda live, pairs, *rest, ask=ask: passes.append(len(pairs)) or ask(live, pairs, *rest),
        )
    scores, told = Scores(live), []
    scores.ask(facts[:2], variants, told.append)
    assert passes == [2], "both edits in one pass"
    assert [scores.mean(facts, edits, told.append) for edits in variants] == pytest.approx(expected, abs=1e-5)
    assert passes == [2, *[len(facts) - 2] * 2], "only those that were not asked"
    assert sum(told) == 2 * len(facts)
    assert scores.mean(facts[1:]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_a_cell_that_an_acting_edit_scales_is_not_scaled_again(live, recipe, cache):
    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    known = known_by(live, recipe.facts)
    (first,) = DirectionChoice(Scores(live), name, known, known, max_columns=1).choose().edits
    place = DirectionChoice(Scores(live), name, known, known, max_columns=1, acting=(first,)).choose()
    assert first.cell not in {edit.cell for edit in place.edits if isinstance(edit, ColumnEdit)}


@pytest.mark.slow
def test_more_columns_are_taken_where_few_harm(live, recipe, cache):
    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    known = [known_by(live, facts) for facts in (recipe.facts, recipe.controls)]
    settings = ChoiceSettings(2.0, columns=(8, 32), max_harm=math.inf, min_control=-9.0)
    assert n_columns(DirectionChoice(Scores(live), name, *known, settings=settings).choose()) == 8
    # One column is tried, misses the goal, and is asked about no controls, because more reach it.
    strict = dataclasses.replace(settings, goal=0.99, slack=0.0, columns=(1, 8), cheap=0.0)
    choice = DirectionChoice(Scores(live), name, *known, settings=strict)
    assert n_columns(choice.choose()) == 8 and [n_columns(trial) for trial in choice.judged] == [8]
    # Too much harm for any: all columns of the mildest.
    none = DirectionChoice(Scores(live), name, *known, settings=dataclasses.replace(settings, max_harm=0.0))
    assert {atom.size for atom in none.choose().atoms} == {live.shape.d_mlp}
    # Controls that nothing spares: everything was tried, and what harms text least of what forgets enough.
    choice = DirectionChoice(Scores(live), name, *known, settings=dataclasses.replace(settings, min_control=math.inf))
    found = choice.choose()
    judged = [trial for trial in choice.judged if trial.score <= max(found.score, 0.1)]
    assert {8, 32, live.shape.d_mlp} <= {n_columns(trial) for trial in choice.judged}
    assert found.change.harm == min(trial.change.harm for trial in judged)


def test_128_columns_are_taken_with_a_weaker_multiplier_where_all_of_it_would_harm(live, recipe, cache):
    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    known = known_by(live, recipe.facts)
    settings = ChoiceSettings(
        goal=2.0, columns=(8,), few=8, few_harm=2.0, max_harm=math.inf, min_control=-9.0, cheap=0.0
    )
    free = DirectionChoice(Scores(live), name, known, known, settings=settings).choose()
    limit = free.change.harm / 1.2
    bounded = dataclasses.replace(settings, max_harm=limit / settings.few_harm)
    found = DirectionChoice(Scores(live), name, known, known, settings=bounded).choose()
    assert n_columns(free) == n_columns(found) == 8
    assert free.multiplier < found.multiplier < 1.0 and 0.9 * limit < found.change.harm <= limit
    # Where that fails and no more columns are allowed, all of it is tried, too.
    failing = dataclasses.replace(bounded, min_control=math.inf)
    choice = DirectionChoice(Scores(live), name, known, known, settings=failing, max_columns=8)
    choice.choose()
    assert {found.multiplier, free.multiplier} <= {trial.multiplier for trial in choice.judged}


def test_beside_an_edit_that_acts_less_is_tried_also_on_all_columns(live, recipe, cache):
    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    known = known_by(live, recipe.facts)
    settings = ChoiceSettings(goal=2.0, columns=(), max_harm=math.inf, min_control=-9.0, cheap=0.0)
    alone = DirectionChoice(Scores(live), name, known, known, settings=settings).choose()

    def beside(settings, atoms=()):
        acting = {"beside": alone.change.times(0.0), "acting": alone.edits, "atoms": [*atoms]}
        return DirectionChoice(Scores(live), name, known, known, settings=settings, **acting).choose()

    free = beside(settings)
    assert (alone.multiplier, free.multiplier) == (0.25, 0.5) and n_columns(free) == live.shape.d_mlp
    # More than is allowed: less of it beside an edit, all of it where nothing acts.
    limit = free.change.harm / 2
    found = beside(dataclasses.replace(settings, max_harm=limit), free.atoms)
    assert 0.5 < found.multiplier < 1.0 and 0.0 < found.change.harm <= limit
    # Where others follow, it leaves as much as on few columns.
    sharing = beside(dataclasses.replace(settings, max_harm=limit, few_harm=0.25), free.atoms)
    assert found.multiplier < sharing.multiplier < 1.0 and sharing.change.harm <= limit / 4
    bounded = dataclasses.replace(settings, max_harm=alone.change.harm / 2)
    assert DirectionChoice(Scores(live), name, known, known, settings=bounded).choose().multiplier == 0.25


def test_two_atoms_of_a_layer_do_not_scale_one_cell_twice(live, cache):
    name = Name(live, "Japan", moments_of(live, (0, 1, 2), cache), lambda other: other == "Japan")
    atom = name.atoms(1)[0]
    twin = dataclasses.replace(atom, token=1)
    choice = DirectionChoice(Scores(live), name, (), (), settings=ChoiceSettings(columns=(1, 2, 8)), max_columns=8)
    both = Trial((atom, twin), 0.0, 0.0, change_by((atom, twin), 0.0))
    assert [sum(own.size for own in group) for group in choice.sizes(both)] == [8]
    choice.max_columns = 1
    (only,) = choice.sizes(both)
    assert [found.place for found in only] == [atom.place] and only[0].size == 1


@pytest.mark.slow
def test_a_layer_that_writes_nothing_is_no_hindrance(recipe):
    live = tiny_live("llama", seed=3)
    with torch.no_grad():
        live.model.model.layers[1].mlp.down_proj.weight.zero_()
    own = dataclasses.replace(recipe_of(live), scoring=Scoring(min_nats=0.0, max_rank=600))
    assert all(edit.layer != 1 for edit in extract(live, own).edits.edits)


@pytest.mark.slow
def test_layers_outside_the_model_and_names_all_reserved_are_errors(live, recipe, cache):
    with pytest.raises(InputError, match="layers 1-9 are out of range: tiny has layers 0–2"):
        extract(live, dataclasses.replace(recipe, localization=LocalizeOptions(layers=(1, 9))), cache=cache)
    everybody = contrast_entities()
    with pytest.raises(InputError, match="all other names count as the entity or as held out"):
        extract(live, dataclasses.replace(recipe, target=Target("Japan", everybody)), cache=cache)


@pytest.mark.slow
def test_a_caller_in_inference_mode_gets_the_same_edit(live, recipe, cache):
    with torch.inference_mode():
        assert extract(live, recipe) == extract(live, recipe, cache=cache)


@pytest.mark.slow
def test_a_cell_that_harms_controls_is_not_chosen(live, recipe):
    nothing_will_do = Accept(max_target=1.0, min_control=math.inf)
    assert extract(live, with_edit(recipe, method="single", accept=nothing_will_do)).edits.edits == ()


def test_an_empty_edit_is_no_handle(live, recipe, monkeypatch):
    monkeypatch.setattr("amnesia.choice.extraction.SETTINGS", LocalizationSettings(n_single=0))
    met_by_nothing = Accept(max_target=1.1, min_control=0.5)
    result = extract(live, with_edit(recipe, method="single", accept=met_by_nothing))
    assert (result.edits.edits, result.verdict) == ((), "none")


def test_facts_that_nobody_knows_are_an_error(live, recipe):
    with pytest.raises(InputError, match="knows none of the 3 target facts about 'Japan'"):
        extract(live, dataclasses.replace(recipe, scoring=Scoring(min_nats=50.0)))
