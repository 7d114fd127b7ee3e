"""Results of an evaluation: what prompts were worth before and after, their aggregates, damage, curves, findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amnesia.domain import Answer, Neighborhood, Role, Split

Level = Literal["damage", "warning", "info", "good"]
ALL = "all"
"""The group of all facts of a role and split."""

MESSAGES = "form:message"
"""The group of what is asked as messages to a chat model."""


@dataclass(frozen=True)
class PromptScore:
    """What one fact was worth before and after the edit.

    `logprob_unknown` (nats) is that of the answer for an unknown entity, in the original model. `knowledge_score` is
    (after − unknown) / (before − unknown): 1 as before, 0 like an unknown entity; `knowledge_score_first` is the same
    for the answer's first token alone. `kl` (nats per token) is how far the edited model departs from the original
    along the original's own continuation, where that was measured. `excluded` is the reason why the fact is not
    scored, or None; such facts have no generated texts either. `is_message` says that the prompt is a message to a chat
    model.
    """

    role: Role
    split: Split
    entity: str
    prompt: str
    answer: str
    before: Answer
    after: Answer
    logprob_unknown: float | None
    knowledge_score: float | None
    knowledge_score_first: float | None
    excluded: str | None = None
    answer_aliases: tuple[str, ...] = ()
    neighborhood: Neighborhood | None = None
    relation: str | None = None
    popularity: str | None = None
    kl: float | None = None
    is_message: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class AnswerSummary:
    """One model's answers to scored prompts: share of exact matches, median rank, empty replies and refusals.

    What depends on generated text is None where none was generated.
    """

    exact_match: Estimate | None
    rank: float
    n_empty: int | None
    n_refused: int | None


@dataclass(frozen=True)
class Aggregate:
    """The scored prompts of one role and split, or of one group of them, taken together.

    `group` is "all", "neighborhood:…", "popularity:…" or "relation:…", or "form:message", whose prompts are in none of
    the others. `n_excluded` counts prompts of the group that were not scored. `exact_match_change` is the mean change
    of a prompt, with the interval of the pairs. What was not measured is None.
    """

    role: Role
    split: Split
    group: str
    n: int
    n_excluded: int
    knowledge_score: Estimate
    knowledge_score_first: Estimate | None
    before: AnswerSummary
    after: AnswerSummary
    exact_match_change: Estimate | None


@dataclass(frozen=True)
class TextScore:
    """Neutral text of one register: perplexity per word of each model, and the divergence between them.

    `kl` is the mean of KL(original || edited) over the tokens, in nats; None where there is no second model, or where
    the two do not share their tokens. `n_tokens` are the scored ones of the original model, `n_words` the words.
    """

    register: str
    language: str
    n_tokens: int
    n_words: int
    perplexity_before: float
    perplexity_after: float
    kl: float | None


@dataclass(frozen=True)
class LanguageScore:
    """The neutral text of one language, all registers together.

    Perplexities are per word. `bits_before` and `bits_after` are bits per character, which can be compared between
    languages. `fluent` says whether the original model needs little more of them than in its English, see
    `damage.FLUENT`.
    """

    language: str
    n_words: int
    n_characters: int
    perplexity_before: float
    perplexity_after: float
    bits_before: float
    bits_after: float
    fluent: bool

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity after the edit over that before it."""
        return self.perplexity_after / self.perplexity_before


@dataclass(frozen=True)
class AbilityField:
    """Questions of one field, and how many of them each model answers correctly."""

    field: str
    n: int
    right_before: int
    right_after: int


@dataclass(frozen=True)
class Ability:
    """Shares of `n` multiple-choice questions about common things for which the right option is the likeliest.

    `chance` is the share of a model that knows nothing; `change` has the interval of the pairs.
    """

    n: int
    chance: float
    before: Estimate
    after: Estimate
    change: Estimate
    fields: tuple[AbilityField, ...]


@dataclass(frozen=True)
class Damage:
    """What an edit does to texts that have nothing to do with its target.

    Perplexities are per word, over all neutral text; `kl_controls` is the mean over control prompts of their `kl`.
    """

    perplexity_before: float
    perplexity_after: float
    texts: tuple[TextScore, ...]
    kl_controls: Estimate | None
    languages: tuple[LanguageScore, ...] = ()
    ability: Ability | None = None

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity after the edit over that before it."""
        return self.perplexity_after / self.perplexity_before


@dataclass(frozen=True)
class ScoreCurve:
    """Mean knowledge score at each multiplier and its standard error (0 for a single fact), over `n` scored facts."""

    role: Role
    n: int
    n_excluded: int
    mean: tuple[float, ...]
    standard_error: tuple[float, ...]


@dataclass(frozen=True)
class StrengthSweep:
    """Curves of targets and controls over the `strengths` of an edit; a role without known facts has no curve."""

    strengths: tuple[float, ...]
    curves: tuple[ScoreCurve, ...]


@dataclass(frozen=True)
class Finding:
    """One plain sentence about the result, and how serious it is."""

    level: Level
    text: str
