"""Choose atoms, their multiplier and how many columns they change: the mildest edit that makes the model forget.

Candidates are single atoms, all tokens of the name at one layer, and pairs. Each is taken at the weakest multiplier
that reaches the goal. Which of them harms least on text is told without a pass of the model (`atoms.harm`); the one
that is chosen is proven on all search facts and controls, on the fewest columns that keep within the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from amnesia.choice.atoms import Atom, Name, harm
from amnesia.choice.known import KnownFacts, mean_score, some
from amnesia.choice.settings import ChoiceSettings
from amnesia.edits import Edit
from amnesia.live.model import LiveModel, edited
from amnesia.progress import Progress

Group = tuple[Atom, ...]
_FEW = 128  # Columns that an edit should keep to where it can.


@dataclass(frozen=True)
class Trial:
    """Atoms with one multiplier: mean knowledge score of search facts (no unit), and the harm to expect on text."""

    atoms: Group
    multiplier: float
    score: float

    @property
    def harm(self) -> float:
        """Divergence in nats per token, as `atoms.harm`."""
        return harm(self.atoms, self.multiplier)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edit, in the order of layers."""
        return tuple(atom.edit(self.multiplier) for atom in sorted(self.atoms, key=lambda atom: atom.place))


@dataclass(frozen=True)
class JudgedTrial(Trial):
    """A trial whose mean knowledge score of controls (dimensionless) was measured, too."""

    control: float


@dataclass
class DirectionChoice:
    """The choice for one entity.

    `trials` are all that was measured, in order, the screening of `atoms` first; `judged` those by the controls, too.
    """

    live: LiveModel
    name: Name
    targets: KnownFacts
    controls: KnownFacts
    settings: ChoiceSettings = field(default_factory=ChoiceSettings)
    max_columns: int | None = None
    progress: Progress | None = None
    atoms: list[Atom] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    judged: list[JudgedTrial] = field(default_factory=list)

    def choose(self) -> JudgedTrial:
        """The best trial; its score may miss the goal where nothing reaches it."""
        self.atoms = self.name.atoms(self.settings.max_tokens)
        return self.on_few_columns(self.mildest(self.atoms))

    def mildest(self, atoms: Sequence[Atom]) -> list[Trial]:
        """Of the atoms, alone and together, those that harm least where they reach the goal, on all columns.

        The best comes first; a few others follow, because one atom needs half the columns of two.
        """
        few = some(self.targets, self.settings.n_facts)
        grid = self._multipliers()
        strong = grid[2 * len(grid) // 3]
        alone = [self._measure((atom,), strong, few) for atom in atoms[: self.settings.n_screened]]
        # By what it makes forget for its harm; where that is more than needed, it will be taken weaker.
        alone.sort(
            key=lambda trial: (max(trial.score, 3 * self.settings.goal) - 1.0) / math.sqrt(max(trial.harm, 1e-12))
        )
        # An atom that does nothing alone does little beside others; where all do little, they need each other.
        useful = [trial for trial in alone if trial.score <= self.settings.useful] or alone
        best = [trial.atoms[0] for trial in useful[: self.settings.n_paired]]
        layers = list(dict.fromkeys(atom.layer for atom in best))[:2]
        together = [tuple(atom for atom in atoms if atom.layer == layer)[:2] for layer in layers]
        groups = [(atom,) for atom in best] + together + list(itertools.combinations(best, 2))
        found = self._weakest(groups, few)
        if found[0].score > self.settings.goal or found[0].harm > self.settings.max_harm / 2:
            found = self._weakest([(best[0], trial.atoms[0]) for trial in alone[1 : self.settings.n_paired + 2]], few)
        return found

    def _weakest(self, groups: Sequence[Group], few: KnownFacts) -> list[Trial]:
        """The best of all trials so far, each of other atoms, once groups were tried from the weakest multiplier on.

        Those are the least harmful that reach the goal, unless another nearly does with much less harm.
        """
        goal = self.settings.goal
        reached = [trial for trial in self.trials if trial.score <= goal]
        # What was too weak before is not tried weaker.
        missed = {frozenset(trial.atoms): trial.multiplier for trial in self.trials if trial.score > goal}
        room = self.max_columns or math.inf
        left = {frozenset(group): math.inf for group in groups if len(set(group)) == len(group) <= room}
        for multiplier in self._multipliers():
            for group in list(left):
                atoms = tuple(sorted(group, key=lambda atom: atom.place))
                limit = min((trial.harm for trial in reached), default=math.inf)
                if harm(atoms, multiplier) >= limit or multiplier >= missed.get(group, math.inf):
                    continue
                trial = self._measure(atoms, multiplier, few)
                if trial.score <= goal:
                    reached.append(trial)
                # The score is not monotone in the multiplier: once it has turned, more of the same does not help.
                turned = multiplier <= -1 and trial.score > left[group] + 0.05
                left[group] = min(left[group], trial.score)
                if turned or trial.score <= goal:
                    del left[group]
        missing = self.settings.harm_of_score
        order = sorted(self.trials, key=lambda trial: trial.harm + missing * max(0.0, trial.score - goal))
        unlike = {frozenset(trial.atoms): trial for trial in reversed([order[0], *sorted(reached, key=order.index)])}
        return sorted(unlike.values(), key=order.index)[: self.settings.n_paired]

    def on_few_columns(self, dense: Sequence[Trial]) -> JudgedTrial:
        """The trial on the fewest columns that keeps within the bounds; else the best of those tried.

        That is the one that forgets most, spares controls, harms text least, in this order.
        """
        settings = self.settings
        offered = [(atoms, trial) for trial in dense for atoms in self.sizes(trial)]
        last = max((pair for pair in offered if pair[1] is dense[0]), key=lambda pair: pair[0][0].size)
        offered.sort(key=lambda pair: (_size(pair[0]), harm(pair[0], pair[1].multiplier)))
        mild = [(atoms, trial) for atoms, dense in offered if (trial := self._within_cap(atoms, dense))]
        for atoms, trial in mild if last in mild else [*mild, last]:
            fitted = self.fitted(atoms, trial)
            with edited(self.live, fitted.edits):
                control = mean_score(self.live, self.controls)
            found = JudgedTrial(fitted.atoms, fitted.multiplier, fitted.score, control)
            self.judged.append(found)
            spares = found.control >= settings.min_control and found.harm <= self._cap(atoms)
            if spares and found.score <= settings.goal / 2:
                return found
        return min(
            self.judged, key=lambda trial: (max(trial.score, 0.1), trial.control < settings.min_control, trial.harm)
        )

    def _within_cap(self, atoms: Group, dense: Trial) -> Trial | None:
        """What to try the atoms with: the multiplier of `dense`, or the strongest that harms no more than is allowed.

        Many an edit goes beyond the goal. A weaker one is for 128 columns alone, for the sake of changing no more.
        """
        now, allowed = harm(atoms, dense.multiplier), self._cap(atoms)
        if now <= allowed:
            return dense
        if _size(atoms) != _FEW:
            return None
        # The harm grows with the square of what is taken away.
        multiplier = 1.0 - (1.0 - dense.multiplier) * math.sqrt(allowed / now)
        return replace(dense, multiplier=math.ceil(100 * multiplier) / 100)

    def _cap(self, atoms: Group) -> float:
        """The harm that is allowed: from 128 columns on more, for the sake of all the columns that stay as they are."""
        return self.settings.max_harm * (self.settings.margin if _size(atoms) < _FEW else 1.0)

    def sizes(self, dense: Trial) -> list[Group]:
        """The atoms on equal numbers of columns, the fewest first; on all where the recipe sets no bound."""
        sizes, n = self.settings.columns, len(dense.atoms)
        if self.max_columns is not None:
            sizes = (*(size for size in sizes if size < self.max_columns), self.max_columns)
        found = [self.name.sparse(atom, [size // n for size in sizes if size >= n]) for atom in dense.atoms]
        groups = [tuple(own[size] for own in found) for size in sorted(found[0])]
        # Two atoms of a layer may come down to the same cell, which can be scaled only once.
        groups = [group for group in groups if group[0].size > 1 or len({_cell(atom) for atom in group}) == n]
        bounded = self.max_columns is not None and self.max_columns // n < dense.atoms[0].size
        if not bounded:
            groups.append(dense.atoms)
        return groups or self.sizes(replace(dense, atoms=dense.atoms[:1]))

    def fitted(self, atoms: Group, dense: Trial) -> Trial:
        """The same atoms on fewer columns, with a multiplier one step stronger where that is needed; on all facts."""
        stronger = [multiplier for multiplier in self._multipliers() if multiplier < dense.multiplier]
        if stronger and harm(atoms, dense.multiplier) <= self._cap(atoms) < harm(atoms, stronger[0]):
            stronger = []
        trials = []
        for multiplier in (dense.multiplier, *stronger[:1]):
            trials.append(self._measure(atoms, multiplier, self.targets))
            # Nor will a small step do where little is forgotten.
            if trials[-1].score <= self.settings.goal or trials[-1].score > self.settings.useful:
                break
        return min(trials, key=lambda trial: (trial.score > self.settings.goal, trial.score))

    def _multipliers(self) -> tuple[float, ...]:
        fine = self.live.norm_after(0) is not None
        return self.settings.fine_multipliers if fine else self.settings.multipliers

    def _measure(self, atoms: Group, multiplier: float, targets: KnownFacts) -> Trial:
        edits = Trial(atoms, multiplier, math.nan).edits
        with edited(self.live, edits):
            trial = Trial(atoms, multiplier, mean_score(self.live, targets))
        self.trials.append(trial)
        if self.progress:
            self.progress(1)
        return trial


def _size(atoms: Group) -> int:
    """How many columns the atoms change, those of each counted."""
    return sum(atom.size for atom in atoms)


def _cell(atom: Atom) -> tuple[int, int]:
    """Layer and neuron of an atom on one cell."""
    return atom.layer, int(atom.read_out.cells)
