from dataclasses import replace

import pytest
import torch

from amnesia.choice import extraction
from amnesia.choice.atoms import Atom, Change
from amnesia.choice.direction import DirectionChoice, JudgedTrial
from amnesia.choice.extraction import asked, verdict
from amnesia.choice.forms import Forms
from amnesia.choice.front import candidate_line
from amnesia.choice.joint import Part
from amnesia.choice.neighbors import _apart
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.solve import ReadOut
from amnesia.progress import SILENT
from amnesia.recipe import Accept
from support.known_recipes import recipe_of
from support.tiny_text import tiny_live


@pytest.mark.parametrize(
    ("target", "control", "expected"),
    [(0.2, 0.95, "strong"), (0.21, 1.0, "weak"), (0.1, 0.94, "weak"), (0.61, 1.0, "none"), (0.0, 0.89, "none")],
)
def test_verdicts(target, control, expected):
    assert verdict(target, control, Accept()) == expected


BOUNDED = ChoiceSettings(max_harm=0.011, few_harm=1.65)


def missing(score, control, harm, neighbor=None, n_columns=256):
    """A trial that misses some bound; `harm` in nats per token, of which `BOUNDED` allows 0.011."""
    change = Change(torch.full((4,), (2 * harm) ** 0.5), torch.zeros(0))
    read_out = ReadOut(torch.arange(n_columns), torch.ones(n_columns), 0.1)
    atom = Atom(0, 0, torch.ones(1), torch.ones(1), torch.ones(1), 1.0, read_out, change)
    return JudgedTrial((atom,), 0.0, score, change, control, neighbor)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (missing(0.45, 0.99, 0.008), missing(0.42, 0.99, 0.018)),  # About as much is forgotten.
        (missing(0.42, 0.99, 0.018), missing(0.65, 0.99, 0.008)),
        (missing(-0.5, 0.99, 0.012), missing(-0.9, 0.99, 0.020)),  # Both are forgotten.
        (missing(0.3, 0.99, 0.018), missing(0.3, 0.90, 0.008)),
        (missing(0.3, 0.99, 0.018, 0.95), missing(0.3, 0.99, 0.008, 0.5)),
        (missing(-0.2, 0.97, 0.009, None, 128), missing(-0.2, 0.97, 0.005, None, 1536)),  # Neither harms too much.
        (missing(-0.2, 0.97, 0.005, None, 1536), missing(-0.2, 0.97, 0.012, None, 128)),
        (missing(0.03, 0.99, 0.018, None, 128), missing(0.06, 0.99, 0.008, None, 1536)),
        (missing(0.03, 0.99, 0.008, None, 1536), missing(0.03, 0.99, 0.019, None, 128)),
        (missing(0.42, 0.99, 0.018, None, 128), missing(0.42, 0.99, 0.008, None, 1536)),
        (missing(0.03, 0.99, 0.012, None, 128), missing(0.03, 0.99, 0.013, None, 128)),
        (missing(-0.2, 0.978, 0.010, None, 1536), missing(-0.2, 0.966, 0.004, None, 64)),  # Controls keep more.
        (missing(-0.2, 0.98, 0.010, None, 64), missing(-0.2, 0.99, 0.004, None, 1536)),
    ],
)
def test_of_what_misses_the_bounds_forgetting_counts_first_and_harm_last(better, worse):
    choice = DirectionChoice(None, None, (), (), settings=BOUNDED)
    assert choice.closest([better, worse]) is better and choice.closest([worse, better]) is better


class Given(DirectionChoice):
    """A choice among trials that are given, one for each number of columns, instead of measured."""

    def __init__(self, trials):
        super().__init__(None, None, (), (), settings=BOUNDED)
        self.given = {len(trial.atoms[0].read_out.cells): trial for trial in trials}

    def sizes(self, dense):
        return [trial.atoms for trial in self.given.values()]

    def fitted(self, atoms, multiplier):
        return self.given[atoms[0].size]

    def judge(self, trial):
        self.judged.append(trial)
        return trial


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        # (score, control, harm, neighbor, columns): on fewer than 128 columns 0.98 of the controls is not enough,
        ([(-0.2, 0.985, 0.003, None, 16), (-0.2, 0.99, 0.003, None, 64), (-0.2, 0.98, 0.003, None, 128)], 64),
        ([(-0.2, 0.985, 0.003, None, 16), (-0.2, 0.985, 0.003, None, 64), (-0.2, 0.98, 0.003, None, 128)], 128),
        # but better than what misses other bounds, or loses the neighbors.
        ([(-0.2, 0.975, 0.003, None, 16), (-0.2, 0.985, 0.003, None, 64), (-0.2, 0.97, 0.003, None, 1536)], 64),
        ([(0.08, 0.995, 0.003, None, 16), (-0.2, 0.985, 0.003, None, 64), (-0.2, 0.99, 0.03, None, 1536)], 64),
        ([(-0.2, 0.985, 0.003, 0.95, 64), (-0.2, 0.99, 0.003, 0.3, 1536)], 64),
        # Where controls keep too little anyway, a difference that roundings make decides nothing.
        ([(-0.2, 0.9790, 0.003, 0.95, 128), (-0.2, 0.9791, 0.003, -0.3, 1536)], 128),
        ([(-0.2, 0.9790, 0.003, None, 128), (-0.2, 0.9791, 0.2, None, 1536)], 128),
    ],
)
def test_controls_keep_more_on_fewer_than_128_columns_where_that_can_be(trials, chosen):
    given = [missing(*trial) for trial in trials]
    choice = Given(given)
    assert _columns(choice.on_few_columns(given[-1:])) == chosen


def _columns(trial):
    return trial.atoms[0].size


@pytest.mark.parametrize(
    ("spared", "chosen"), [([0.24, 0.25, 0.27], 0), ([0.2, 0.5, 0.6], 1), ([0.2, 0.3, 0.6], 2), ([-0.4, 0.8, 0.3], 1)]
)
def test_more_columns_change_only_where_much_more_of_the_neighbors_is_kept(spared, chosen):
    trials = [missing(-0.2, 0.99, 0.005, score) for score in spared]
    assert DirectionChoice(None, None, (), ()).first_sparing(trials) is trials[chosen]


def test_a_candidate_says_of_neighbors_what_was_asked():
    assert "neighbors" not in candidate_line(missing(0.4, 0.99, 0.01, None, 1))
    assert "neighbors 0.50" in candidate_line(missing(0.4, 0.99, 0.01, 0.5, 1))


@pytest.mark.slow
@pytest.mark.parametrize("is_told", [False, True])
def test_forms_beside_an_edit_that_tells_neighbors_apart_keep_to_less_harm(tmp_path, monkeypatch, is_told):
    live, seen, settings = tiny_live("llama", seed=3), [], ChoiceSettings()

    def told(choice, best, own):
        assert own == settings
        return (replace(choice, settings=replace(own, few=7)) if is_told else choice), best

    monkeypatch.setattr(extraction, "told_apart", told)
    monkeypatch.setattr(Forms, "add", lambda self, best, *_: seen.append(self) or best.edits)
    extraction.extract(live, recipe_of(live), cache=tmp_path)
    own = seen[0].settings
    assert (own.few, own.max_harm, seen[0].share) == (
        (7, settings.max_harm, settings.apart_harm) if is_told else (settings.few, settings.max_harm, 1.0)
    )


@pytest.mark.slow
def test_on_bounded_columns_neighbors_are_told_apart_on_all_that_may_change(tmp_path, monkeypatch):
    live, seen = tiny_live("llama", seed=3), []

    def told(choice, best, own):
        seen.append(_apart(choice, own).settings)
        return choice, best

    monkeypatch.setattr(extraction, "told_apart", told)
    recipe = recipe_of(live)
    for bound in (None, 8, 10**6):
        bounded = replace(recipe, edit=replace(recipe.edit, forms=False, max_cells=bound))
        extraction.extract(live, bounded, cache=tmp_path)
    assert [own.few for own in seen] == [live.shape.d_mlp, 8, live.shape.d_mlp]
    assert {own.few_harm for own in seen} == {1.0}


@pytest.mark.slow
def test_neighbors_are_measured_and_not_spared_where_a_recipe_says_so(tmp_path, monkeypatch):
    live, seen, beside = tiny_live("llama", seed=3), [], []
    facts = tuple(
        replace(fact, question=replace(fact.question, fact=replace(fact.question.fact, entity="Bank of Japan")))
        for fact in asked(live, recipe_of(live), SILENT.task)[1]
    )
    monkeypatch.setattr(extraction, "facts_about", lambda *_: facts)
    monkeypatch.setattr(extraction, "told_apart", lambda choice, best, _: seen.append(choice) or (choice, best))
    monkeypatch.setattr(Forms, "add", lambda self, best, *_: beside.append(self.neighbors) or best.edits)
    for spares in (True, False):
        recipe = recipe_of(live)
        recipe = replace(recipe, edit=replace(recipe.edit, neighbors=spares))
        found = extraction.extract(live, recipe, cache=tmp_path)
        assert [row.name for row in found.neighbors] == ["Bank of Japan"]
        assert seen[-1].neighbors == beside[-1] == (facts if spares else ())
        assert (seen[-1].name.near is not None) == spares
        part = Part(recipe, found.edits, (), (), facts)
        assert part.apart == (facts if spares else ())
