"""Fine-tune a model in memory for a few steps and watch what comes back.

One of the modules that change live models: training touches a LoRA adapter alone, which is taken off when it ends.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from amnesia.errors import InputError, NumericalError
from amnesia.live.batches import collate
from amnesia.live.model import LiveModel
from amnesia.live.tokens import encode
from amnesia.progress import Progress
from amnesia.stress.settings import StressSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Observed(Generic[T]):
    """What was seen after `step` steps of training; `loss` is in nats per token of the first batch of the texts."""

    step: int
    loss: float
    seen: T


def untrainable(live: LiveModel) -> str | None:
    """Why a model cannot be trained, or None when it can."""
    absent = any(parameter.is_meta for parameter in live.model.parameters())
    return "part of the weights is not in memory" if absent else None


def relearn(
    live: LiveModel,
    texts: Sequence[str],
    settings: StressSettings,
    observe: Callable[[], T],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Observed[T], ...]:
    """Train a LoRA adapter on `texts`, and call `observe` after each of `settings.steps` (0 is before the first).

    The adapter is on every linear layer but the head, and is trained by AdamW with a constant learning rate. Equal
    arguments give equal results. The model, its weights bit for bit, is afterwards as before.
    Raises InputError for steps that do not increase, and NumericalError when the loss is NaN or infinite.
    """
    steps = settings.steps
    if not steps or list(steps) != sorted({*steps}) or steps[0] < 0:
        raise InputError(f"steps {', '.join(map(str, steps))}: expected increasing numbers from 0, for example 0,5,10")
    rows = [item.ids for item in encode(live.tokenizer, texts)]
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    size = min(settings.batch, len(rows))
    first = order[:size]
    found = []
    with torch.random.fork_rng(devices=[]), _adapted(live, settings.rank, seed) as weights, torch.enable_grad():
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate)
        for step in range(steps[-1] + 1):
            if step in steps:
                with torch.no_grad():
                    loss = _loss(live, rows, first).item()
                    found.append(Observed(step, loss, observe()))
            if step < steps[-1]:
                batch = [order[(step * size + n) % len(order)] for n in range(size)]
                optimizer.zero_grad()
                _loss(live, rows, batch).backward()
                optimizer.step()
                if progress:
                    progress(size)
    return tuple(found)


def _loss(live: LiveModel, rows: Sequence[Sequence[int]], indices: Sequence[int]) -> Tensor:
    """Mean negative log-probability (nats) of every token but the first of each row."""
    batch = collate(live, rows, indices)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    logits = live.model(**batch.inputs, use_cache=False).logits[:, :-1].float()
    # A row's first token is predicted from padding, or from nothing.
    wanted = ids[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    if not torch.isfinite(loss):
        raise NumericalError(f"training {live.name} gives a loss of {loss.item()}: the model is damaged")
    return loss


@contextlib.contextmanager
def _adapted(live: LiveModel, rank: int, seed: int) -> Generator[list[Tensor]]:
    """The weights of a fresh LoRA adapter, which acts in the model while the block runs."""
    from peft import LoraConfig, get_peft_model

    frozen = {name: parameter.requires_grad for name, parameter in live.model.named_parameters()}
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    had = set(vars(live.model))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # It tells of what it does for GPT-2 and for experts, and calls what is deprecated elsewhere.
        for category in (UserWarning, FutureWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        wrapped = get_peft_model(live.model, config)
    try:
        yield [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    finally:
        wrapped.unload()
        for name in set(vars(live.model)) - had:
            delattr(live.model, name)
        for name, parameter in live.model.named_parameters():
            parameter.requires_grad_(frozen[name])
