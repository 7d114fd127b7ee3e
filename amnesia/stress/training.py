"""Fine-tune a model in memory, and watch what becomes of it.

One of the modules that change live models: whatever happens, every weight is what it was when the training ends.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from amnesia.errors import InputError, NumericalError
from amnesia.live.batches import one_pass
from amnesia.live.model import LiveModel
from amnesia.live.places import at_head
from amnesia.live.tokens import Continuation, continuations, encode
from amnesia.progress import Progress
from amnesia.stress.settings import Way

T = TypeVar("T")
Lesson = tuple[str, str]
"""What is given and what is learned after it; where nothing is given, all of the text is learned."""


@dataclass(frozen=True)
class Observed(Generic[T]):
    """What was seen after `step` steps of training; `loss` is in nats per token of the first batch of the texts."""

    step: int
    loss: float
    seen: T


def untrainable(live: LiveModel, way: Way) -> str | None:
    """Why a model cannot be trained in a way, or None when it can."""
    if any(parameter.is_meta for parameter in live.model.parameters()):
        return "part of the weights is not in memory"
    if way.rank is None and live.model.dtype != torch.float32:
        return f"steps of this size are lost in the rounding of {live.model.dtype}: load the model in float32"
    return None


def rows_of(live: LiveModel, lessons: Sequence[Lesson], max_learned: int) -> list[Continuation]:
    """The tokens of lessons, of which the learned ones are the answer; each is cut off after `max_learned` of these.

    What is given counts for nothing: a chat template may put a long message of its own before every lesson.
    """
    free = [text for given, text in lessons if not given]
    rows = [Continuation(item.ids, len(item.ids) - 1) for item in encode(live.tokenizer, free)]
    rows += continuations(live.tokenizer, [lesson for lesson in lessons if lesson[0]])
    over = ((row, max(0, row.n_answer - max_learned)) for row in rows)
    cut = (Continuation(row.ids[: len(row.ids) - n], row.n_answer - n) for row, n in over)
    return [row for row in cut if row.n_answer > 0]


def fine_tune(
    live: LiveModel,
    rows: Sequence[Continuation],
    way: Way,
    steps: Sequence[int],
    observe: Callable[[], T],
    *,
    batch: int,
    start: Callable[[], None] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Observed[T], ...]:
    """Train on the answers of `rows` at a constant rate, and call `observe` after each of `steps` (0 is before any).

    `start` may change weights before the first step; with all else, that is undone at the end. Equal arguments give
    equal results. Raises InputError for steps that do not increase, and NumericalError when the loss is NaN or
    infinite.
    """
    if not steps or list(steps) != sorted({*steps}) or steps[0] < 0:
        raise InputError(f"steps {', '.join(map(str, steps))}: expected increasing numbers from 0, for example 0,5,10")
    draw = Draw(rows, batch, seed)
    first = draw.next()
    draw = Draw(rows, batch, seed)
    found = []
    with contextlib.ExitStack() as stack:
        if way.rank is None or start is not None:
            stack.enter_context(kept(live))
        if start is not None:
            start()
        stack.enter_context(trainable(live, way, seed))
        for step in range(steps[-1] + 1):
            if step in steps:
                with torch.no_grad():
                    found.append(Observed(step, loss(live, first).item(), observe()))
            if step < steps[-1]:
                loss(live, draw.next()).backward()
                if progress:
                    progress(1)
    return tuple(found)


class Draw(Generic[T]):
    """Batches of `items`, of all in turn before any comes again, in an order that the seed says."""

    def __init__(self, items: Sequence[T], batch: int, seed: int) -> None:
        self._order = random.Random(seed).sample(items, len(items))
        self._size = min(batch, len(items))
        self._place = 0

    def next(self) -> list[T]:
        """The next batch."""
        found = [self._order[(self._place + n) % len(self._order)] for n in range(self._size)]
        self._place += self._size
        return found


def answered(live: LiveModel, rows: Sequence[Continuation]) -> tuple[Tensor, Tensor]:
    """Float32 logits (tokens, vocabulary) where the learned tokens of all rows are predicted, and these (tokens,).

    Row by row, in their order, by one forward pass over all rows, and by the head at these places alone.
    """
    # What a row's last token predicts is not asked for.
    one = one_pass(live, [row.ids[:-1] for row in rows])
    by_row = {
        index: [(line, slot) for slot in slots[-rows[index].n_answer :]]
        for index, line, slots in zip(one.indices, one.lines, one.slots, strict=True)
    }
    lines, places = zip(*(spot for index in range(len(rows)) for spot in by_row[index]), strict=True)
    with at_head(live, torch.tensor(lines), torch.tensor(places)):
        logits = live.model(**one.inputs, use_cache=False).logits[0].float()
    wanted = [token for row in rows for token in row.ids[-row.n_answer :]]
    return logits, torch.tensor(wanted, device=logits.device)


def loss(live: LiveModel, rows: Sequence[Continuation]) -> Tensor:
    """Mean negative log-probability (nats) of the tokens that are learned."""
    return checked(live, nn.functional.cross_entropy(*answered(live, rows)))


def checked(live: LiveModel, value: Tensor) -> Tensor:
    """The loss itself; raises NumericalError when it is NaN or infinite."""
    if not torch.isfinite(value):
        raise NumericalError(f"training {live.name} gives a loss of {value.item()}: the model is damaged")
    return value


@contextlib.contextmanager
def kept(live: LiveModel) -> Generator[None]:
    """Every weight is what it was when the block ends."""
    before = [(parameter, parameter.detach().clone()) for parameter in live.model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


@contextlib.contextmanager
def trainable(live: LiveModel, way: Way, seed: int) -> Generator[Any]:
    """Every call of `backward` is a step of AdamW while the block runs: of all weights, or of a fresh LoRA adapter.

    Yields the model that PEFT wraps, None without an adapter. A weight is stepped as soon as its gradient is there, so
    that gradients of all weights are never in memory together.
    """
    frozen = {name: parameter.requires_grad for name, parameter in live.model.named_parameters()}
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack, torch.enable_grad():
        stack.callback(_freeze, live, frozen)
        wrapped = None
        if way.rank is None:
            live.model.requires_grad_(True)
        else:
            wrapped = stack.enter_context(_adapter(live, way.rank, seed))
        for parameter in [found for found in live.model.parameters() if found.requires_grad]:
            stack.enter_context(_stepping(parameter, way.learning_rate))
        yield wrapped


def _freeze(live: LiveModel, frozen: dict[str, bool]) -> None:
    for name, parameter in live.model.named_parameters():
        parameter.requires_grad_(frozen.get(name, False))
        parameter.grad = None


@contextlib.contextmanager
def _stepping(parameter: nn.Parameter, learning_rate: float) -> Generator[None]:
    optimizer = torch.optim.AdamW([parameter], lr=learning_rate)

    def step(weight: Tensor) -> None:
        optimizer.step()
        weight.grad = None

    handle = parameter.register_post_accumulate_grad_hook(step)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _adapter(live: LiveModel, rank: int, seed: int) -> Generator[Any]:
    """A model of PEFT with a fresh LoRA adapter on every linear layer but the head, which acts in `live`, too."""
    from peft import LoraConfig, get_peft_model

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
        yield wrapped
    finally:
        wrapped.unload()
        for name in set(vars(live.model)) - had:
            delattr(live.model, name)


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to the weight of one linear layer: `scale` · B·A, transposed where the weight is."""

    module: str
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool


def deltas(live: LiveModel) -> tuple[Delta, ...]:
    """The adapter that acts in a model, by the names that its layers have without it."""
    from peft.tuners.lora import Linear

    return tuple(
        Delta(
            name,
            module.lora_A["default"].weight.detach().clone(),
            module.lora_B["default"].weight.detach().clone(),
            module.scaling["default"],
            module.fan_in_fan_out,
        )
        for name, module in live.model.named_modules()
        if isinstance(module, Linear)
    )


@torch.no_grad()
def add(live: LiveModel, adapter: Iterable[Delta]) -> None:
    """Add an adapter to the weights, permanently."""
    for delta in adapter:
        weight = live.model.get_submodule(delta.module).get_parameter("weight")
        change = delta.scale * (delta.b.float() @ delta.a.float())
        weight.copy_(weight.float() + (change.T if delta.transposed else change).to(weight.device))
