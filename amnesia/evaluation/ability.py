"""What a model can do that has nothing to do with any target: multiple choice, scored by likelihood.

The option whose log-probability after the prompt is highest is what the model chooses; nothing is generated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from amnesia.evaluation.measurement import Asked, measure
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.results import Ability, AbilityField
from amnesia.evaluation.scores import mean_interval
from amnesia.facts.ability import N_OPTIONS, ChoiceQuestion, ability_questions
from amnesia.progress import Progress


def right_choices(
    live: Asked, progress: Progress | None = None, cache: MeasurementCache | None = None
) -> tuple[bool, ...]:
    """Whether the model chooses the right option of each question of the package, in their order."""
    found = measure(
        live, [(row.prompt, option) for row in ability_questions() for option in row.options], progress, cache
    )

    def is_right(row: ChoiceQuestion) -> bool:
        right, *wrong = (found[row.prompt, option].logprob for option in row.options)
        return right > max(wrong)

    return tuple(map(is_right, ability_questions()))


def ability(before: Sequence[bool], after: Sequence[bool] | None) -> Ability:
    """The right choices of two models, or of the first alone."""
    ends = before if after is None else after
    fields: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(ability_questions()):
        fields[row.field].append(place)
    return Ability(
        len(before),
        1 / N_OPTIONS,
        mean_interval([float(right) for right in before]),
        mean_interval([float(right) for right in ends]),
        mean_interval([float(new) - float(old) for old, new in zip(before, ends, strict=True)]),
        tuple(
            AbilityField(name, len(places), *(sum(one[place] for place in places) for one in (before, ends)))
            for name, places in fields.items()
        ),
    )
