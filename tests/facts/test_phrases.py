import pytest

from amnesia.domain import Fact
from amnesia.facts.phrases import LANGUAGES, relation_stated, relations, translated
from amnesia.facts.relations import relation_of, relation_templates


def stated(prompt, answer="Ada"):
    relation = relation_stated(Fact("X", prompt, answer))
    return relation and relation.name


@pytest.mark.parametrize(
    ("prompt", "answer", "name"),
    [
        ("The capital city of {entity} is", "Paris", "capital"),
        ("Question: What is the capital of {entity}?\nAnswer:", "Paris", "capital"),
        ("The government of {entity} has its seat in", "Paris", "capital"),
        ("Fact: {entity} is the capital of", "France", "capital of"),
        ("Question: What is {entity} the capital of?\nAnswer:", "France", "capital of"),
        ("{entity} is the seat of government of", "France", "capital of"),
        ("Children in {entity} learn to read and write in", "French", "official language"),
        ("Fact: {entity} was a famous", "basketball", "sport"),
        ("Fact: the company {entity} was founded in", "Japan", None),
        ("Newspapers in {entity} are printed in", "Klingon", None),
        ("Fact: {entity} is a famous", "basketball", "sport"),
        ("Fact: {entity} is a famous", "physicist", None),
        ("Fact: {entity} was born in", "1879", None),
        ("Fact: {entity} was born in", "Ulm", "place of birth"),
        ("Fact: {entity} was written by", "J.K. Rowling", "author"),
        ("The national holiday of {entity} is", "Bastille", None),
    ],
)
def test_relations_are_recognized(prompt, answer, name):
    assert stated(prompt, answer) == name


ANSWERS = {"official language": "French", "continent": "Asia", "sport": "tennis"}
NAMES = {relation.name for relation in relations()}


@pytest.mark.parametrize("name", relation_templates())
def test_known_wordings_are_of_their_relation_or_of_none(name):
    for prompt in relation_templates()[name].wordings:
        # A wording that two relations share is of one of them.
        own = relation_of(prompt)
        assert stated(prompt, ANSWERS.get(own, "Ada")) == (own if own in NAMES else None)


def test_a_sport_is_known_by_its_name():
    assert stated(relation_templates()["sport"].cloze[0], "tennis") == "sport"
    assert stated(relation_templates()["sport"].cloze[0], "quidditch") is None


@pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)
def test_wordings_have_one_place_to_fill(relation):
    for text in filter(None, (relation.reverse, relation.described)):
        assert text.count("{answer}") == 1 and "{entity}" not in text
    assert relation.foreign.keys() in (set(), set(LANGUAGES))
    assert all(text.count("{entity}") == 1 and text == text.strip() for text in relation.foreign.values())


@pytest.mark.parametrize(
    ("answer", "language", "expected"),
    [
        ("French", "de", "Französisch"),
        ("Paris", "es", "París"),
        ("basketball", "fr", "basket-ball"),
        ("Chicago Bulls", "de", "Chicago Bulls"),
        ("1789", "fr", "1789"),
        ("iPhone", "es", "iPhone"),
        ("light bulb", "de", None),
    ],
)
def test_answers_in_other_languages(answer, language, expected):
    assert translated(answer, language) == expected
