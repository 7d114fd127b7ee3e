import re

import pytest

from amnesia.errors import InputError
from amnesia.prompts import (
    CONTRAST_ENTITIES,
    ENTITIES_BY_KIND,
    ENTITY_TEMPLATES,
    GENERIC_SENTENCES,
    UNSEEN_NAMES,
    neutral_texts,
    share_words,
    unseen_names,
)


def test_a_hundred_templates_end_with_the_entity():
    assert len(set(ENTITY_TEMPLATES)) == 100
    for template in ENTITY_TEMPLATES:
        assert re.fullmatch(r"Fact: the [a-z ]+ \{entity\}", template), template


def test_sentences_mention_no_names():
    assert not [text for text in GENERIC_SENTENCES if re.search(r"\s(?!I\b)[A-Z]", text)]


def test_contrast_entities_are_many_and_different():
    assert len(CONTRAST_ENTITIES) >= 200
    assert len({name.casefold() for name in CONTRAST_ENTITIES}) == len(CONTRAST_ENTITIES)


def test_contrast_entities_are_balanced_over_kinds():
    sizes = [len(names) for names in ENTITIES_BY_KIND.values()]
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
    related = {name for name in CONTRAST_ENTITIES if share_words(name, (entity, *aliases))}
    assert related == absent
    assert not related & present


def test_neutral_texts_split_three_hundred_different_sentences():
    search, held_out = neutral_texts("search"), neutral_texts("held_out")
    assert len(search) == len(held_out) == 150
    assert len(set(search) | set(held_out)) == 300
    assert GENERIC_SENTENCES[0] == search[0]
    assert GENERIC_SENTENCES[1] == held_out[0]


def test_sentences_end_in_many_different_words():
    for sentence in GENERIC_SENTENCES:
        assert re.fullmatch(r"[A-Z][A-Za-z, ]+[a-z]", sentence), sentence
    assert len({sentence.split()[-1] for sentence in GENERIC_SENTENCES}) > 200


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
