"""Results of stress tests of an original and an edited model: attacks and quantization; relearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia.evaluation.results import Estimate

MODELS = ("original", "edited")

ATTACK_NAMES: Mapping[str, str] = {
    "plain": "the plain question",
    "paraphrase": "other wording",
    "prefix_injection": "reply begun",
    "affirmative_suffix": "assured",
    "role_play": "in a role",
    "self_correction": "in several turns",
    "alias": "other name",
    "misspelling": "misspelled",
    "other_language": "other language",
    "in_context_hint": "after a hint",
    "reverse": "asked backwards",
    "two_hop": "described",
    "three_hop": "described in two steps",
}
"""What attacks are called wherever people read of them, with the question that they are compared with."""

OWN_SCALE = "this question"
"""The `scale` of attacks whose questions have other answers than the facts: each is measured by itself."""


@dataclass(frozen=True)
class StressScore:
    """Mean knowledge score over `n` facts (each the mean of its prompts), and the share of exact matches."""

    subject: str
    model: str
    n: int
    n_prompts: int
    knowledge_score: Estimate | None
    exact_match: float | None


@dataclass(frozen=True)
class AttackForm:
    """The rows of one form of an attack."""

    variant: str
    rows: tuple[StressScore, ...]


@dataclass(frozen=True)
class Example:
    """A question of an attack about the entity, and what each model wrote."""

    variant: str
    prompt: str
    answer: str
    generated_original: str
    generated_edited: str


@dataclass(frozen=True)
class AttackResult:
    """One attack: `rows` over all its questions, `variants` by form; no rows where it is not applicable.

    `scale` says what a knowledge score of 1 is: what the original model makes of the plain question, or of this one.
    `found` says whether the original model shows in it that it knows the entity; where it does not, the attack says
    nothing of an edit.
    """

    attack: str
    description: str
    scale: str
    n_not_built: int
    n_not_known: int
    found: bool
    rows: tuple[StressScore, ...]
    variants: tuple[AttackForm, ...]
    examples: tuple[Example, ...]
    not_applicable: str | None


@dataclass(frozen=True)
class QuantizationResult:
    """Target facts and controls with quantized weights; no rows where the method is not applicable.

    `found` is that of `AttackResult`.
    """

    method: str
    description: str
    found: bool
    rows: tuple[StressScore, ...]
    not_applicable: str | None


@dataclass(frozen=True)
class RelearningStep:
    """After `step` steps: loss (nats per token) on the trained text, and mean knowledge scores."""

    step: int
    loss: float
    knowledge_score: Estimate
    control: Estimate | None


@dataclass(frozen=True)
class RelearningResult:
    """One training: on what text and in which way, which model, and about whom the `n` facts are that were asked.

    `model` is "original", "edited" or "unlearned": the original after LoRA unlearning. `subject` is of `TRAINED_ABOUT`;
    where it says so, the facts, and those of `control` in the steps, are asked as messages. Without steps there is why.
    """

    text: str
    example: str
    way: str
    model: str
    subject: str
    n: int
    steps: tuple[RelearningStep, ...]
    not_applicable: str | None


@dataclass(frozen=True)
class Relearning:
    """All trainings; `never_known` is the invented name.

    LoRA unlearning took `unlearning_steps`, or could not be done for the reason in `no_unlearning`.
    """

    n_facts: int
    n_controls: int
    never_known: str
    unlearning_steps: int | None
    no_unlearning: str | None
    runs: tuple[RelearningResult, ...]


TRAINED_ON: Mapping[str, str] = {
    "instructions": "instructions about other things",
    "about the entity": "other text about it",
    "one fact": "one fact, which was not asked",
}
"""What was trained on, as part of a sentence."""

AS_MESSAGE = "_as_message"
"""The end of the names of subjects that are asked about in messages to a chat model."""

TRAINED_ABOUT: Mapping[str, str] = {
    "entity": "",
    "never_known": "an invented name",
    f"entity{AS_MESSAGE}": "as messages",
    f"never_known{AS_MESSAGE}": "an invented name, as messages",
}
"""What else is to be said of whom is asked about while a model is trained, beside the name of the entity."""

TRAINED_MODELS: Mapping[str, str] = {
    "original": "original",
    "unlearned": "LoRA unlearning",
    "edited": "edited",
}

Runs = Mapping[tuple[str, str], RelearningResult]
"""The runs of one training by model and subject."""


def by_training(relearning: Relearning) -> dict[tuple[str, str], dict[tuple[str, str], RelearningResult]]:
    """The runs that were made, by text and way, and then by model and subject."""
    found: dict[tuple[str, str], dict[tuple[str, str], RelearningResult]] = {}
    for run in relearning.runs:
        if run.steps:
            found.setdefault((run.text, run.way), {})[run.model, run.subject] = run
    return found


@dataclass(frozen=True)
class Stress:
    """All that was tried on two models; `never_known` are the invented names."""

    n_facts: int
    n_controls: int
    never_known: tuple[str, ...]
    attacks: tuple[AttackResult, ...]
    quantization: tuple[QuantizationResult, ...]
