"""Every number of the experiments that was set by hand, in one place; what their users may set is checked here, too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from amnesia.errors import InputError


@dataclass(frozen=True)
class ExperimentSettings:
    """How the experiments go about it, where no option says otherwise.

    Injection. `placeholder`: the word in the entity's place. `factors`, each above 0: amplifications of a cell's own
    mean activation that are tried when none is given, each the double of the one before.

    Sufficiency. `n_clean`, 1 or more: entities in the clean run, as many as in the source. `max_unfrozen`, 1 or more:
    components that may join. `negligible`, in nats, 0 or more: what of the answers' mean log-probability a component
    must be worth to stay unfrozen.

    Robustness. `n_cells`, 1 or more: the entity's best cells, which are followed. `n_unrelated`, 1 or more: names to
    compare with. `top_rank`, 1 or more: a cell counts as recognizing a name when it is among so many cells of highest
    score for it.

    Atlas. `batch_entities`, 1 or more: entities that are localized, and written, together; what is lost at most when a
    process is killed. `patience`: how long a process waits for the others, as long as a large atlas may take.
    """

    placeholder: str = "XXX"
    factors: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    n_clean: int = 95
    max_unfrozen: int = 12
    negligible: float = 0.02
    n_cells: int = 5
    n_unrelated: int = 10
    top_rank: int = 100
    batch_entities: int = 8
    patience: timedelta = timedelta(days=7)


EXPERIMENTS = ExperimentSettings()


def check_n_prompts(n: int) -> None:
    """Raises InputError for fewer prompts than cosines vary over, and for more than there are."""
    from amnesia.facts.names import entity_templates  # The editor shares options, and should not wait for texts.

    if not 3 <= n <= len(entity_templates()):
        raise InputError(f"{n} prompts: give 3 to {len(entity_templates())}, for the cosines to vary")


def check_put(
    placeholder: str, *, strength: float | None = None, factor: float | None = None, value: float | None = None
) -> None:
    """Raises InputError for an empty placeholder, what is not finite, and both of a factor and a value."""
    if not placeholder.strip():
        raise InputError("the placeholder is empty: give a word to stand in the entity's place, for example X")
    if odd := [number for number in (strength, factor, value) if number is not None and not math.isfinite(number)]:
        raise InputError(f"{odd[0]} is no amount to inject: give a finite number")
    if factor is not None and value is not None:
        raise InputError("give either a value or a factor of the entity's own activation, not both")
