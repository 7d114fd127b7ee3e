"""What probes came to, as `report.json` has it."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia.evaluation.results import Estimate

MESSAGE = "message"
"""The probe that asks a chat model sentences and questions as messages."""

AS_MESSAGE = "_as_message"
"""The end of the names of other probes where a chat model is asked the same as messages."""


@dataclass(frozen=True)
class ProbeScore:
    """The share of `n` facts, with its interval, of one subject and one model; a fact may count in part.

    Subjects are "entity", "control" and "never_known", models "original" and "edited".
    """

    subject: str
    model: str
    n: int
    share: Estimate


@dataclass(frozen=True)
class Probe:
    """One way of asking: `measure` says what the shares are of, `chance` what a model that knows nothing comes to.

    `shows_knowledge` says whether a higher share means that more is known; of replies that are wrong or that decline,
    it does not. `found` says whether the original model shows more knowledge of the entity than of a never-known name;
    where it does not, the probe says nothing of an edit. Without rows, `not_applicable` says why.
    """

    probe: str
    description: str
    measure: str
    chance: float
    shows_knowledge: bool
    found: bool
    rows: tuple[ProbeScore, ...]
    not_applicable: str | None


@dataclass(frozen=True)
class LensCurve:
    """The median rank (0 is best) of the first token of `n` answers, layer by layer, read out at a place of the prompt.

    `place` is "name", the entity's last token, or "answer", the token before the answer.
    """

    place: str
    subject: str
    model: str
    n: int
    ranks: tuple[float, ...]


@dataclass(frozen=True)
class FreeText:
    """What each model writes when it is told to write about a name; None of a model that was not asked."""

    subject: str
    prompt: str
    original: str
    edited: str | None


@dataclass(frozen=True)
class Probes:
    """All probes of one or two models; `never_known` are the invented names."""

    n_facts: int
    n_controls: int
    n_samples: int
    never_known: tuple[str, ...]
    probes: tuple[Probe, ...]
    lens: tuple[LensCurve, ...]
    texts: tuple[FreeText, ...]
