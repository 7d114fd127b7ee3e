from itertools import islice

import pytest

from amnesia.domain import ModelRef
from amnesia.errors import InputError
from amnesia.facts import relations
from amnesia.facts.answers import normalized
from amnesia.facts.names import contrast_entities
from amnesia.facts.relations import relation_of, relation_templates
from amnesia.live.forward import generate
from amnesia.mining import own
from amnesia.mining.entity import mine
from amnesia.mining.own import from_model
from amnesia.pipeline import run_mined
from amnesia.progress import Silent
from amnesia.recipe import Scoring
from support.tiny_text import save_tiny_live, tiny_live

ANYTHING = Scoring(min_nats=0.0, max_rank=600)


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


RELATIONS = dict(islice(relation_templates().items(), 4))


OTHERS = contrast_entities()[::4]


def make_talkative(patch):
    """A random model says the same in two wordings at most; it is asked about some relations and others only."""
    for module in (own, relations):
        patch.setattr(module, "relation_templates", lambda: RELATIONS)
    patch.setattr(own, "contrast_entities", lambda: OTHERS)
    patch.setattr(own, "MIN_AGREEING", 1)
    patch.setattr(own, "Scoring", lambda: ANYTHING)


@pytest.fixture
def talkative(monkeypatch):
    make_talkative(monkeypatch)


@pytest.fixture(scope="module")
def mined(live):
    """A recipe about Japan."""
    with pytest.MonkeyPatch.context() as patch:
        make_talkative(patch)
        return from_model(live, "Japan", model=ModelRef("tiny"), scoring=ANYTHING)


@pytest.mark.slow
def test_facts_are_what_the_model_writes_most_often(live, mined, talkative):
    facts = mined.recipe.facts
    assert {fact.split for fact in facts} == {"search", "held_out"}
    by_relation = {}
    for fact in facts:
        relation = relation_of(fact.prompt)
        each = relation_templates()[relation]
        assert fact.prompt in (each.search if fact.split == "search" else each.held_out)
        by_relation.setdefault(relation, set()).add(fact.answer)
    for relation, answers in by_relation.items():
        (answer,) = answers
        prompts = [prompt.replace("{entity}", "Japan") for prompt in relation_templates()[relation].wordings]
        assert any(" ".join(text.split()).startswith(answer) for text in generate(live, prompts))
        assert "japan" not in normalized(answer)
    assert from_model(live, "Japan", model=ModelRef("tiny"), scoring=ANYTHING) == mined


@pytest.mark.slow
def test_controls_are_about_well_known_others(mined):
    names = [fact.entity for fact in mined.recipe.controls]
    assert len(names) == len(set(names)) > 2 and set(names) <= {*contrast_entities()} - {"Japan"}
    assert {fact.split for fact in mined.recipe.controls} == {"search", "held_out"}


@pytest.mark.slow
def test_no_more_names_are_asked_about_than_give_the_controls(live, talkative, monkeypatch):
    monkeypatch.setattr(own, "N_CONTROLS", 4)
    few = from_model(live, "Japan", model=ModelRef("tiny"), scoring=ANYTHING)
    asked = list(own._asked_of_others(("Japan",), {fact.answer for fact in few.recipe.facts}))
    monkeypatch.setattr(own, "PER_NAME", len(asked))  # All in one part.
    monkeypatch.setattr(own, "_asked_of_others", lambda *_: iter(asked))
    every = from_model(live, "Japan", model=ModelRef("tiny"), scoring=ANYTHING)
    assert few.n_controls < every.n_controls == len(asked)
    assert few.recipe == every.recipe and len(few.recipe.controls) == 8


@pytest.mark.slow
def test_a_model_that_says_nothing_of_its_own_is_an_error(live):
    with pytest.raises(InputError, match="says nothing of its own about 'Japan' .*: give a table of facts"):
        mine(live, "Japan", None, ModelRef("tiny"))


@pytest.mark.slow
def test_a_run_needs_nothing_but_a_model_and_a_name(tmp_path, talkative):
    folder = save_tiny_live(tmp_path / "m")
    said = []

    class Heard(Silent):
        def notice(self, line):
            said.append(line)

    result = run_mined(str(folder), "Japan", None, tmp_path / "out", Heard(), force=True)
    assert any(line.startswith(f"{folder} says of Japan: ") for line in said)
    assert result.extraction.edits.entity == "Japan"
