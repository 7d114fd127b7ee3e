"""Every number of the probes that was set by hand, in one place."""

from __future__ import annotations

from dataclasses import dataclass

FOUND = 0.2
"""Share of facts above chance and that of a never-known name from which a probe finds what a model knows."""


@dataclass(frozen=True)
class ProbeSettings:
    """How much is asked. All set by hand, for the reasons given, and not measured.

    `n_facts`, `n_controls`: facts about the target and about others (1 or more) for each probe, and half as many once
    more as messages to a chat model; time grows with them.
    `n_options`: options of a multiple choice (2 or more), fewer where there are not as many answers. `n_samples`:
    answers that are drawn to each question (1 or more), of which the first of `counts` are looked at. `n_tokens`,
    `n_biography`: tokens of a drawn answer and of a free text. `top_rank`: an answer counts as read out at a layer when
    fewer than so many tokens are likelier than its first. `seed` is that of orders and draws.
    """

    n_facts: int = 8
    n_controls: int = 8
    n_options: int = 4
    n_samples: int = 20
    counts: tuple[int, ...] = (1, 5, 20)
    n_tokens: int = 12
    n_biography: int = 64
    top_rank: int = 10
    seed: int = 0
