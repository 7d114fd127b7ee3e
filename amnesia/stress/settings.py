"""Every number of the stress tests that was set by hand, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StressSettings:
    """How much is tried to bring knowledge back. All set by hand, for the reasons given, and not measured.

    `n_facts`, `n_controls`: facts about the target and about others (1 or more); each of the former becomes dozens of
    questions, so that time grows with them. `n_typos`: misspelled names (1 or more, fewer where a name is short), so
    that not all hangs on one letter. `n_solved`: solved facts about others before a question (0 or more), enough to
    show its form. `n_examples`: questions of an attack that a report shows (0 or more), one for each form of the
    attack with the most. `methods`: of `quantization.METHODS`, from eight bits to the fewest that can be written.

    Training is of a LoRA adapter of rank `rank` (1 or more; the default of PEFT), with `batch` texts for each step (1
    or more; fewer where there are fewer) and AdamW at `learning_rate` (above 0), which is high, so that one fact is
    learned within the steps. `steps`: numbers of steps after which the model is asked, 0 or more, increasing;
    0 is before any, and each further one about the double of the one before.
    """

    n_facts: int = 8
    n_controls: int = 8
    n_typos: int = 2
    n_solved: int = 3
    n_examples: int = 6
    methods: tuple[str, ...] = ("int8", "Q8_0", "Q5_0", "Q4_0")
    rank: int = 8
    learning_rate: float = 1e-3
    batch: int = 4
    steps: tuple[int, ...] = (0, 5, 10, 20, 50)
