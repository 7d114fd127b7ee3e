"""What a report shows of a choice: which places it considered, and what the chosen directions answer to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from amnesia.choice.atoms import Name
from amnesia.choice.direction import DirectionChoice, Trial
from amnesia.choice.results import AnswerCounts, AnswerGroup, Answers, ScreenedPlace, Screening
from amnesia.directions.keys import name_rows, token_texts
from amnesia.edits import DirectionEdit, Edit, directions_of
from amnesia.live.watching import activations

BINS = 60
"""Of a histogram, over the range of all answers."""


def screening_of(choice: DirectionChoice, best: Trial) -> Screening:
    """All places of the name; the first of the trials says with which multiplier they were screened."""
    multiplier = choice.trials[0].multiplier
    # The last one first, for the first to stay: a chosen atom is measured again, on all facts.
    scores = {trial.atoms: trial.score for trial in reversed(choice.trials) if trial.multiplier == multiplier}
    chosen = {atom.place for atom in best.atoms}
    places = tuple(
        ScreenedPlace(*atom.place, atom.shift, scores.get((atom,)), atom.place in chosen)
        for atom in sorted(choice.atoms, key=lambda atom: atom.place)
    )
    n_tokens = 1 + max(atom.token for atom in choice.atoms)
    return Screening(token_texts(choice.name.live, choice.name.text, n_tokens), multiplier, places, choice.name.of)


def answers_of(name: Name, edits: Sequence[Edit]) -> Answers | None:
    """The answers of each direction to its name, to other names that are not reserved, and to text; None without any.

    Text is what harm is told by (`response.Response`), without first and last tokens.
    """
    moments, directions = name.moments, directions_of(edits)
    if not directions:
        return None
    rows = name_rows(name.live, name.text, 1 + max(edit.token for edit in directions))
    bystanders = moments.bystander_rows(name.is_reserved)
    last = torch.tensor([row.is_last for row in moments.names])
    found: dict[tuple[DirectionEdit, AnswerGroup], torch.Tensor] = {}
    for edit in directions:
        place, columns = moments.layers.index(edit.layer), list(edit.columns)
        read = torch.tensor(edit.read.array.copy(), device=moments.second.device)
        own = torch.cat([batch[:, 0] for _, batch in activations(name.live, rows[edit.token], [edit.layer])])
        found[edit, "entity"] = (own[:, columns] @ read).cpu()
        found[edit, "names"] = (
            moments.name_keys[bystanders if edit.token else bystanders & last, place][:, columns].float() @ read
        ).cpu()
        found[edit, "text"] = (moments.response.activations[:, place, columns].float() @ read).cpu()
    low, high = (end.item() for end in torch.cat(list(found.values())).aminmax())
    return Answers(low, high, tuple(_counts(*key, values, low, high) for key, values in found.items()))


def _counts(edit: DirectionEdit, group: AnswerGroup, values: torch.Tensor, low: float, high: float) -> AnswerCounts:
    size = values.abs()
    counts = tuple(map(int, torch.histc(values, BINS, low, high).tolist()))
    return AnswerCounts(
        edit.layer, edit.token, group, len(values), size.median().item(), size.quantile(0.99).item(), counts
    )
