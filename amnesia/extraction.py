"""Choose the edit for one entity: candidates by localization, then proof by intervention.

The held-out facts of a recipe are never read here, but for the names of their entities, which the search avoids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from amnesia.bystanders import observe
from amnesia.domain import ColumnEdit, Extraction, Fact, FactKind, Verdict
from amnesia.encoding import Continuation, Placed, common_tokens, continuations, encode
from amnesia.errors import InputError
from amnesia.forward import AnswerLogprob, answer_logprobs
from amnesia.localization import CellMap, cell_maps
from amnesia.measurement import Unknown, check_known, measure_unknown, why_excluded
from amnesia.model import LiveModel, Progress, edited
from amnesia.objective import Problem
from amnesia.prompts import CODE_SNIPPETS, FOREIGN_SENTENCES, neutral_texts, peer_prompts
from amnesia.questions import Question, questions_of
from amnesia.recipe import Accept, Recipe, Scoring
from amnesia.scores import knowledge_score
from amnesia.search import EXACT_MULTIPLIERS, pursue

Task = Callable[[str], contextlib.AbstractContextManager[Progress]]

SEARCH_KINDS: tuple[FactKind, FactKind] = ("target", "control")

N_SINGLE = 15
"""Cells of highest stability that the search with a fixed multiplier tries one by one."""

TEXT_TOKENS = 14
"""Tokens of each neutral text that the search reads."""

TEXT_ANSWER = 4
"""Tokens at their end whose predictions are compared."""

N_COMMON_TOKENS = 2400
"""Single tokens that are recorded, because a cell for a name in an early layer is one for a few tokens."""

BEFORE_TOKENS = "The story of"

WEAK_TARGET = 0.6
"""Knowledge score of the targets up to which an edit that misses the recipe's bounds still counts as a weak one."""


@dataclass(frozen=True)
class Known:
    """Facts that the original model knows, with its log-probabilities (nats) and those of an unknown entity."""

    facts: tuple[Fact, ...]
    before: tuple[float, ...]
    unknown: tuple[float, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Prompts with their answers."""
        return [(fact.text(), fact.answer) for fact in self.facts]

    def mean_score(self, live: LiveModel) -> float:
        """Mean knowledge score of the model as it is now."""
        after = (answer.total for answer in answer_logprobs(live, self.pairs))
        return sum(map(knowledge_score, after, self.before, self.unknown)) / len(self.facts)


@contextlib.contextmanager
def silent(_: str) -> Iterator[Progress]:
    """A task that nobody watches."""
    yield lambda _: None


def extract(live: LiveModel, recipe: Recipe, task: Task = silent) -> Extraction:
    """Find the cells of the recipe's entity and the multipliers that make the model forget it.

    Raises InputError when the model knows none of the search facts, or none of the search controls.
    """
    questions = [question for question in questions_of(recipe) if question.kind in SEARCH_KINDS]
    with task("asking about the facts") as progress:
        unknown = measure_unknown(live, questions, progress)
        before = answer_logprobs(live, [(row.fact.text(), row.fact.answer) for row in questions], progress)
    return choose(live, recipe, *select_known(questions, before, unknown, recipe.scoring), task)


def select_known(
    questions: Sequence[Question],
    before: Sequence[AnswerLogprob],
    unknown: Sequence[Unknown | None],
    scoring: Scoring,
) -> tuple[Known, Known]:
    """Search facts and search controls that the original model knows; held-out questions are dropped here.

    Raises InputError when either is empty.
    """
    rows = [row for row in zip(questions, before, unknown, strict=True) if row[0].kind in SEARCH_KINDS]
    reasons = [why_excluded(answer, base, scoring) for _, answer, base in rows]
    check_known([question for question, _, _ in rows], reasons)
    targets, controls = (
        Known(
            tuple(question.fact for question, _, _ in chosen),
            tuple(answer.total for _, answer, _ in chosen),
            tuple(base.total for _, _, base in chosen if base is not None),
        )
        for kind in SEARCH_KINDS
        for chosen in [[row for row, reason in zip(rows, reasons, strict=True) if row[0].kind == kind and not reason]]
    )
    if not controls.facts:
        raise InputError(
            "the model knows none of the search controls: add facts about others that it answers correctly"
        )
    return targets, controls


def choose(live: LiveModel, recipe: Recipe, targets: Known, controls: Known, task: Task = silent) -> Extraction:
    """The edit for known search facts.

    Fixed `[[cells]]` are only verified. The methods "single" and "greedy" are the source's two-step extraction:
    candidates by stability, each verified by intervention. "pursuit" chooses cells and multipliers by gradient.
    """
    if recipe.cells:
        edits, tried = recipe.cells, len(recipe.cells)
    else:
        with task(f"localizing {recipe.entity}") as progress:
            cell_map = localized(live, recipe, progress)
        search = _search_free if recipe.method == "pursuit" else _search_stepwise
        edits, tried = search(live, recipe, cell_map, targets, controls, task)
    with edited(live, edits):
        target, control = targets.mean_score(live), controls.mean_score(live)
    judged = verdict(target, control, recipe.accept) if edits else "none"
    return Extraction(recipe.entity, judged, edits, target, control, tried)


def localized(live: LiveModel, recipe: Recipe, progress: Progress | None = None, first: int = 0) -> CellMap:
    """What the cells say of a recipe's entity: those of its layers, by default from `first` to the middle."""
    (cell_map,), _, _ = cell_maps(
        live,
        [recipe.entity],
        baseline=recipe.baseline,
        n_prompts=recipe.n_prompts,
        aliases=recipe.aliases,
        layers=recipe.layers or (first, max(first, live.shape.n_layers // 2 - 1)),
        progress=progress,
    )
    return cell_map


def verdict(target: float, control: float, accept: Accept) -> Verdict:
    """`strong` within the bounds; `weak` when much is forgotten, or a control bound is missed narrowly; else `none`."""
    if target <= accept.max_target and control >= accept.min_control:
        return "strong"
    if target <= WEAK_TARGET and control >= 2 * accept.min_control - 1:
        return "weak"
    return "none"


def _search_stepwise(
    live: LiveModel, recipe: Recipe, cell_map: CellMap, targets: Known, controls: Known, task: Task
) -> tuple[tuple[ColumnEdit, ...], int]:
    """The source's two steps: candidates by stability, each verified by intervention with each allowed multiplier.

    Method "single" keeps the one that lowers the targets most of those that spare the controls. Method "greedy" adds
    further cells, in the order of their own effect, while the target bound is missed.
    """
    if recipe.multiplier is not None:
        multipliers = [recipe.multiplier]
    else:
        multipliers = [item for item in EXACT_MULTIPLIERS if recipe.min_multiplier <= item <= -1]
        multipliers = multipliers or [recipe.min_multiplier]
    candidates = [ColumnEdit(row.cell, item) for row in cell_map.top(N_SINGLE) for item in multipliers]

    def left(edits: Sequence[ColumnEdit]) -> float:
        with edited(live, edits):
            return targets.mean_score(live)

    def spares(edits: Sequence[ColumnEdit]) -> bool:
        with edited(live, edits):
            return controls.mean_score(live) >= recipe.accept.min_control

    with task("verifying candidates") as progress:
        alone = {}
        for edit in candidates:
            alone[edit] = left([edit])
            progress(len(targets.facts))
        chosen: list[ColumnEdit] = []
        reached = 1.0
        # Controls are asked only where the targets have fallen.
        for edit in sorted(candidates, key=alone.__getitem__):
            full = len(chosen) == (1 if recipe.method == "single" else recipe.max_cells)
            if full or (chosen and reached <= recipe.accept.max_target):
                break
            if any(edit.cell == other.cell for other in chosen):
                continue
            target = left([*chosen, edit]) if chosen else alone[edit]
            if target < reached and spares([*chosen, edit]):
                chosen, reached = [*chosen, edit], target
    return tuple(sorted(chosen)), N_SINGLE


def _search_free(
    live: LiveModel, recipe: Recipe, cell_map: CellMap, targets: Known, controls: Known, task: Task
) -> tuple[tuple[ColumnEdit, ...], int]:
    """Gradient search over all cells of the layers."""
    with task("recording what should stay") as progress:
        problem = pose(live, [recipe], cell_map.layers, [targets], controls, progress)
    # Cells that answer to this name more than to others are worth more.
    worth = cell_map.mean_z.abs().flatten()
    with task("choosing cells") as progress:
        edits = pursue(problem, worth, max_cells=recipe.max_cells, lowest=recipe.min_multiplier, progress=progress)
    return edits, worth.numel()


def pose(
    live: LiveModel,
    recipes: Sequence[Recipe],
    layers: Sequence[int],
    targets: Sequence[Known],
    controls: Known,
    progress: Progress | None = None,
) -> Problem:
    """The search's problem: what is to be forgotten, by entity, and everything that the search may see of the rest.

    That is the search controls, prompts about other well-known entities, neutral texts in several languages, and
    common tokens; nothing in it shares a name with an entity or with a held-out control.
    """
    tokenizer = live.tokenizer
    names = [name for one in recipes for name in (one.entity, *one.aliases, *reserved_names(one))]
    # Any token may stand for the unknown answer: at the end of a prompt the whole distribution is compared.
    filler = tokenizer.eos_token_id or 0
    peers = [Continuation((*row.ids, filler), 1) for row in encode(tokenizer, peer_prompts(names))]
    others = [*continuations(tokenizer, controls.pairs), *peers]
    sentences = [*neutral_texts("search"), *FOREIGN_SENTENCES, *CODE_SNIPPETS]
    starts = [row.ids[:TEXT_TOKENS] for row in encode(tokenizer, sentences)]
    texts = [Continuation(ids, min(TEXT_ANSWER, len(ids) - 1)) for ids in starts if len(ids) > 1]
    beginning = encode(tokenizer, [BEFORE_TOKENS])[0].ids
    words = {word for name in names for word in name.split()}
    tokens = [Placed((*beginning, token), len(beginning)) for token in common_tokens(tokenizer, N_COMMON_TOKENS, words)]
    pairs = [pair for known in targets for pair in known.pairs]
    device = live.device
    return Problem(
        live,
        tuple(continuations(tokenizer, pairs)),
        torch.tensor([value for known in targets for value in known.before], device=device),
        torch.tensor([value for known in targets for value in known.unknown], device=device),
        torch.tensor([number for number, known in enumerate(targets) for _ in known.facts], device=device),
        (*others, *texts),
        len(controls.facts),
        observe(live, layers, others, texts, tokens, progress=progress),
    )


def reserved_names(recipe: Recipe) -> list[str]:
    """The entities of the held-out controls: all that the search learns of them, in order to keep away from them."""
    return sorted({fact.entity for fact in recipe.controls if fact.split == "held_out"})
