"""Which questions are asked, and how close controls are to the target."""

import json
from collections import Counter

import pytest

from amnesia.domain import NEIGHBORHOODS, Fact
from amnesia.errors import InputError
from amnesia.facts.questions import facts_of_popqa, neighborhood, questions_of
from amnesia.recipe_file import parse_recipe
from oracles.upstream_popqa import COLUMNS, RELATIONS
from support.folders import DATA

TARGETS = (
    Fact("Michael Jordan", "Fact: the sport of {entity} is", "basketball"),
    Fact("Michael Jordan", "He loved {entity} because he was born in", "Brooklyn"),
)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (Fact("Michael Phelps", "Fact: the sport of {entity} is", "swimming"), "shared_name"),
        (Fact("Jordan", "Fact: the capital of {entity} is", "Amman"), "shared_name"),
        (Fact("LeBron James", "{entity} plays the sport of", "Basketball"), "related"),
        (Fact("Brooklyn", "Fact: the country of {entity} is", "the United States"), "related"),
        (Fact("Space Jam", "The star of {entity} is", "Michael Jordan"), "related"),
        (Fact("Serena Williams", "Fans know {entity} from the sport of", "tennis"), "same_relation"),
        (Fact("Someone", "He loved {entity} because he was born in", "Rome"), "same_relation"),
        (Fact("Ludwig van Beethoven", "{entity} wrote music in", "Vienna"), "same_type"),
        (Fact("Elise Meier", "Fact: the occupation of {entity} is", "painter"), "same_type"),
        (Fact("Japan", "People in {entity} eat", "rice"), "unrelated"),
        (Fact("Qwxyz", "People in {entity} eat", "rice"), None),
    ],
)
def test_neighborhoods(control, expected):
    from amnesia.facts.questions import _types_by_name

    assert neighborhood(control, TARGETS, ("Michael Jordan",), _types_by_name) == expected


def write(path, rows):
    values = {"id": "1", "o_pop": "5", "question": "?"}
    lines = ["\t".join(COLUMNS)]
    for subject, relation, answer, popularity in rows:
        row = values | {"subj": subject, "prop": relation, "obj": answer, "s_pop": str(popularity)}
        row["possible_answers"] = json.dumps([answer, f"{answer} City"]).replace('"', '""')
        row["possible_answers"] = f'"{row["possible_answers"]}"'
        lines.append("\t".join(row[name] for name in COLUMNS))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = [
    ("Japan", "capital", "Tokyo", 400),
    ("Japan", "color", "red", 400),
    ("Peru", "capital", "Lima", 300),
    ("Kenya", "capital", "Nairobi", 200),
    ("Tokyo", "country", "Japan", 100),
    ("Old Japan", "capital", "Kyoto", 50),
    ("Bach", "occupation", "composer", 10),
]


def test_facts_from_popqa(tmp_path):
    facts = facts_of_popqa(write(tmp_path / "p.tsv", ROWS), ["japan"], 100)
    assert (facts.entity, facts.note) == ("Japan", None)
    targets = [row for row in facts.questions if row.role == "target"]
    assert Counter(row.relation for row in targets) == {"capital": 9, "color": 9}
    assert Counter(row.split for row in targets) == {"search": 10, "held_out": 8}
    assert {row.fact.answer_aliases for row in targets if row.relation == "capital"} == {("Tokyo City",)}
    assert {row.popularity for row in targets} == {"quarter 4 (above 350)"}
    near = {row.fact.entity: row.neighborhood for row in facts.questions if row.role == "control"}
    assert near == {
        "Old Japan": "shared_name", "Tokyo": "related", "Peru": "same_relation", "Kenya": "same_relation",
        "Bach": "unrelated",
    }  # fmt: skip


def test_several_entities_and_few_controls(tmp_path):
    facts = facts_of_popqa(write(tmp_path / "p.tsv", ROWS), ["Japan", "Peru"], 2)
    assert facts.entity == "Japan, Peru"
    assert {row.fact.entity for row in facts.questions if row.role == "target"} == {"Japan", "Peru"}
    assert len([row for row in facts.questions if row.role == "control"]) == 2


def test_two_spellings_of_a_name_are_one_entity(tmp_path):
    path = write(tmp_path / "p.tsv", ROWS)
    assert facts_of_popqa(path, ["Japan", "Peru", "japan"], 2) == facts_of_popqa(path, ["Japan", "Peru"], 2)


def test_tables_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "p.tsv", ROWS)
    with pytest.raises(InputError, match="no row about 'Atlantis'"):
        facts_of_popqa(path, ["Atlantis"], 10)
    with pytest.raises(InputError, match="no other subjects than 'Japan'"):
        facts_of_popqa(write(tmp_path / "one.tsv", ROWS[:2]), ["Japan"], 10)
    with pytest.raises(InputError, match="has a relation with wordings"):
        facts_of_popqa(write(tmp_path / "odd.tsv", [("Japan", "anthem", "x", 1), *ROWS[2:]]), ["Japan"], 10)


@pytest.mark.slow
def test_a_thousand_rows_of_popqa_in_every_neighborhood():
    facts = facts_of_popqa(DATA / "popqa_sample.tsv", ["Canada"], 1000)
    controls = [row for row in facts.questions if row.role == "control"]
    assert len(controls) == 1000
    assert len({row.fact.entity.casefold() for row in controls}) == 1000
    assert {row.relation for row in controls} == RELATIONS
    # Nobody else in the sample is called Canada.
    assert {row.neighborhood for row in controls} == set(NEIGHBORHOODS) - {"shared_name"}
    assert len({row.popularity for row in controls}) == 4
    for near in ("same_relation", "unrelated"):
        splits = Counter(row.split for row in controls if row.neighborhood == near)
        assert abs(splits["search"] - splits["held_out"]) <= 1


def test_recipes_say_how_close_a_control_is():
    recipe = parse_recipe(
        """
        model.id = "m"
        entity = { name = "Japan" }
        facts = [{ prompt = "the capital of {entity} is", answer = "Tokyo", answer_aliases = ["Edo"] }]
        controls.facts = [
            { entity = "Italy", prompt = "the capital of {entity} is", answer = "Rome" },
            { entity = "Spain", prompt = "the capital of {entity} is", answer = "Madrid", neighborhood = "unrelated" },
        ]
        """
    )
    found = questions_of(recipe)
    assert found[0].fact.answer_aliases == ("Edo",)
    assert [row.neighborhood for row in found] == [None, "same_relation", "unrelated"]
    with pytest.raises(InputError, match="neighborhood = 'near': expected one of shared_name, related"):
        parse_recipe(recipe.text.replace('"unrelated"', '"near"'))


def test_recipes_keep_their_splits():
    recipe = parse_recipe(
        """
        model.id = "m"
        entity = { name = "Japan", aliases = ["Nippon"] }
        facts = [
            { prompt = "the capital of {entity} is", answer = "Tokyo" },
            { prompt = "people in {entity} speak", answer = "Japanese", split = "held_out" },
        ]
        controls.facts = [
            { entity = "Italy", prompt = "the capital of {entity} is", answer = "Rome" },
            { entity = "Spain", prompt = "the capital of {entity} is", answer = "Madrid", split = "held_out" },
        ]
        """
    )
    assert [(row.role, row.split, row.fact.entity, row.aliases) for row in questions_of(recipe)] == [
        ("target", "search", "Japan", ("Nippon",)),
        ("target", "held_out", "Japan", ("Nippon",)),
        ("control", "search", "Italy", ()),
        ("control", "held_out", "Spain", ()),
    ]
