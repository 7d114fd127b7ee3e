import re

import pytest

from amnesia.errors import InputError
from amnesia.facts.names import (
    contains,
    contrast_entities,
    entities_by_kind,
    entity_templates,
    generic_sentences,
    kind_of,
    neutral_texts,
    share_words,
    unseen_names,
    well_known,
    words_shared,
)
from amnesia.facts.relations import subject_types

UNSEEN_NAMES = ("Michael", "Sarah", "David", "John", "Itay")


def test_a_hundred_templates_end_with_the_entity():
    assert len(set(entity_templates())) == 100
    for template in entity_templates():
        assert re.fullmatch(r"Fact: the [a-z ]+ \{entity\}", template), template


def test_sentences_mention_no_names():
    assert not [text for text in generic_sentences() if re.search(r"\s(?!I\b)[A-Z]", text)]


def test_contrast_entities_are_many_and_different():
    assert len(contrast_entities()) >= 200
    assert len({name.casefold() for name in contrast_entities()}) == len(contrast_entities())


def test_contrast_entities_are_balanced_over_kinds():
    sizes = [len(names) for names in entities_by_kind().values()]
    assert len(sizes) >= 8
    assert max(sizes) <= 2 * min(sizes)


@pytest.mark.parametrize(
    ("entity", "aliases", "absent", "present"),
    [
        ("Japan", (), {"Japan"}, {"France"}),
        ("japan", (), {"Japan"}, {"France"}),
        ("Barack Obama", ("Obama",), {"Barack Obama"}, {"Donald Trump"}),
        ("FBI", ("Federal Bureau of Investigation",), {"the Federal Bureau of Investigation"}, {"Google"}),
        ("Rome", (), {"Rome"}, {"Romeo and Juliet"}),
        ("Juliet", (), {"Romeo and Juliet"}, {"Rome"}),
        ("the Great Wall of China", (), {"the Great Wall of China"}, {"India"}),
        ("Jordan", (), {"Michael Jordan"}, {"Michael Jackson", "Michael Phelps"}),
        ("Apple Inc.", (), {"Apple"}, {"Google"}),
        ("★", (), set(), {"Japan"}),
    ],
)
def test_contrast_leaves_out_the_entity_and_names_around_it(entity, aliases, absent, present):
    related = {name for name in contrast_entities() if share_words(name, (entity, *aliases))}
    assert related == absent
    assert not related & present


def test_neutral_texts_split_three_hundred_different_sentences():
    search, held_out = neutral_texts("search"), neutral_texts("held_out")
    assert len(search) == len(held_out) == 150
    assert len(set(search) | set(held_out)) == 300
    assert generic_sentences()[0] == search[0]
    assert generic_sentences()[1] == held_out[0]


def test_sentences_end_in_many_different_words():
    for sentence in generic_sentences():
        assert re.fullmatch(r"[A-Z][A-Za-z, ]+[a-z]", sentence), sentence
    assert len({sentence.split()[-1] for sentence in generic_sentences()}) > 200


@pytest.mark.parametrize(
    ("entity", "aliases", "expected"),
    [
        ("Japan", (), UNSEEN_NAMES),
        ("Michael Jordan", (), ("Sarah", "David", "John", "Itay")),
        ("The Beatles", ("JOHN Lennon",), ("Michael", "Sarah", "David", "Itay")),
        ("Johnny Cash", (), UNSEEN_NAMES),
        ("John David Michael", (), ("Sarah", "Itay", "Laura")),
        ("Laura", ("Michael", "Sarah", "David", "John", "Itay"), ("Peter", "Emma", "Daniel")),
    ],
)
def test_unseen_names_are_no_part_of_the_entity(entity, aliases, expected):
    assert unseen_names(entity, aliases) == expected


def test_unseen_names_that_run_out_are_an_error():
    with pytest.raises(InputError, match="give fewer aliases"):
        unseen_names("Ruth", (*UNSEEN_NAMES, "Laura", "Peter", "Emma"))


def test_well_known_names_have_kinds_that_relations_know():
    others = [name for name in well_known() if name not in contrast_entities()]
    assert len(others) > 1000 and all(" " in name or "-" in name for name in others)
    kinds = {*subject_types().values()}
    assert {kind_of(name) for name in others} <= kinds | {"fiction", "organization", "work"}
    assert [kind_of(name) for name in ("Real Madrid", "harry TRUMAN", "Star Trek", "Nobody Known")] == [
        "organization",
        "person",
        "work",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "others", "longer"),
    [
        ("Real Madrid", ["madrid"], True),
        ("Madrid", ["Madrid"], False),
        ("the Vatican", ["Vatican"], False),
        ("Madrid", ["Real Madrid"], False),
        ("Madridejos", ["Madrid"], False),
    ],
)
def test_a_longer_name_contains_a_shorter_one(name, others, longer):
    assert contains(name, others) is longer


def test_words_are_shared_by_their_places():
    assert words_shared("Harry Potter", "Prince Harry") == [0]
    assert words_shared("the Eiffel Tower", "the Tower of London") == [1]
    assert words_shared("Romeo and Juliet", "Antony and Cleopatra") == []
