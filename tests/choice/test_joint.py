"""Several entities in one edit, on a tiny model: added up, or with read-outs that leave each other's keys alone."""

import dataclasses

import numpy as np
import pytest

from amnesia.choice.extraction import extract
from amnesia.choice.joint import JointTrial, Part, _Joining, combined, join, solved
from amnesia.choice.known import Scores, mean_score, select_known
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.keys import name_keys
from amnesia.directions.moments import moments_of
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, EntityEdits, directions_of
from amnesia.evaluation.measurement import known_facts
from amnesia.facts.questions import questions_of
from amnesia.live.model import edited
from amnesia.recipe_file import parse_recipe
from support.known_recipes import known
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


def test_solved_apart_read_outs_answer_less_to_the_names_of_neighbors(live, parts, cache):
    facts = known(live, "Bank of Japan", gap=0.5)
    sharing = [dataclasses.replace(parts[0], neighbors=facts), parts[1]]
    moments = moments_of(live, LAYERS, cache)
    plain, apart = (solved(live, moments, sharing, apart=apart) for apart in (False, True))
    assert plain == solved(live, moments, parts) == solved(live, moments, parts, apart=True)

    def answers(groups):
        found = []
        for edit in groups[0].edits:
            keys = name_keys(live, "Bank of Japan", [edit.layer], 3).values()
            read = edit.read.array.astype(np.float64)
            found.append(sum(np.dot(read, key[0][list(edit.columns)].double().numpy()) ** 2 for key in keys))
        return found

    assert all(after < 0.97 * before for before, after in zip(answers(plain), answers(apart), strict=True))
    for part, group in zip(sharing, apart, strict=True):
        for edit in group.edits:
            key = name_keys(live, part.recipe.target.entity, [edit.layer], edit.token + 1)[edit.token][0]
            assert float(np.dot(edit.read.array, key[list(edit.columns)].numpy())) == pytest.approx(1.0, abs=1e-3)


def test_a_joint_edit_is_judged_by_neighbors_too(live, parts, cache, monkeypatch):
    facts = known(live, "Bank of Japan", "Japan Airlines", gap=0.5)
    sharing = [dataclasses.replace(parts[0], neighbors=facts), parts[1]]
    # One that begins with the name cannot be told apart: it is measured, and judges nothing.
    assert {fact.question.fact.entity for fact in sharing[0].apart} == {"Bank of Japan"}
    joint = join(live, sharing, cache=cache)
    edits = combined(edit for group in joint.groups for edit in group.edits)
    assert [row.name for row in joint.neighbors] == ["Bank of Japan", "Japan Airlines"]
    for row in joint.neighbors:
        own = tuple(fact for fact in facts if fact.question.fact.entity == row.name)
        assert (row.n_facts, row.score) == (3, pytest.approx(mean_score(live, own, edits), abs=1e-4))
    scores = {}
    for bound in (-1e6, 1e6):
        monkeypatch.setattr(ChoiceSettings, "min_neighbor", bound)
        found = join(live, sharing, cache=cache)
        scores[bound] = {row.form for row in found.tried}
        assert {row.lost for row in found.tried} == {("Bank of Japan",) if bound > 0 else ()}
    # Their keys count only where the best of the others takes one along.
    assert scores == {-1e6: {"sum", "solve"}, 1e6: {"sum", "solve", "apart"}}


def test_neighbors_of_every_entity_judge(live, parts, cache, monkeypatch):
    facts = known(live, "Bank of Canada", gap=0.5)
    monkeypatch.setattr(ChoiceSettings, "min_neighbor", 1e6)
    found = join(live, [parts[0], dataclasses.replace(parts[1], neighbors=facts)], cache=cache)
    assert {row.lost for row in found.tried} == {("Bank of Canada",)}


def test_directions_of_streams_are_solved_with_neighbors_alone(live, parts, cache):
    edits = tuple(dataclasses.replace(edit, of="stream") for edit in parts[0].edits.edits)
    streaming = [dataclasses.replace(parts[0], edits=dataclasses.replace(parts[0].edits, edits=edits)), parts[1]]
    joint = join(live, streaming, cache=cache)
    assert {row.form for row in joint.tried} == {"sum", "solve", "apart"}
    assert solved(live, moments_of(live, LAYERS, cache), streaming, apart=True)[0] != streaming[0].edits


def test_of_edits_that_forget_the_one_that_keeps_more_neighbors_is_taken(live, parts):
    def row(form, **fields):
        return JointTrial(
            form, **({"strength": 1.0, "worst_target": -0.2, "control": 0.99, "harm": 0.1, "lost": ()} | fields)
        )

    def least(*rows):
        joining = _Joining(live, parts, None, lambda *_: None, Scores(live), [(row, ()) for row in rows])
        return joining._least()[0]

    keeping, losing = row("apart", harm=0.2), row("solve", lost=("Bank of Japan",))
    assert least(losing, keeping) is keeping
    # Where no goal is reached, a little more is nothing.
    near_by = dataclasses.replace(keeping, worst_target=0.21)
    assert least(dataclasses.replace(losing, worst_target=0.22), near_by) is near_by
    assert least(dataclasses.replace(losing, worst_target=0.209), near_by) is near_by
    for fields in ({"worst_target": 0.1}, {"control": 0.9}):
        assert least(losing, dataclasses.replace(keeping, **fields)) is losing
    milder = dataclasses.replace(losing, harm=0.01)
    assert least(losing, milder, row("sum", lost=("a", "b"), harm=0.0)) is milder


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
    assert (joint.form, joint.groups, joint.tried, joint.neighbors) == ("sum", (parts[0].edits,), (), ())
    facts = known(live, "Bank of Japan", gap=0.5)
    (row,) = join(live, [dataclasses.replace(parts[0], neighbors=facts)], cache=cache).neighbors
    assert row.score == pytest.approx(mean_score(live, facts, parts[0].edits.edits), abs=1e-4)


def test_cells_stay_as_they_are_and_are_scaled_once(live, parts, cache):
    cell = ColumnEdit(Cell(1, 4), -2.0)
    both = [dataclasses.replace(part, edits=EntityEdits(part.recipe.target.entity, (cell,))) for part in parts]
    joint = join(live, both, cache=cache)
    assert {row.form for row in joint.tried} == {"sum"}
    assert combined([cell, cell, *directions_of(parts[0].edits.edits)]) == (
        ColumnEdit(Cell(1, 4), 4.0),
        *directions_of(parts[0].edits.edits),
    )
