"""What injecting an entity into the real demo model brings back, and what turning its direction takes away."""

from dataclasses import replace

import pytest

from amnesia.edits import weakened
from amnesia.experiments.atlas import AtlasSettings, bystanders, direction_of
from amnesia.experiments.forms import direction, known_targets
from amnesia.experiments.injection import inject
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import edited
from amnesia.recipe_file import load_recipe
from support.smollm2 import BRIEF_RECIPE

pytestmark = pytest.mark.real


@pytest.mark.exhaustive
def test_the_direction_of_a_name_brings_back_what_the_model_knows_and_no_other_does(smollm2_live):
    whole = load_recipe(BRIEF_RECIPE)
    recipe = replace(whole, facts=whole.facts[:3], controls=whole.controls[:3])
    form = direction(smollm2_live, recipe)
    assert form.layers == (0,) and form.put.tokens == (" Jobs", " Steve")
    result = inject(form, known_targets(smollm2_live, recipe))
    found = {row.condition: row for row in result.conditions}
    assert found["entity"].score.mean > 0.8
    assert found["entity"].first.mean > 0.5
    for name in ("wrong entity", "random", "mean entity", "nothing"):
        assert found[name].score.mean < 0.2
        assert found[name].first.mean < 0.2


def test_the_direction_of_a_name_found_without_facts_takes_them_away_and_spares_others(smollm2_live):
    edit, _ = direction_of(smollm2_live, "Japan", bystanders(smollm2_live, AtlasSettings("smollm2-135m")))
    asked = [
        ("The capital of Japan is", "Tokyo"),
        ("The capital of France is", "Paris"),
        ("The capital of Peru is", "Lima"),
    ]
    before = [answer.logprob for answer in answer_logprobs(smollm2_live, asked)]
    with edited(smollm2_live, [weakened(edit, 2.0)]):  # Negated.
        after = [answer.logprob for answer in answer_logprobs(smollm2_live, asked)]
    own, *others = [new - old for new, old in zip(after, before, strict=True)]
    assert own < -3 and max(map(abs, others)) < 0.3
