"""Recipes made from a table of facts: only what the model knows, in splits that share nothing."""

import pytest

from amnesia.domain import Fact, ModelRef
from amnesia.errors import InputError
from amnesia.facts.names import unseen_names
from amnesia.facts.popqa import PopqaRow
from amnesia.facts.relations import relation_templates
from amnesia.live import loading
from amnesia.live.forward import answer_logprobs
from amnesia.mining.recipe_text import recipe_text
from amnesia.mining.table import from_table
from amnesia.pipeline import run, run_mined
from amnesia.recipe import Accept, EditOptions, LocalizeOptions, Recipe, Scoring, Target
from amnesia.recipe_file import parse_recipe
from support.tiny_recipe import WORDS, gains
from support.tiny_text import save_tiny_live, tiny_live

SCORING = Scoring(min_nats=0.05, max_rank=400)
COUNTRIES = "Peru Kenya Cuba Norway Poland Egypt Brazil Canada Mexico India Turkey Vietnam".split()


@pytest.fixture(scope="module")
def live():
    return tiny_live()


def row(subject, answer, relation="capital", popularity=5):
    return PopqaRow(subject, relation, answer, (), popularity, "?")


def knows(live, entity, wording, answer):
    """Whether a fact counts as known, one prompt at a time."""
    own, *others = (
        answer_logprobs(live, [(wording.replace("{entity}", name), answer)])[0]
        for name in (entity, *unseen_names(entity))
    )
    gain = own.logprob - sum(other.logprob for other in others) / len(others)
    return gain >= SCORING.min_nats and own.rank <= SCORING.max_rank


@pytest.fixture(scope="module")
def answer(live):
    """A word that the model knows in some wordings of both kinds, but not in all."""
    templates = relation_templates()["capital"]
    for word in WORDS:
        cloze = [knows(live, "Japan", wording, word) for wording in templates.search]
        asked = [knows(live, "Japan", wording, word) for wording in templates.held_out]
        if any(cloze) and any(asked) and not all(cloze + asked):
            return word
    raise AssertionError("choose other words")


@pytest.fixture(scope="module")
def rows(answer):
    return [
        row("Japan", answer, popularity=100),
        *(row(name, WORDS[index], popularity=90 - index) for index, name in enumerate(COUNTRIES)),
        *(
            row(f"{name} {other}", word, "religion", 50 - index)
            for index, (name, other) in enumerate(zip(COUNTRIES, reversed(COUNTRIES), strict=True))
            for word in [WORDS[-1 - index]]
        ),
        *(row(f"New {name}", WORDS[index], "capital of", 30 - index) for index, name in enumerate(COUNTRIES)),
        row("Japan Airlines", WORDS[0], popularity=95),
        row("Tokyo", "Japan", "capital of", popularity=99),
        row("Titanic", WORDS[3], "weight", popularity=99),
    ]


@pytest.mark.slow
def test_only_what_the_model_knows_is_kept(live, rows, answer):
    mined = from_table(live, rows, "japan", model=ModelRef("tiny"), scoring=SCORING)
    recipe = mined.recipe
    templates = relation_templates()["capital"]
    wanted = {
        (wording, split)
        for wordings, split in ((templates.search, "search"), (templates.held_out, "held_out"))
        for wording in wordings
        if knows(live, "Japan", wording, answer)
    }
    assert {(fact.prompt, fact.split) for fact in recipe.facts} == wanted
    assert recipe.target.entity == "Japan" and {fact.answer for fact in recipe.facts} == {answer}
    assert mined.n_targets == len(templates.search) + len(templates.held_out)
    assert recipe.controls and all(knows(live, fact.entity, fact.prompt, fact.answer) for fact in recipe.controls)
    assert (recipe.edit.multiplier, recipe.scoring) == (None, SCORING)
    assert from_table(live, rows, "Japan", model=ModelRef("tiny"), scoring=SCORING) == mined


def test_controls_are_about_others_once_each(live, rows):
    mined = from_table(live, rows, "Japan", model=ModelRef("tiny"), scoring=SCORING)
    controls = mined.recipe.controls
    names = [fact.entity for fact in controls]
    assert len(set(names)) == len(names)
    assert not {"Japan", "Tokyo", "Titanic"} & set(names)
    assert {fact.split for fact in controls if fact.entity != "Japan Airlines"} == {"search", "held_out"}
    assert mined.n_controls >= 13


def test_a_name_that_shares_a_word_is_held_out(live, answer):
    word = next(
        word for word in WORDS if knows(live, "Japan Airlines", relation_templates()["capital"].search[0], word)
    )
    rows = [row("Japan Airlines", word, popularity=99), row("Japan", answer, popularity=100)]
    others = [row(name, word) for name in COUNTRIES for word in WORDS[:1]]
    controls = from_table(live, [*rows, *others], "Japan", model=ModelRef("tiny"), scoring=SCORING).recipe.controls
    assert [fact.split for fact in controls if fact.entity == "Japan Airlines"] == ["held_out"]


@pytest.mark.slow
def test_without_known_questions_every_third_wording_is_held_out(live):
    templates = relation_templates()["capital"]
    cloze, asked = (
        [gains(live, "Japan", wording) for wording in each] for each in (templates.search, templates.held_out)
    )
    word = next(
        word
        for n, word in enumerate(WORDS)
        if not any(found[n] >= SCORING.min_nats for found in asked)
        and sum(found[n] >= SCORING.min_nats for found in cloze) >= 2
        and sum(knows(live, "Japan", wording, word) for wording in templates.search) >= 2
    )
    rows = [row("Japan", word), *(row(name, WORDS[index]) for index, name in enumerate(COUNTRIES))]
    facts = from_table(live, rows, "Japan", model=ModelRef("tiny"), scoring=SCORING).recipe.facts
    assert [fact.split for fact in facts] == (["search", "held_out"], ["search", "search", "held_out"])[len(facts) - 2]


def test_what_cannot_be_mined(live, rows, answer):
    with pytest.raises(InputError, match="the table has no row about 'Atlantis', but about"):
        from_table(live, rows, "Atlantis", model=ModelRef("tiny"))
    with pytest.raises(InputError, match="no row about 'Titanic' has a relation with wordings"):
        from_table(live, rows, "Titanic", model=ModelRef("tiny"))
    with pytest.raises(InputError, match="knows 0 of 9 wordings of facts about 'Japan'"):
        from_table(live, rows, "Japan", model=ModelRef("tiny"), scoring=Scoring(min_nats=1e3))
    with pytest.raises(InputError, match="answers none of 0 facts about others"):
        from_table(live, [row("Japan", answer)], "Japan", model=ModelRef("tiny"), scoring=SCORING)


@pytest.mark.slow
def test_a_run_with_the_recipe_of_a_table_loads_the_model_once(tmp_path, rows, monkeypatch):
    model = save_tiny_live(tmp_path / "m")
    lines = [
        "subject\trelation\tobject\tpopularity",
        *(f"{r.subject}\t{r.relation}\t{r.answer}\t{r.popularity}" for r in rows),
    ]
    (tmp_path / "facts.tsv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr("amnesia.mining.table.Scoring", lambda: SCORING)
    tables = []
    monkeypatch.setattr(
        "amnesia.mining.table.recipe_text", lambda *parts: tables.append(recipe_text(*parts)) or tables[-1]
    )
    loads, real = [], loading.load
    monkeypatch.setattr(loading, "load", lambda folder, *rest: loads.append(folder.name) or real(folder, *rest))
    found = run_mined(str(model), "Japan", tmp_path / "facts.tsv", tmp_path / "out")
    # The base once beneath the saved adapter, which is asked before it is merged to be compared.
    assert loads == ["m", "safetensors", "m"]
    again = run(parse_recipe(tables[0]), tmp_path / "again")
    assert found.output and found.extraction == again.extraction and found.reports == again.reports
    assert loads[3:] == loads[:3]


def test_the_text_of_a_recipe_says_what_it_was_made_from():
    facts = (
        Fact("X", 'Q: "{entity}"?\n\tA: \\', 'an "answer"\x7f', answer_aliases=("b", 'c "d"')),
        Fact("X", "{entity} é", "日本", "held_out"),
    )
    controls = (
        Fact("Y", "{entity} is\nnamed", "e", answer_aliases=("z\n1", 'q"'), neighborhood="same_type"),
        Fact('Z "z"', "{entity} was", "b", "held_out"),
    )
    text = recipe_text(ModelRef("org/m", "main"), "X", ['a"b'], facts, controls, Scoring(0.5, 3))
    edit = EditOptions(formats=("safetensors", "adapter"))
    assert parse_recipe(text) == Recipe(
        ModelRef("org/m", "main"),
        Target("X", ('a"b',)),
        facts,
        controls,
        LocalizeOptions(),
        edit,
        Scoring(0.5, 3),
        Accept(),
        text,
    )
    # Every control in one line, for people to read.
    lines = [line for line in text.splitlines() if line.startswith("  { entity = ")]
    assert len(lines) == len(controls) and all(line.endswith(" },") for line in lines)
    assert "revision" not in recipe_text(ModelRef("m"), "X", (), facts, controls, Scoring())
