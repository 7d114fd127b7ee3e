"""The questions of general ability are what they are said to be."""

import re

import pytest

from amnesia.facts.ability import N_OPTIONS, ability_questions
from amnesia.facts.names import contrast_entities, unseen_names
from amnesia.facts.neutral import neutral_text


def test_there_are_hundreds_of_several_fields_with_four_different_options():
    questions = ability_questions()
    assert len(questions) >= 200 and len({row.field for row in questions}) >= 6
    assert len({row.prompt for row in questions}) == len(questions)
    assert {len({*row.options}) for row in questions} == {N_OPTIONS}
    assert not [row for row in questions if row.options[0].casefold() in row.prompt.casefold().split()]


def test_they_name_nobody():
    words = {
        word for row in ability_questions() for text in (row.prompt, *row.options) for word in re.findall(r"\w+", text)
    }
    names = {name for name in (*contrast_entities(), *unseen_names("Japan")) if name.istitle() and " " not in name}
    assert not words & names


def test_neutral_text_answers_none_of_them():
    whole = " ".join(" ".join(passage.split()) for text in neutral_text() for passage in text.passages)
    assert not [row.prompt for row in ability_questions() if f"{row.prompt} {row.options[0]}" in whole]


@pytest.mark.exhaustive
@pytest.mark.real
def test_the_demo_model_answers_many_of_every_field_and_not_all(smollm2_live):
    from amnesia.evaluation.ability import ability, right_choices

    found = ability(right_choices(smollm2_live), None)
    assert 0.6 < found.before.low < found.before.high < 0.95
    assert all(row.right_before > 2 * found.chance * row.n for row in found.fields)
