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
    attack with the most. `methods`: of `quantization.METHODS`, those that people use, from eight bits to two.
    """

    n_facts: int = 8
    n_controls: int = 8
    n_typos: int = 2
    n_solved: int = 3
    n_examples: int = 6
    methods: tuple[str, ...] = ("int8", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0", "NF4")


@dataclass(frozen=True)
class Way:
    """A way to fine-tune: all weights, or a LoRA adapter of `rank` on every linear layer; AdamW at `learning_rate`."""

    name: str
    learning_rate: float
    rank: int | None = None


LORA = Way("LoRA", 2e-4, 8)
"""The rank that PEFT gives by default, at the rate of "QLoRA: Efficient Finetuning of Quantized LLMs" (Dettmers et al.,
2023, arXiv:2305.14314). At 1e-3, 25 steps on one fact took from SmolLM2-135M all else that it knew of Steve Jobs, and
unlearning overshot its goal within 5 steps."""

FULL = Way("full", 5e-5)
"""All weights, at the rate that the Trainer of transformers has by default."""


WAYS = (LORA, FULL)


@dataclass(frozen=True)
class Unlearning:
    """LoRA unlearning, with which edits are compared: negative preference optimization with a KL term.

    The losses are those of "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning"
    (Zhang, Lin, Bai and Mei, 2024, arXiv:2404.05868), with its `beta` of 0.1 and equal weights of both; as `beta` goes
    to 0, the first becomes gradient ascent, which 0 stands for. It ends when
    the mean knowledge score of what is to be forgotten is at most `goal` (what an edit aims at), which is looked at
    each `every` steps, or after `most` steps. `batch`: facts, and as many texts to keep, for each step, of which
    at most `max_learned` tokens are learned or kept, which is more than the sentences of this package have.
    """

    way: Way = LORA
    beta: float = 0.1
    kl_weight: float = 1.0
    batch: int = 4
    max_learned: int = 64
    goal: float = 0.0
    every: int = 2
    most: int = 200


ASKED_AT = (1 / 20, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a training after which a model is asked: closer together at the beginning, to see what comes back early."""


@dataclass(frozen=True)
class RelearningSettings:
    """How a model is fine-tuned: in which `ways`, each by `most` steps (1 or more).

    Set by hand: `n_facts` and `n_controls` as in `StressSettings`, `batch` texts for each step (fewer where there are
    fewer), of which `max_learned` tokens at most are learned, which no answer of this package has in SmolLM2. 100 steps
    are one pass over these instructions. `n_texts` texts about the entity are sampled, `text_tokens` long.
    """

    n_facts: int = 8
    n_controls: int = 8
    ways: tuple[Way, ...] = WAYS
    most: int = 100
    batch: int = 4
    max_learned: int = 64
    n_texts: int = 48
    text_tokens: int = 48
    unlearning: Unlearning = Unlearning()

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps after which a model is asked, increasing from 0."""
        return tuple(sorted({0, *(round(share * self.most) for share in ASKED_AT)}))
