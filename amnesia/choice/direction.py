"""Choose atoms, their multiplier and how many columns they change: the mildest edit that makes the model forget.

Candidates are single atoms, all tokens of the name at one layer, and pairs. Each is taken at the weakest multiplier
that reaches the goal. Which of them harms least on text is told without a pass of the model (`atoms.Change`); the one
that is chosen is proven on all search facts, controls and facts about neighbors, on the fewest columns that keep within
the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from amnesia.choice.atoms import Atom, Change, Name, change_by
from amnesia.choice.known import KnownFacts, Scores, evenly
from amnesia.choice.levels import BESIDE, FINE_MULTIPLIERS, MULTIPLIERS, added_up, next_level
from amnesia.choice.settings import ChoiceSettings
from amnesia.edits import ColumnEdit, Edit
from amnesia.progress import Progress

Group = tuple[Atom, ...]

MAX_TOKENS = 3
"""Tokens of a name whose keys are read, from the last one backwards."""


@dataclass(frozen=True)
class Trial:
    """Atoms with one multiplier: mean knowledge score of search facts (no unit), and what texts are expected to lose.

    The `change` is that of all that acts then, with what acted before.
    """

    atoms: Group
    multiplier: float
    score: float
    change: Change

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edit, in the order of layers."""
        return edits_of(self.atoms, self.multiplier)


@dataclass(frozen=True)
class JudgedTrial(Trial):
    """A trial whose mean knowledge scores of controls and of facts about neighbors were measured, too; None where no
    neighbors are to be spared."""

    control: float
    neighbor: float | None

    @property
    def spared(self) -> float:
        """The score of neighbors; without any it is that of untouched ones."""
        return 1.0 if self.neighbor is None else self.neighbor


Watch = Callable[[JudgedTrial], None]
"""Told of each candidate as soon as it is measured."""


def edits_of(atoms: Group, multiplier: float) -> tuple[Edit, ...]:
    """Atoms as an edit, in the order of layers."""
    return tuple(atom.edit(multiplier) for atom in _placed(atoms))


@dataclass
class DirectionChoice:
    """The choice for one name.

    Where edits are `acting` already, beside which one more is chosen, `beside` is what texts lose by them. `trials` are
    all that was measured, in order, the screening of `atoms` first; `dense` the best on all columns, `judged` those
    whose controls were asked, too.
    """

    scores: Scores
    name: Name
    targets: KnownFacts
    controls: KnownFacts
    neighbors: KnownFacts = ()
    settings: ChoiceSettings = field(default_factory=ChoiceSettings)
    max_columns: int | None = None
    progress: Progress | None = None
    beside: Change | None = None
    acting: tuple[Edit, ...] = ()
    watch: Watch | None = None
    atoms: list[Atom] = field(default_factory=list)
    dense: list[Trial] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    judged: list[JudgedTrial] = field(default_factory=list)
    _sparse: dict[tuple[Atom, tuple[int, ...]], dict[int, Atom]] = field(default_factory=dict)

    def choose(self) -> JudgedTrial:
        """The best trial; its score may miss the goal where nothing reaches it."""
        self.atoms = self.atoms or self.name.atoms(MAX_TOKENS, self.acting)
        self.dense = self.mildest(self.atoms)
        return self.on_few_columns(self.dense)

    def mildest(self, atoms: Sequence[Atom]) -> list[Trial]:
        """Of the atoms, alone and together, those that harm least where they reach the goal, on all columns.

        The best comes first; a few others follow, because one atom needs half the columns of two.
        """
        settings = self.settings
        few = evenly(self.targets, settings.n_facts)
        alone = self._screened(atoms[: settings.n_screened], few)
        best = self._useful(alone)
        layers = list(dict.fromkeys(atom.layer for atom in best))[:2]
        together = [tuple(atom for atom in atoms if atom.layer == layer)[:2] for layer in layers]
        found = self._weakest([(atom,) for atom in best] + together + list(itertools.combinations(best, 2)), few)
        if found[0].score > settings.goal or found[0].change.harm > settings.max_harm / 2:
            found = self._weakest([(best[0], trial.atoms[0]) for trial in alone[1 : settings.n_paired + 2]], few)
        if found[0].score > settings.goal and len(atoms) > settings.n_screened:
            # Those that move the stream less may do more.
            best = self._useful([*alone, *self._screened(atoms[settings.n_screened :], few)])
            found = self._weakest([(atom,) for atom in best] + list(itertools.combinations(best, 2)), few)
        return found

    def _screened(self, atoms: Sequence[Atom], few: KnownFacts) -> list[Trial]:
        """The atoms, each by itself and turned far, in the order of `_gain`."""
        strong = self._multipliers()[-4]  # -0.75, and -0.4 where a norm follows the MLP.
        self._ask({(atom,): strong for atom in atoms}, few)
        return sorted((self._measure((atom,), strong, few) for atom in atoms), key=self._gain)

    def _useful(self, alone: Sequence[Trial]) -> list[Atom]:
        """The best of atoms that were tried alone."""
        # An atom that does nothing alone does little beside others; where all do little, they need each other.
        useful = [trial for trial in alone if trial.score <= self.settings.useful] or alone
        return [trial.atoms[0] for trial in sorted(useful, key=self._gain)[: self.settings.n_paired]]

    def _gain(self, trial: Trial) -> float:
        """What a trial makes forget for its harm, the most first; what is beyond the goal will be taken weaker."""
        return (max(trial.score, self.settings.beyond) - 1.0) / math.sqrt(max(trial.change.harm, 1e-12))

    def _weakest(self, groups: Sequence[Group], few: KnownFacts) -> list[Trial]:
        """The best of all trials so far, each of other atoms, once the weakest multipliers of groups were looked for:
        the least harmful that reach the goal, unless another nearly does with much less harm."""
        goal, room, n_before = self.settings.goal, self.max_columns or math.inf, len(self.trials)
        unlike = dict.fromkeys(_placed(group) for group in groups if len(set(group)) == len(group) <= room)
        for is_single in (True, False):  # What single atoms do tells where to look for those of several.
            left = [atoms for atoms in unlike if (len(atoms) == 1) is is_single]
            while asked := {atoms: level for atoms in left if (level := self._next(atoms, few, n_before)) is not None}:
                self._ask(asked, few)
                for atoms, multiplier in asked.items():
                    self._measure(atoms, multiplier, few)
        reached = [trial for trial in self.trials if trial.score <= goal]
        mild = min(self.trials, key=self._loss)
        order = sorted(reached, key=lambda trial: self._cost(trial.change))
        if mild.score > goal:
            order.insert(0, mild)
        best: dict[Group, Trial] = {}
        for trial in order:
            best.setdefault(_placed(trial.atoms), trial)
        return list(best.values())[: self.settings.n_paired]

    def _next(self, atoms: Group, few: KnownFacts, n_before: int) -> float | None:
        """The multiplier at which to measure atoms next.

        None stronger than one with which others reach the goal with less harm: those of the first `n_before` trials,
        and those that need no stronger one, because less of two atoms may do on fewer columns than much of one.
        """
        goal, start = self.settings.goal, self.scores.mean(few, self.acting) if self.acting else 1.0
        trials = [(trial.multiplier if i >= n_before else math.inf, trial) for i, trial in enumerate(self.trials)]
        reached = [(multiplier, self._cost(trial.change)) for multiplier, trial in trials if trial.score <= goal]
        least = min(map(self._loss, self.trials))
        own, parts = self._known(atoms), [self._known((atom,)) for atom in atoms]

        def is_wanted(multiplier: float) -> bool:
            limits = (cost for other, cost in reached if other >= multiplier)
            return self._cost(self._change(atoms, multiplier)) < min(limits, default=(True, math.inf))

        def is_gain(multiplier: float, score: float) -> bool:
            better = score - self.settings.much  # Than a line lets expect: a score may fall faster at first.
            return self.settings.loss(better, self._change(atoms, multiplier).harm) < least

        return next_level(self._multipliers(), own, goal, added_up(start, parts, own), is_wanted, is_gain)

    def _loss(self, trial: Trial) -> float:
        return self.settings.loss(trial.score, trial.change.harm)

    def _known(self, atoms: Group) -> dict[float, float]:
        """The scores of atoms, by multiplier."""
        return {trial.multiplier: trial.score for trial in self.trials if trial.atoms == atoms}

    def on_few_columns(self, dense: Sequence[Trial]) -> JudgedTrial:
        """The trial on the fewest columns that keeps within the bounds; else the best of those tried.

        On fewer columns than `few` controls are to keep more, because others than those that are asked lose more there,
        unless no other trial keeps within the bounds. Where none spares the neighbors, because none can tell them from
        the entity, the one counts that spares most of them.
        """
        settings = self.settings
        offered = [(atoms, trial) for trial in dense for atoms in self.sizes(trial)]
        if not offered:
            return self.judge(dense[0])
        last = max((pair for pair in offered if pair[1] is dense[0]), key=lambda pair: pair[0][0].size)
        offered.sort(key=lambda pair: (_size(pair[0]), self._cost(self._change(pair[0], pair[1].multiplier))))
        candidates = [
            # What is weaker than it was offered has given up all that went beyond the goal.
            (atoms, multiplier, settings.goal if multiplier > trial.multiplier else settings.goal + settings.slack)
            for atoms, trial in offered
            if (multiplier := self._within_cap(atoms, trial.multiplier)) is not None
        ]
        # Where no more columns are allowed, it is better to harm than to fail, but not for a form beside the name.
        if not any(row[0] is last[0] and (self.acting or row[1] == last[1].multiplier) for row in candidates):
            candidates.append((last[0], last[1].multiplier, settings.goal + settings.slack))
        sparing: list[JudgedTrial] = []
        narrow: list[JudgedTrial] = []
        missed: list[Trial] = []
        for atoms, multiplier, goal in candidates:
            trial = self.fitted(atoms, multiplier)
            if trial.score > goal:
                missed.append(trial)  # What else it does counts only where nothing reaches the goal.
                continue
            found = self.judge(trial)
            if found.control >= settings.min_control and found.change.harm <= self.cap(atoms):
                if found.spared < settings.min_neighbor:
                    sparing.append(found)
                elif found.control >= self.least_control(atoms):
                    return found
                else:
                    narrow.append(found)
        if narrow:
            return narrow[0]
        if sparing:
            return self.first_sparing(sparing)
        for trial in missed:
            self.judge(trial)
        return self.closest(self.judged)

    def first_sparing(self, trials: Sequence[JudgedTrial]) -> JudgedTrial:
        """Of trials none of which keeps the neighbors, the first, unless a later one keeps much more of them."""
        least = max(trial.spared for trial in trials) - self.settings.much
        return next(trial for trial in trials if trial.spared >= least)

    def closest(self, judged: Sequence[JudgedTrial]) -> JudgedTrial:
        """Of trials that miss the bounds, the one that forgets most and spares controls and neighbors.

        In this order; a tenth of a score more or less to forget counts for nothing, nor does less than half a hundredth
        of what controls keep. Of equals, the one on the fewest columns that harms text no more than is allowed, else
        the least harmful. What is allowed on so many columns alone is for what spares the controls.
        """

        def order(trial: JudgedTrial) -> tuple[float, ...]:
            missed, unspared = max(1, math.ceil(10 * trial.score)), self._unspared(trial)
            allowed = self.settings.max_harm if unspared else max(self.settings.max_harm, self.cap(trial.atoms))
            harmful = trial.change.harm > allowed
            least = trial.change.harm if harmful else _size(trial.atoms)
            return missed, unspared, trial.spared < self.settings.min_neighbor, harmful, least, trial.change.harm

        return min(judged, key=order)

    def judge(self, trial: Trial) -> JudgedTrial:
        """A trial with what it does to controls and neighbors; one that was judged before is told of no more."""
        for known in self.judged:
            if (known.atoms, known.multiplier) == (trial.atoms, trial.multiplier):
                return known
        edits = (*self.acting, *trial.edits)
        self.scores.ask((*self.controls, *self.neighbors), [edits], self.progress)
        control = self.scores.mean(self.controls, edits)
        neighbor = self.scores.mean(self.neighbors, edits) if self.neighbors else None
        found = JudgedTrial(trial.atoms, trial.multiplier, trial.score, trial.change, control, neighbor)
        self.judged.append(found)
        if self.watch:
            self.watch(found)
        return found

    def _within_cap(self, atoms: Group, multiplier: float) -> float | None:
        """The multiplier to try the atoms with: the one given, or the strongest that harms no more than is allowed.

        Many an edit goes beyond the goal. A weaker one is for 128 columns alone, for the sake of changing no more, and
        for all columns where edits act already: there a little is better than nothing, and leaves as much as 128
        columns do for edits that follow.
        """
        allowed = self.cap(atoms)
        if self._change(atoms, multiplier).harm <= allowed:
            return multiplier
        if self.acting and all(atom.size == len(atom.key) for atom in atoms):
            allowed *= min(1.0, self.settings.few_harm)
        elif _size(atoms) != self.settings.few:
            return None
        # The harm is a quadratic function of what is taken away, the strength.
        whole = change_by(atoms, 0.0)
        before = whole.times(0.0) if self.beside is None else self.beside
        mixed = (before.text * whole.text).mean().item()
        room = mixed**2 + 4 * whole.harm * (allowed - before.harm)
        if before.harm >= allowed or room < 0 or not whole.harm:
            return None
        weaker = math.ceil(100 * (1.0 - (math.sqrt(room) - mixed) / (2 * whole.harm))) / 100
        return weaker if weaker < 1.0 else None

    def cap(self, atoms: Group) -> float:
        """The harm that is allowed: most on 128 columns, for the sake of all the columns that stay as they are."""
        settings, size = self.settings, _size(atoms)
        share = settings.margin if size < settings.few else settings.few_harm if size == settings.few else 1.0
        return share * settings.max_harm

    def _unspared(self, trial: JudgedTrial) -> int:
        """Hundredths, up to 100, that are missing from what controls must keep."""
        return round(100 * min(1.0, max(0.0, self.settings.min_control - trial.control)))

    def least_control(self, atoms: Group) -> float:
        """What controls are to keep on so many columns."""
        settings = self.settings
        share = settings.margin if _size(atoms) < settings.few else 1.0
        return 1.0 - share * (1.0 - settings.min_control)

    def _cost(self, change: Change) -> tuple[bool, float]:
        """What counts among trials that reach the goal: whether the harm is more than allowed, then harm on text and,
        by their weight, on texts about neighbors, in nats per token of text."""
        return change.harm > self.settings.max_harm, change.harm + self.settings.near_cost * change.near_harm

    def _change(self, atoms: Group, multiplier: float) -> Change:
        change = change_by(atoms, multiplier)
        return change if self.beside is None else self.beside + change

    def sizes(self, dense: Trial) -> list[Group]:
        """The atoms on equal numbers of columns, the fewest first; on all where the recipe sets no bound.

        None where all that may change is one cell, which an edit that is acting scales already.
        """
        sizes, n = self.settings.columns, len(dense.atoms)
        if self.max_columns is not None:
            sizes = (*(size for size in sizes if size < self.max_columns), self.max_columns)
        own = tuple(size // n for size in sizes if size >= n)
        for atom in dense.atoms:
            if (atom, own) not in self._sparse:
                self._sparse[atom, own] = self.name.sparse(atom, own)
        found = [self._sparse[atom, own] for atom in dense.atoms]
        groups = [tuple(sparse[size] for sparse in found) for size in sorted(found[0])]
        groups = [group for group in groups if not self._scales_twice(group)]
        bounded = self.max_columns is not None and self.max_columns // n < dense.atoms[0].size
        if not bounded:
            groups.append(dense.atoms)
        return groups if groups or n == 1 else self.sizes(replace(dense, atoms=dense.atoms[:1]))

    def _scales_twice(self, atoms: Group) -> bool:
        """Whether a cell would be scaled twice: two atoms of a layer may come down to the same one."""
        cells = [edit.cell for edit in (*self.acting, *edits_of(atoms, 0.0)) if isinstance(edit, ColumnEdit)]
        return len(set(cells)) < len(cells)

    def fitted(self, atoms: Group, multiplier: float) -> Trial:
        """Atoms on few columns with a multiplier, or with a stronger one where that is needed or costs little.

        Measured on all facts. Held-out wordings fall less than those of the search, so that an edit goes beyond the
        goal as long as its harm is small.
        """
        settings = self.settings
        found = self._measure(atoms, multiplier, self.targets)
        for stronger in (other for other in self._multipliers() if other < multiplier):
            harm = self._change(atoms, stronger).harm
            needed = found.score > settings.goal and harm <= max(self.cap(atoms), found.change.harm)
            # Nor will a small step do where little is forgotten.
            if found.score > settings.useful or not (needed or (found.score > settings.beyond and harm <= self._cheap)):
                break
            trial = self._measure(atoms, stronger, self.targets)
            if trial.score >= found.score:
                break
            found = trial
        return found

    @property
    def _cheap(self) -> float:
        """Harm up to which an edit goes beyond the goal."""
        return self.settings.max_harm * self.settings.cheap

    def _multipliers(self) -> tuple[float, ...]:
        usual = FINE_MULTIPLIERS if self.scores.live.norm_after(0) is not None else MULTIPLIERS
        return (*BESIDE, *usual) if self.acting else usual

    def _ask(self, groups: Mapping[Group, float], targets: KnownFacts) -> None:
        """Measure many groups together, each with its multiplier, before what they reach is looked at one by one."""
        variants = [(*self.acting, *edits_of(atoms, multiplier)) for atoms, multiplier in groups.items()]
        self.scores.ask(targets, variants, self.progress)

    def _measure(self, atoms: Group, multiplier: float, targets: KnownFacts) -> Trial:
        score = self.scores.mean(targets, (*self.acting, *edits_of(atoms, multiplier)), self.progress)
        trial = Trial(atoms, multiplier, score, self._change(atoms, multiplier))
        self.trials.append(trial)
        return trial


def _size(atoms: Group) -> int:
    """How many columns the atoms take of those that are offered; one that two of them share counts twice."""
    return sum(atom.size for atom in atoms)


def _placed(group: Group) -> Group:
    """The atoms in the order of their places."""
    return tuple(sorted(group, key=lambda atom: atom.place))
