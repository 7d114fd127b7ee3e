"""Choose atoms, their multiplier and how many columns they change: the mildest edit that makes the model forget.

Candidates are single atoms, all tokens of the name at one layer, and pairs. Each is taken at the weakest multiplier
that reaches the goal. Which of them harms least is told by the closed form (`Atom.leak`), and proven by measuring the
search controls and search text for the one that is chosen, on the fewest columns that keep within the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from amnesia.choice.atoms import Atom, atoms_of
from amnesia.choice.known import Known
from amnesia.choice.settings import ChoiceSettings
from amnesia.damage import Reading, read
from amnesia.directions.moments import Moments
from amnesia.domain import DirectionEdit
from amnesia.encoding import Continuation, encode
from amnesia.model import LiveModel, Progress, edited
from amnesia.prompts import CODE_SNIPPETS, FOREIGN_SENTENCES, neutral_texts

_TEXT_TOKENS = 24  # Of each sentence of search text.
_TEXT_STEP = 3  # Every third sentence is read.


@dataclass(frozen=True)
class SearchText:
    """Sentences in five languages and code, and what the original model makes of them."""

    rows: tuple[Continuation, ...]
    before: Reading

    @classmethod
    def of(cls, live: LiveModel) -> SearchText:
        """Read by the model as it is now."""
        texts = [*neutral_texts("search")[::_TEXT_STEP], *FOREIGN_SENTENCES[::_TEXT_STEP], *CODE_SNIPPETS]
        parts = (item.ids[:_TEXT_TOKENS] for item in encode(live.tokenizer, texts))
        rows = tuple(Continuation(ids, len(ids) - 1) for ids in parts if len(ids) > 1)
        return cls(rows, read(live, rows))

    def rise(self, live: LiveModel) -> float:
        """Relative rise of the perplexity per token of the model as it is now."""
        lost = sum(self.before.logprobs) - sum(read(live, self.rows).logprobs)
        return math.expm1(lost / sum(row.n_answer for row in self.rows))


@dataclass(frozen=True)
class Trial:
    """Atoms with one multiplier on supports of one size; mean knowledge score of the search facts, and the leak."""

    atoms: tuple[Atom, ...]
    multiplier: float
    size: int
    score: float
    control: float | None = None
    text: float | None = None

    @property
    def leak(self) -> float:
        """Expected harm, as `Atom.leak`, summed over the atoms."""
        return sum(atom.leak(self.multiplier, self.size) for atom in self.atoms)

    @property
    def edits(self) -> tuple[DirectionEdit, ...]:
        """The edit, in the order of layers."""
        found = [atom.edit(self.multiplier, self.size) for atom in self.atoms]
        return tuple(sorted(found, key=lambda edit: (edit.layer, edit.token)))

    @property
    def n_columns(self) -> int:
        """How many columns of all layers change."""
        return len({(edit.layer, column) for edit in self.edits for column in edit.columns})


@dataclass
class DirectionChoice:
    """The choice for one entity; `trials` are all that was measured, in order."""

    live: LiveModel
    targets: Known
    controls: Known
    text: SearchText
    settings: ChoiceSettings
    max_columns: int | None
    progress: Progress | None = None
    trials: list[Trial] = field(default_factory=list)

    def choose(self, atoms: Sequence[Atom]) -> Trial:
        """The best trial; its score may miss the goal where nothing reaches it."""
        return self.on_few_columns(self.mildest(atoms))

    def mildest(self, atoms: Sequence[Atom]) -> Trial:
        """Of the atoms, alone and together, those that leak least where they reach the goal, on all columns."""
        few = self.targets.some(self.settings.n_facts)
        reached = [found for group in self._groups(atoms, few) if (found := self._weakest(group, few)) is not None]
        enough = [trial for trial in reached if trial.score <= self.settings.goal]
        return min(enough, key=lambda trial: trial.leak) if enough else min(reached, key=lambda trial: trial.score)

    def _groups(self, atoms: Sequence[Atom], few: Known) -> list[tuple[Atom, ...]]:
        """Single atoms, all tokens at one layer, pairs: of what does most for its leak when it is measured alone."""
        settings = self.settings
        grid = self._multipliers()
        middle = grid[len(grid) // 2]
        worth: dict[tuple[int, int], float] = {}
        alone: dict[tuple[int, int], float] = {}
        screened = list(atoms[: settings.n_screened])
        for atom in screened:
            score = alone[atom.place] = self._measure((atom,), middle, atom.dense, few).score
            worth[atom.place] = (1.0 - max(score, 3 * settings.goal)) / math.sqrt(atom.leak(middle, atom.dense))
        order = sorted(screened, key=lambda atom: (-worth[atom.place], atom.place))
        # An atom that does nothing alone does little beside others; where all do little, they need each other.
        best = [atom for atom in order if alone[atom.place] <= settings.useful] or order
        best = best[: settings.n_paired]
        layers = list(dict.fromkeys(atom.layer for atom in best))[:2]
        together = [
            tuple(sorted((atom for atom in atoms if atom.layer == layer), key=lambda atom: atom.token)[:2])
            for layer in layers
        ]
        groups = [(atom,) for atom in best] + together + list(itertools.combinations(best, 2))
        unique = {frozenset(atom.place for atom in group): group for group in groups}
        return list(unique.values())

    def _weakest(self, group: tuple[Atom, ...], few: Known) -> Trial | None:
        """The trial with the weakest multiplier that reaches the goal, or else the one with the lowest score.

        None where even the weakest would leak more than the best that was found before, the screening included.
        """
        size = group[0].dense
        found = [trial for trial in self.trials if trial.score <= self.settings.goal and trial.size == size]
        limit = min((trial.leak for trial in found), default=math.inf)
        best: Trial | None = None
        for multiplier in self._multipliers():
            # Not where it leaks as much: that may be the very edit that the screening found.
            if sum(atom.leak(multiplier, size) for atom in group) > limit:
                break
            trial = self._measure(group, multiplier, size, few)
            if best is None or trial.score < best.score:
                best = trial
            if trial.score <= self.settings.goal:
                break
            # The score is not monotone in the multiplier: once it has turned, more of the same does not help.
            if multiplier <= -1 and trial.score > best.score + 0.05:
                break
        return best

    def on_few_columns(self, dense: Trial) -> Trial:
        """The trial on the fewest columns that keeps within the bounds; else the one that harms text least."""
        settings = self.settings
        sizes = sorted(dense.atoms[0].read_outs)
        room = None if self.max_columns is None else self.max_columns // len(dense.atoms)
        allowed = [size for size in sizes if room is None or size <= room] or sizes[:1]
        judged: list[Trial] = []
        for size in allowed:
            if size != allowed[-1] and sum(a.leak(dense.multiplier, size) for a in dense.atoms) > settings.max_leak:
                continue
            trial = self.fitted(dense, size)
            with edited(self.live, trial.edits):
                control = self.controls.mean_score(self.live)
                text = self.text.rise(self.live) if control >= settings.min_control else math.inf
            trial = Trial(trial.atoms, trial.multiplier, size, trial.score, control, text)
            judged.append(trial)
            self.trials.append(trial)
            if trial.score <= settings.goal / 2 and control >= settings.min_control and text <= settings.max_text:
                return trial
        return min(judged, key=lambda trial: (trial.score > 0.1, trial.text, -(trial.control or 0.0)))

    def fitted(self, dense: Trial, size: int) -> Trial:
        """The same atoms on fewer columns, with a multiplier one step stronger where that is needed; on all facts."""
        grid = self._multipliers()
        place = grid.index(dense.multiplier)
        trials = []
        for multiplier in grid[place : place + 2]:
            trials.append(self._measure(dense.atoms, multiplier, size, self.targets))
            if trials[-1].score <= self.settings.goal:
                break
        return min(trials, key=lambda trial: (trial.score > self.settings.goal, trial.score))

    def _multipliers(self) -> tuple[float, ...]:
        fine = self.live.norm_after(0) is not None
        return self.settings.fine_multipliers if fine else self.settings.multipliers

    def _measure(self, atoms: tuple[Atom, ...], multiplier: float, size: int, targets: Known) -> Trial:
        trial = Trial(atoms, multiplier, size, math.nan)
        with edited(self.live, trial.edits):
            trial = Trial(atoms, multiplier, size, targets.mean_score(self.live))
        self.trials.append(trial)
        if self.progress:
            self.progress(1)
        return trial


def choose_direction(
    live: LiveModel,
    name: str,
    targets: Known,
    controls: Known,
    moments: Moments,
    is_reserved: Callable[[str], bool],
    *,
    text: SearchText | None = None,
    settings: ChoiceSettings | None = None,
    max_columns: int | None = None,
    progress: Progress | None = None,
) -> tuple[Trial, list[Trial]]:
    """The chosen trial for a name, and all that were measured on the way."""
    settings = settings or ChoiceSettings()
    sizes = set(settings.columns)
    if max_columns is not None:
        # One atom may have them all, or two half of them each.
        sizes = {size for size in sizes if size <= max_columns} | {max_columns, max(1, max_columns // 2)}
    atoms = atoms_of(live, name, moments, is_reserved, settings.max_tokens, sorted(sizes))
    with torch.inference_mode():
        text = text or SearchText.of(live)
        choice = DirectionChoice(live, targets, controls, text, settings, max_columns, progress)
        return choice.choose(atoms), choice.trials
