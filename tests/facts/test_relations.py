"""Wordings of relations: complete prompts, all different, and split so that none is in both parts."""

import pytest

from amnesia.facts.relations import kind_asked, relation_of, relation_templates, relations_of, subject_types
from oracles.upstream_popqa import RELATIONS


def test_every_relation_of_popqa_has_wordings():
    assert set(relation_templates()) >= RELATIONS
    assert set(subject_types()) < set(relation_templates())


def test_wordings_end_where_the_answer_begins():
    prompts = [prompt for each in relation_templates().values() for prompt in each.wordings]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert "{entity}" in prompt
        assert prompt == prompt.strip()
        assert prompt[-1] not in ".?"


@pytest.mark.parametrize("relation", relation_templates())
def test_held_out_wordings_are_others(relation):
    each = relation_templates()[relation]
    assert each.wordings == each.search + each.held_out
    assert not set(each.search) & set(each.held_out)
    assert len(each.search) >= 5
    # The search sees one question, whose answer is begun; the other question and the bare form are held out.
    assert sum(prompt.startswith("Question:") for prompt in each.search) == 1
    assert not any(asked in prompt for prompt in each.search for asked in each.asked[1:])
    assert sum("?" in prompt for prompt in each.held_out) == 2


def test_a_wording_tells_its_relation():
    assert relation_of("Fact: the capital of {entity} is") == "capital"
    assert relation_of("something else about {entity}") is None


def test_relations_of_a_kind_are_its_own_and_those_of_all():
    people = relations_of("person")
    assert "occupation" in people and "capital" not in people and "country" in people
    assert relations_of(None) == relation_templates()
    assert set(relations_of("thing")) == set(relation_templates()) - set(subject_types())


def test_prompts_tell_the_kind_of_their_subject():
    prompts = {kind: [] for kind in subject_types().values()}
    for name, kind in subject_types().items():
        prompts[kind] += relation_templates()[name].wordings
    kinds = sorted(prompts)
    for kind in kinds:
        other = next(row for row in kinds if row != kind)
        assert kind_asked(["{entity} is something", *prompts[other][:2], *prompts[kind][:3]]) == kind
    assert kind_asked(["{entity} is something"]) is None
