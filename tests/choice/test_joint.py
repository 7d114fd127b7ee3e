"""Several entities in one edit, on a tiny model: added up, or with read-outs that leave each other's keys alone."""

import dataclasses

import numpy as np
import pytest

from amnesia.choice.extraction import extract
from amnesia.choice.joint import Part, combined, join, solved
from amnesia.choice.known import mean_score, select_known
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import moments_of
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits, directions_of
from amnesia.evaluation.measurement import known_facts
from amnesia.facts.questions import questions_of
from amnesia.live.model import edited
from amnesia.recipe_file import parse_recipe
from support.tiny_recipe import recipe_text
from support.tiny_text import tiny_live

pytestmark = pytest.mark.slow

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def live():
    return tiny_live("llama", seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("moments")


def part_of(live, entity, cache, **options):
    accept = "max_target = 0.5\nmin_control = 0.5"
    text = recipe_text(live, "tiny", entity=entity, edit="", accept=accept)
    recipe = parse_recipe(text.replace("n_prompts = 6", 'n_prompts = 6\nlayers = "0-2"'))
    recipe = dataclasses.replace(recipe, edit=dataclasses.replace(recipe.edit, forms=False, **options))
    known = select_known(known_facts(live, questions_of(recipe), recipe.scoring, unlikely=True))
    return Part(recipe, extract(live, recipe, cache=cache).edits, *known)


@pytest.fixture(scope="module")
def parts(live, cache):
    return [part_of(live, entity, cache, max_cells=16) for entity in ("Japan", "Canada")]


def test_read_outs_answer_to_their_own_key_and_not_to_those_of_others(live, parts, cache):
    moments = moments_of(live, LAYERS, cache)
    groups = solved(live, moments, parts)
    found = [
        (part.recipe.target.entity, edit) for part, group in zip(parts, groups, strict=True) for edit in group.edits
    ]
    assert len(found) > 1
    for (entity, edit), old in zip(found, [edit for part in parts for edit in part.edits.edits], strict=True):
        assert (edit.layer, edit.token, edit.multiplier, edit.write) == (
            old.layer,
            old.token,
            old.multiplier,
            old.write,
        )
        together = [other for _, other in found if other.layer == edit.layer]
        before = [other for part in parts for other in part.edits.edits if other.layer == edit.layer]
        assert edit.columns == tuple(sorted({column for other in before for column in other.columns}))
        for name, other in found:
            if other not in together:
                continue
            key = name_keys(live, name, [other.layer], other.token + 1)[other.token][0][list(edit.columns)]
            answer = float(np.dot(edit.read.array.astype(np.float64), key.double().numpy()))
            if other is edit:
                assert answer == pytest.approx(1.0, abs=1e-4)
            elif name != entity:
                assert answer == pytest.approx(0.0, abs=1e-4)


def test_directions_of_a_stream_stay_as_they_are(live, parts, cache):
    edits = tuple(dataclasses.replace(edit, of="stream") for edit in parts[0].edits.edits)
    streaming = dataclasses.replace(parts[0], edits=dataclasses.replace(parts[0].edits, edits=edits))
    moments = moments_of(live, LAYERS, cache)
    assert solved(live, moments, [streaming, parts[1]])[0] == streaming.edits
    assert solved(live, moments, parts)[0] != parts[0].edits


def test_the_joint_edit_is_the_best_of_what_was_measured(live, parts, cache):
    joint = join(live, parts, cache=cache)
    assert {row.form for row in joint.tried} == {"sum", "solve"}
    edits = [edit for group in joint.groups for edit in group.edits]
    with edited(live, edits):
        targets = [mean_score(live, part.targets) for part in parts]
    chosen = [row for row in joint.tried if row.worst_target == pytest.approx(max(targets), abs=1e-4)]
    assert joint.form in {row.form for row in chosen}
    least = min(max(row.worst_target, -0.05) for row in joint.tried)
    assert max(max(targets), -0.05) == pytest.approx(least, abs=1e-4)


def test_weaker_edits_are_tried_only_while_all_are_at_the_goal(live, parts, cache):
    for form in ("sum", "solve"):
        rows = [row for row in join(live, parts, cache=cache).tried if row.form == form]
        assert [row.strength for row in rows] == [1.0, 0.95, 0.9, 0.8][: len(rows)]
        assert all(row.worst_target <= -0.05 for row in rows[:-1])
        assert all(row.harm > 0 for row in rows)


def test_one_entity_keeps_its_edit(live, parts, cache):
    joint = join(live, parts[:1], cache=cache)
    assert (joint.form, joint.groups, joint.tried) == ("sum", (parts[0].edits,), ())


def test_cells_stay_as_they_are_and_are_scaled_once(live, parts, cache):
    cell = ColumnEdit(Cell(1, 4), -2.0)
    both = [dataclasses.replace(part, edits=EntityEdits(part.recipe.target.entity, (cell,))) for part in parts]
    joint = join(live, both, cache=cache)
    assert {row.form for row in joint.tried} == {"sum"}
    assert combined([cell, cell, *directions_of(parts[0].edits.edits)]) == (
        ColumnEdit(Cell(1, 4), 4.0),
        *directions_of(parts[0].edits.edits),
    )
