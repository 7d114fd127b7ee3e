"""A second request: an edit on a model that was edited already, and what becomes of the first."""

import json

import pytest
import torch

from amnesia.compare import assess, open_duet
from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, DirectionEdit, EntityEdits
from amnesia.evaluation.behaviour import check_behaviour
from amnesia.evaluation.earlier import earlier_edits, findings_after, in_one, inverse, recipes_of
from amnesia.evaluation.measurement import known_facts
from amnesia.facts.questions import facts_of_recipe, questions_of
from amnesia.live.loading import load
from amnesia.live.model import apply_edits, edited
from amnesia.outputs.commands import undo, verify
from amnesia.pipeline import run
from amnesia.recipe_file import parse_recipe
from amnesia.vector import Vector
from amnesia.weights.manifest_file import read_manifest
from support.commands import done
from support.tiny_recipe import recipe_text
from support.tiny_text import save_tiny_live, tiny_live
from support.tracker import Silent


def direction(layer, columns, d_model, seed):
    draw = torch.Generator().manual_seed(seed)
    read, key, spread = (Vector.of(torch.randn(len(columns), generator=draw)) for _ in range(3))
    write = Vector.of(torch.randn(d_model, generator=draw))
    return DirectionEdit(layer, 0, -0.5, columns, read, write, key, spread)


def test_edits_on_top_of_each_other_are_taken_back_in_memory():
    live = tiny_live()
    d_model = live.shape.d_model
    steps = [
        [EntityEdits("a", (ColumnEdit(Cell(0, 3), -2.0), direction(0, (1, 3, 5), d_model, 0)))],
        [EntityEdits("b", (ColumnEdit(Cell(0, 5), 0.5), ColumnEdit(Cell(0, 3), -1.0)))],
        [EntityEdits("c", (direction(0, (3, 4), d_model, 1), direction(1, (0, 2), d_model, 2)))],
    ]
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        before = live.model(ids).logits.clone()
        for groups in steps:
            apply_edits(live, [edit for group in groups for edit in group.edits])
        after = live.model(ids).logits.clone()
        with edited(live, inverse(in_one(steps))):
            back = live.model(ids).logits.clone()
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(back, before, atol=1e-4, rtol=1e-4)


def test_cells_whose_edits_cancel_out_are_no_part_of_the_whole():
    there, back, other = (ColumnEdit(Cell(0, 3), -4.0), ColumnEdit(Cell(0, 3), -0.25), ColumnEdit(Cell(1, 2)))
    steps = [[EntityEdits("a", (there,))], [EntityEdits("b", (other,))], [EntityEdits("c", (back,))]]
    assert in_one(steps) == (other,)
    assert inverse(in_one(steps[:1] + steps[2:])) == ()


@pytest.mark.slow
def test_a_model_whose_edits_cancel_out_can_be_edited_and_compared(tmp_path):
    model = save_tiny_live(tmp_path / "m")
    for source, name in ((model, "once"), (tmp_path / "once", "twice")):
        done(
            "edit",
            source,
            "--cell",
            "1:5",
            "--multiplier",
            "-1",
            "--entity",
            name,
            "--allow-overlap",
            "-o",
            tmp_path / name,
        )
    text = recipe_text(load(model, "m"), tmp_path / "twice")
    recipe = parse_recipe(text)
    assert run(recipe, tmp_path / "out", Silent()).accepted
    found = assess(str(model), str(tmp_path / "twice"), facts_of_recipe(recipe), Silent(), sweep=True)
    for curve in found.document["sweep"]["curves"]:
        assert curve["mean"] == pytest.approx([1.0] * len(curve["mean"]))
    shown = Silent()
    assert len(open_duet(str(model), str(tmp_path / "twice"), (), shown).voices) == 2
    assert any(line.endswith("has edits that cancel out: it is loaded as a second model") for line in shown.lines)


def test_what_cannot_be_taken_back_is_said():
    assert inverse([ColumnEdit(Cell(0, 3), 0.0)]) is None
    assert inverse([ColumnEdit(Cell(0, 3, 1), -1.0)]) is None


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A model, the model that has forgotten Japan, and the one of that which has forgotten Canada, too."""
    folder = tmp_path_factory.mktemp("twice")
    model, tracker = save_tiny_live(folder / "m"), Silent()
    live = load(model, "m")
    run(parse_recipe(recipe_text(live, model)), folder / "first", tracker)
    second = recipe_text(
        live, folder / "first", entity="Canada", edit="cells = [{ layer = 1, neuron = 9, multiplier = -3.0 }]"
    )
    run(parse_recipe(second), folder / "second", tracker)
    return folder, tracker


@pytest.mark.slow
def test_the_report_says_how_the_first_edit_fares(twice):
    folder, tracker = twice
    document = json.loads((folder / "second" / "report.json").read_text(encoding="utf-8"))
    (line,) = [row["text"] for row in document["findings"] if row["text"].startswith("Japan, forgotten by an earlier")]
    assert line in tracker.lines
    recipe = parse_recipe(read_manifest(folder / "first").recipe)
    questions = [row for row in questions_of(recipe) if row.role == "target"]
    known = [row for row in known_facts(load(folder / "m", "m"), questions, recipe.scoring) if not row.excluded]
    means = []
    for name in ("first", "second"):
        answers = known_facts(load(folder / name, name), questions, recipe.scoring)
        after = {row.pair: row.before.logprob for row in answers}
        means.append(sum(row.score(after[row.pair]) for row in known) / len(known))
    assert f"score {means[0]:.2f} before this edit, {means[1]:.2f} with it, over {len(known)} facts" in line
    assert ("comes back" in line) == (means[1] > means[0] + 0.1)


@pytest.mark.slow
def test_models_without_a_recipe_or_an_edit_have_nothing_to_tell(twice):
    folder, _ = twice
    live = load(folder / "m", "m")
    assert earlier_edits(live, None) == () and findings_after(live, ()) == ()
    assert [row.target.entity for row in recipes_of(read_manifest(folder / "second"))] == ["Canada"]


@pytest.mark.slow
def test_both_edits_are_proven_and_taken_back_one_by_one(twice, tmp_path):
    folder, _ = twice
    verify(folder / "second", str(folder / "first"))
    verify(folder / "second", str(folder / "m"))
    undo(folder / "second", tmp_path / "one")
    undo(folder / "second", tmp_path / "none", every_step=True)
    for name, base in (("one", "first"), ("none", "m")):
        for path in (folder / base).iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_second_edit_is_seen_in_the_answers(twice):
    folder, _ = twice
    report = check_behaviour(folder / "second", Silent(), base=str(folder / "first"))
    assert report.n_targets > 0 and report.change >= 0.1
