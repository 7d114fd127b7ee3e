"""What the terms in `report.html` mean, each with an example computed from a row of the same report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia.edits import ColumnEdit
from amnesia.evaluation.labels import words
from amnesia.evaluation.results import PromptScore
from amnesia.numbers import flat, plus, positive, short, signed
from amnesia.report import view
from amnesia.report.content import Report, ShownEdit

NEIGHBORHOODS = {
    "shared_name": "its name has a word in common with the target's",
    "related": "it is the answer of a target fact, or shares one",
    "same_relation": "it is asked for the same relation as the target",
    "same_type": "it is of the same type as the target: a person, a place, a work",
    "unrelated": "it is of another type",
}


_RANK = "The place of the answer's first token among all tokens by probability; 0 is the most likely one."


@dataclass(frozen=True)
class Term:
    """A term, its meaning, and an example from the report, where it has a row to take one from."""

    name: str
    meaning: str
    example: str | None = None


def terms(report: Report) -> Iterator[Term]:
    """The terms that the sections of this report use."""
    scored = view.scored(report)
    targets = [row for row in scored if row.role == "target"]
    alone, example = view.is_alone(report), next(iter((*targets, *scored)), None)
    yield from _known_terms(example) if alone else _score_terms(example)
    asked = next((row for row in targets if row.before.exact_match is not None), None)
    yield Term(
        "Right answer (exact match)",
        "The model writes on freely after the prompt, always taking the most likely token. Its reply is right when its "
        "first line holds the answer, or another name of it, as whole words; case, accents and articles do not "
        "count, and punctuation parts words as a space does. Empty replies and refusals are counted apart.",
        None
        if asked is None
        else f"{asked.prompt}: the {'' if alone else 'edited '}model writes {_match_example(asked)}",
    )
    yield from _mean_terms(report)
    yield Term(
        "Search and held-out",
        "A search for cells may look at the search facts. Held-out facts only judge: no search has seen them.",
    )
    yield from _damage_terms(report)
    if report.stress is not None:
        yield Term(
            "Never-known name",
            "The same attack on a name that the model has never known. What it answers there comes from the attack "
            "itself: an attack brings knowledge back only as far as the entity does better than this name.",
        )
    if any(row.neighborhood for row in report.prompts):
        yield Term(
            "Neighborhood",
            "How close a control is to the target; the first that holds counts. "
            + " ".join(f"{words(name).capitalize()}: {text}." for name, text in NEIGHBORHOODS.items()),
        )
    if report.changed is not None:
        yield Term(
            "Cell, direction and multiplier",
            "A cell is one MLP neuron. What it writes into the model is one column of the layer's output projection. "
            "An edit of a cell multiplies its column. A direction is a weighted set of cells that fire together: "
            "their weighted sum u·a is 1 at the entity's name and near 0 at everything else. An edit of a direction "
            "multiplies what the layer writes about the entity, or all that the residual stream behind the layer "
            "carries of it, and changes the columns of these cells alone. 0 takes this away, −1 makes it the opposite.",
            _cell_example(report.changed.edits),
        )


def score_example(row: PromptScore) -> str:
    """The arithmetic of one knowledge score."""
    after, before, unknown = row.after.logprob, row.before.logprob, view.unknown_of(row)
    return (
        f"({signed(after, 3)} − ({signed(unknown, 3)})) / ({signed(before, 3)} − ({signed(unknown, 3)})) = "
        f"{signed(after - unknown, 3)} / {signed(before - unknown, 3)} = {signed(view.score_of(row))}."
    )


def _score_terms(row: PromptScore | None) -> Iterator[Term]:
    """The terms of knowledge scores, with the scored prompt `row` as the example."""
    fact = None if row is None else _fact(row)
    yield Term(
        "Knowledge score",
        "How much of a fact is left: (log p after − log p unknown) / (log p before − log p unknown). 1 is as before "
        "the edit, 0 is like an unknown name, and below 0 the answer is even less likely than that. log p is the "
        "natural logarithm of the probability of the whole answer after the prompt, summed over the answer's tokens; "
        "its unit is the nat.",
        None if row is None else f"{fact}: {score_example(row)}",
    )
    yield _unknown_term(row)
    yield Term(
        "Knowledge score, first token",
        "The same for the first token of the answer alone. It flatters edits that change only how an answer begins.",
        None
        if row is None or row.knowledge_score_first is None
        else f"{fact}: {signed(row.knowledge_score_first)}, against {signed(view.score_of(row))} for the whole answer.",
    )
    yield Term(
        "Answer rank",
        _RANK,
        None if row is None else f"{fact}: {row.before.rank:,} before, {row.after.rank:,} after.",
    )


def _known_terms(row: PromptScore | None) -> Iterator[Term]:
    """The terms of what one model knows, of which there is no before and after."""
    fact = None if row is None else _fact(row)
    yield Term(
        "log p",
        "The natural logarithm of the probability of the whole answer after the prompt, summed over the answer's "
        "tokens; its unit is the nat.",
        None if row is None else f"{fact}: {signed(row.before.logprob)} nats.",
    )
    yield _unknown_term(row)
    yield Term("Answer rank", _RANK, None if row is None else f"{fact}: {row.before.rank:,}.")


def _unknown_term(row: PromptScore | None) -> Term:
    return Term(
        "Unknown name",
        "log p unknown is the mean of the answer's log-probability in the model, before any edit, when the name is "
        "replaced by names that it cannot know anything about (Michael, Sarah, David, John, Itay).",
        None if row is None else f"{_fact(row)}: {signed(view.unknown_of(row))} nats.",
    )


def _fact(row: PromptScore) -> str:
    return f"“{row.prompt}” → “{row.answer}”"


def _match_example(row: PromptScore) -> str:
    answers = " or ".join(f"“{text}”" for text in (row.answer, *row.answer_aliases))
    said = flat(row.after.generated or "", 120)
    return f"“{said}”; right is {answers}: {'yes' if row.after.exact_match else 'no'}."


def _mean_terms(report: Report) -> Iterator[Term]:
    one, alone = next(iter(view.whole(report)), None), view.is_alone(report)
    values = [] if one is None or alone else view.scores_behind(one, report)
    interval = None if one is None else one.knowledge_score
    yield Term(
        "Mean and 95 % interval",
        "The mean over the scored facts. The interval is a percentile bootstrap: facts are drawn again with "
        "replacement, the mean is taken each time, and the middle 95 % of these means are kept. "
        + ("" if alone else "Changes are drawn in pairs, each fact with its value before and after. ")
        + "Few facts give a wide interval; it says nothing of facts of "
        "another kind.",
        None
        if not values or interval is None
        else f"{len(values)} facts, scores summing to {signed(sum(values))}: mean {signed(sum(values))} / "
        f"{len(values)} = {signed(interval.mean)}, interval {signed(interval.low)} to "
        f"{signed(interval.high)}.",
    )
    excluded = next((row for row in report.prompts if row.excluded), None)
    yield Term(
        "Excluded fact",
        "A fact that the model does not know to begin with. It cannot be forgotten, so it is counted and listed, and "
        "has no score.",
        None if excluded is None else f"{_fact(excluded)}: {excluded.excluded}.",
    )


def _damage_terms(report: Report) -> Iterator[Term]:
    harm, alone = report.damage, view.is_alone(report)
    before, after = harm.perplexity_before, harm.perplexity_after
    yield Term(
        "Perplexity per word",
        "How surprised a model is by neutral text: e to the power of (−log p of the text / its number of words). "
        "Lower is better. The texts come with amnesia and have nothing to do with any target.",
        f"{signed(math.log(before), 3)} nats per word{'' if alone else ' before'}: e^{math.log(before):.3f} = "
        f"{positive(before)}"
        + ("." if alone else f"; after the edit {positive(after)}, a ratio of {positive(harm.perplexity_ratio, 3)}."),
    )
    text = next((row for row in harm.texts if row.kl is not None), None)
    if not alone and (text is not None or harm.kl_controls is not None):
        yield Term(
            "KL divergence",
            "How far the edited model's distribution over the next token departs from the original's: the sum over all "
            "tokens of p × log(p / q), averaged over the places of the text, in nats per token. 0 means the same "
            "distribution. For controls it is taken along what the original model writes after their prompts.",
            None
            if text is None or text.kl is None
            else f"{text.register} ({text.language}): {signed(text.kl, 4)} nats per token over {text.n_tokens:,} "
            "tokens.",
        )


def _cell_example(edits: Sequence[ShownEdit]) -> str:
    one = edits[0]
    if isinstance(one, ColumnEdit):
        cell = one.cell
        expert = "" if cell.expert is None else f", expert {cell.expert}"
        return f"layer {cell.layer}{expert}, neuron {cell.neuron}, multiplier {short(one.multiplier)}."
    place = max(range(len(one.columns)), key=lambda n: abs(one.read[n]))
    return (
        f"layer {one.layer}, {len(one.columns)} cells, the largest weight {plus(one.read[place], 3)} at neuron "
        f"{one.columns[place]}, multiplier {short(one.multiplier)}."
    )
