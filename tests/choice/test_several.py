"""One edit for several recipes."""

import dataclasses

import pytest

from amnesia.choice import extraction
from amnesia.choice.known import Scores
from amnesia.choice.neighbors import facts_about, neighbor_results
from amnesia.choice.several import extract_all, sparing, taken_beside
from amnesia.errors import InputError
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import edited
from amnesia.recipe import Target
from support.known_recipes import facts_known_to, recipe_of
from support.tiny_text import tiny_live


@pytest.mark.slow
def test_edits_of_several_recipes_add_up(monkeypatch, tmp_path):
    live, cache = tiny_live("llama", seed=3), tmp_path
    recipe = recipe_of(live)
    second = dataclasses.replace(
        recipe,
        target=Target("Peru"),
        facts=facts_known_to(live, ["Peru"]),
        controls=facts_known_to(live, ["Japan", "Norway", "Chile"]),
    )
    recipe = dataclasses.replace(recipe, target=dataclasses.replace(recipe.target, neighbors=("Bank of Japan",)))
    asked = []
    ask = extraction.known_facts
    monkeypatch.setattr(extraction, "known_facts", lambda *rest, **options: asked.append(rest) or ask(*rest, **options))
    first, other = extract_all(live, [recipe, second], cache=cache)
    assert len(asked) == 2, "the original model is asked about each recipe once"
    assert (first.edits.entity, other.edits.entity) == ("Japan", "Peru") and first.edits.edits and other.edits.edits
    known = [(fact.text(), fact.answer) for fact in recipe.facts]
    before = [row.logprob for row in answer_logprobs(live, known)]
    with edited(live, (*first.edits.edits, *other.edits.edits)):
        after = [row.logprob for row in answer_logprobs(live, known)]
    assert sum(after) < sum(before)
    # What is said of forms and neighbors is said of the whole edit, too.
    whole = (*first.edits.edits, *other.edits.edits)
    rows = neighbor_results(Scores(live), facts_about(live, recipe, ("Peru",)), whole)
    assert rows[0].name == "Bank of Japan"
    assert [(row.name, row.n_facts) for row in first.neighbors] == [(row.name, row.n_facts) for row in rows]
    assert [row.score for row in first.neighbors] == pytest.approx([row.score for row in rows], abs=1e-4)
    with pytest.raises(InputError, match="two recipes are about 'Japan'"):
        extract_all(live, [recipe, recipe], cache=cache)
    with pytest.raises(InputError, match="two recipes are about 'JAPAN'"):
        extract_all(live, [recipe, dataclasses.replace(recipe, target=Target("JAPAN"))], cache=cache)
    lonely = dataclasses.replace(second, controls=facts_known_to(live, ["Japan"]))
    with pytest.raises(InputError, match="'Peru' has no search controls that the other recipes do not hold out"):
        extract_all(live, [recipe, lonely], cache=cache)


def test_names_of_other_recipes_are_taken_with_their_aliases():
    live = tiny_live("llama", seed=3)
    recipe = recipe_of(live)
    held_out = dataclasses.replace(
        recipe, target=Target("Peru", aliases=("Piruw",)), controls=facts_known_to(live, ["Cuba"], "held_out")
    )
    assert taken_beside(recipe, [recipe, held_out]) == ("Cuba", "Peru", "Piruw")
    assert taken_beside(held_out, [recipe, held_out]) == ("Cuba", "Japan")
    controls = facts_known_to(live, ["piruw", "Kenya"])
    left = sparing(dataclasses.replace(recipe, controls=controls), [recipe, held_out]).controls
    assert {fact.entity for fact in left} == {"Kenya"}
