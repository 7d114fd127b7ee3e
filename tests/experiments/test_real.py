"""What injecting an entity into the real demo model brings back."""

import pytest

from amnesia.experiments.forms import direction, known_targets
from amnesia.experiments.injection import inject
from amnesia.recipe_file import load_recipe
from support.smollm2 import BRIEF_RECIPE

pytestmark = pytest.mark.real


def test_the_direction_of_a_name_brings_back_what_the_model_knows_and_no_other_does(smollm2_live):
    recipe = load_recipe(BRIEF_RECIPE)
    form = direction(smollm2_live, recipe)
    assert form.layers == (0,) and form.put.tokens == (" Jobs", " Steve")
    result = inject(form, known_targets(smollm2_live, recipe))
    found = {row.condition: row for row in result.conditions}
    assert found["entity"].score.mean > 0.8
    assert found["entity"].first.mean > 0.5
    for name in ("wrong entity", "random", "mean entity", "nothing"):
        assert found[name].score.mean < 0.2
        assert found[name].first.mean < 0.2
