"""Which names are neighbors of an entity, and what a model says of them."""

import dataclasses
from collections import Counter

import pytest

from amnesia.choice.neighbors import (
    MAX_ALIKE,
    MAX_NEIGHBORS,
    _is_full_name,
    asked_about,
    begins_alike,
    facts_about,
    names_in,
    neighbors_of,
)
from amnesia.domain import Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.names import well_known
from amnesia.facts.questions import Question
from amnesia.facts.relations import relation_templates
from amnesia.recipe import Target
from amnesia.recipe_file import parse_recipe
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live


def test_neighbors_share_a_word_and_are_not_reserved():
    target = Target("Michael Jordan", neighbors=("Jordan Peterson",))
    found = neighbors_of(target, ())
    assert found[0] == "Jordan Peterson" and "Michael Jackson" in found and "Michael Jordan" not in found
    assert "Michael Jackson" not in neighbors_of(target, ("Michael Jackson",))
    # What other recipes forget or hold out is no neighbor of this one, even where it is given as one.
    assert not {"Michael Jackson", "Jordan Peterson"} & {*neighbors_of(target, (), ("Michael Jackson", "Peterson"))}
    with pytest.raises(InputError, match="neighbor 'jordan peterson' is the entity's own name"):
        neighbors_of(dataclasses.replace(target, aliases=("Jordan Peterson",), neighbors=("jordan peterson",)), ())
    with pytest.raises(InputError, match="neighbor 'Jordan Peterson' has held-out facts among the controls"):
        neighbors_of(target, ("Jordan Peterson",))
    assert "London" not in found


@pytest.mark.parametrize(
    ("neighbor", "alike"),
    [("Miami Heat", True), ("miami beach", True), ("South Miami", False), ("Miamisburg", False), ("Miami-Dade", True)],
)
def test_a_neighbor_that_begins_with_the_name_cannot_be_told_apart(neighbor, alike):
    assert begins_alike(neighbor, ("Miami", "The Magic City")) is alike


@pytest.mark.parametrize(("n_names", "each"), [(0, 0), (1, 32), (2, 16), (8, 6)])
def test_not_much_is_asked_about_neighbors(n_names, each):
    names = [f"Nobody {letter}" for letter in "ABCDEFGH"[:n_names]]
    asked = asked_about(names)
    assert len(set(asked)) == len(asked) == n_names * each
    assert dict.fromkeys(names, each) == Counter(name for name, _ in asked)


def test_well_known_names_are_found_by_a_word():
    assert {"Real Madrid", "Atletico Madrid"} <= {*neighbors_of(Target("Madrid"), ())}
    # By turns for each word of the name, and by a word of an alias.
    harry = neighbors_of(Target("Harry Potter"), ())
    assert harry[:2] == ("Prince Harry", "Beatrix Potter") and "Harry Truman" in harry
    assert "James Bond" in neighbors_of(Target("Bond", aliases=("James",)), ())
    assert neighbors_of(Target("Zxqv"), ()) == ()
    # What is held out is none, nor what overlaps with it.
    assert "Real Madrid" not in neighbors_of(Target("Madrid"), ("Real Madrid",))
    assert "Prince Harry" not in neighbors_of(Target("Harry Potter"), ("Prince",))


@pytest.mark.parametrize(
    ("entity", "aliases", "own"),
    [
        ("Barack Obama", ("Obama",), "Barack Obama"),
        ("Obama", ("Barack Obama",), "Barack Obama"),
        ("Harry S. Truman", (), "Harry Truman"),
        ("René Descartes", (), "Rene Descartes"),
        ("St. Petersburg", (), "Saint Petersburg"),
        ("University of Oxford", (), "Oxford University"),
        ("Fyodor Dostoyevsky", (), "Fyodor Dostoevsky"),
        ("A.C. Milan", (), "AC Milan"),
    ],
)
def test_nobody_is_a_neighbor_by_another_spelling_of_the_own_name(entity, aliases, own):
    assert own in well_known() and own not in neighbors_of(Target(entity, aliases), ())
    assert own in neighbors_of(Target(own.split()[-1]), ()) or own in neighbors_of(Target(own.split()[0]), ())


def test_names_count_once_and_those_of_others_make_room():
    assert neighbors_of(Target("Madrid", neighbors=("real madrid",)), ()) == ("real madrid", "Atletico Madrid")
    assert neighbors_of(Target("Miami"), (), ("Miami Beach", "Miami Heat")) == ("Miami Dolphins",)
    # Words of two letters do not count.
    assert neighbors_of(Target("Un Zxqv"), ()) == ()


def test_names_that_no_edit_can_spare_come_last_and_are_few():
    found = neighbors_of(Target("Miami"), ())
    assert found == ("Miami Beach", "Miami Heat") and len(found) == MAX_ALIKE
    assert len([name for name in well_known() if begins_alike(name, ["Miami"])]) > MAX_ALIKE
    many = neighbors_of(Target("George Orwell"), ())
    assert len(many) == MAX_NEIGHBORS and not any(begins_alike(name, ["George Orwell"]) for name in many)
    # The recipe's own come first, and are never too many of a kind.
    given = ("Miami Vice", "Miami Marlins", "Miami University")
    assert neighbors_of(Target("Miami", neighbors=given), ())[:3] == given


@pytest.mark.parametrize(
    ("name", "entity", "kind", "is_full"),
    [
        ("Albert Einstein", "Einstein", "person", True),
        ("Albert Einstein", "Einstein", None, True),
        ("Albert Einstein", "Einstein", "place", False),
        ("Harrison Ford", "Ford", None, False),  # Henry Ford's name ends so, too.
        ("Real Madrid", "Madrid", None, False),  # No person.
        ("Albert Camus", "Albert", None, False),  # A first name of several.
        ("Napoleon Bonaparte", "Napoleon", None, True),
    ],
)
def test_the_only_person_of_a_name_may_be_meant_by_it(name, entity, kind, is_full):
    assert _is_full_name(name, Target(entity), kind) is is_full


def about(live, entity, *neighbors):
    recipe = parse_recipe(recipe_text(live, "tiny", entity=entity))
    return dataclasses.replace(recipe, target=dataclasses.replace(recipe.target, neighbors=neighbors))


def test_a_longer_name_of_which_the_model_says_the_same_is_no_neighbor(monkeypatch):
    live = tiny_live("llama", seed=3)
    recipe = about(live, "Japan")
    (longer,) = {"Bank of Japan"} & {*neighbors_of(recipe.target, ())}
    facts = facts_about(live, recipe, ())
    assert longer in names_in(facts)
    answers = {
        fact.question.fact.prompt.replace("{entity}", "Japan"): fact.question.fact.answer
        for fact in facts
        if fact.question.fact.entity == longer
    }
    monkeypatch.setattr("amnesia.choice.neighbors.own_facts", lambda *_: facts)
    monkeypatch.setattr("amnesia.choice.neighbors.answer_in", lambda text: text)
    for share, stays in ((0.0, True), (0.3, True), (0.5, False), (1.0, False)):
        n_same = round(share * len(answers))
        said = {text: answer if place < n_same else "x" for place, (text, answer) in enumerate(answers.items())}
        monkeypatch.setattr("amnesia.choice.neighbors.write", lambda *_, said=said: said)
        assert (longer in names_in(facts_about(live, recipe, ()))) is stays
        # Unless the recipe says that it is one.
        assert longer in names_in(facts_about(live, about(live, "Japan", longer), ()))


def test_a_full_name_is_no_neighbor_whatever_the_model_says_of_it(monkeypatch):
    live = tiny_live("llama", seed=3)
    recipe = about(live, "Einstein")

    def stated(_, asked, *__):
        return tuple(
            KnownFact(Question("target", Fact(name, prompt, "a")), None, None, recipe.scoring) for name, prompt in asked
        )

    monkeypatch.setattr("amnesia.choice.neighbors.own_facts", stated)
    monkeypatch.setattr("amnesia.choice.neighbors._is_same", lambda *_: False)
    # What the facts of a recipe are about counts before what is well-known.
    places = tuple(Fact("Einstein", prompt, "x") for prompt in relation_templates()["capital"].wordings[:2])
    for facts, stays in ((recipe.facts, False), (places, True)):
        found = names_in(facts_about(live, dataclasses.replace(recipe, facts=facts), ()))
        assert ("Albert Einstein" in found) is stays
        given = dataclasses.replace(recipe, facts=facts, target=Target("Einstein", neighbors=("Albert Einstein",)))
        assert "Albert Einstein" in names_in(facts_about(live, given, ()))


@pytest.mark.real
@pytest.mark.parametrize(
    ("entity", "found", "same"),
    [("Madrid", "Real Madrid", False), ("Obama", "Barack Obama", True), ("Ireland", "Northern Ireland", False)],
)
def test_a_real_model_tells_longer_names_from_other_ones(smollm2_live, tmp_path, entity, found, same):
    recipe = parse_recipe(recipe_text(tiny_live(), "tiny", entity="Japan"))
    scoring = dataclasses.replace(recipe.scoring, min_nats=1.0, max_rank=10)
    recipe = dataclasses.replace(
        recipe, target=Target(entity), scoring=scoring, facts=(Fact(entity, "{entity} is", "big"),)
    )
    cache = MeasurementCache(tmp_path / "measured", "smollm2")
    assert found in neighbors_of(recipe.target, ())
    assert (found in names_in(facts_about(smollm2_live, recipe, (), None, cache))) is not same
