"""LoRA unlearning, the way that most others take: what an edit is compared with when both are trained again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from amnesia.evaluation.measurement import Pair
from amnesia.live.model import LiveModel
from amnesia.live.tokens import Continuation
from amnesia.progress import Progress
from amnesia.stress.settings import Unlearning
from amnesia.stress.training import Delta, Draw, answered, checked, deltas, rows_of, trainable


@dataclass(frozen=True)
class Unlearned:
    """An adapter, and the number of steps in which it was learned."""

    steps: int
    adapter: tuple[Delta, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as a value for a file in JSON, the matrices as safetensors."""
        matrices = {f"{n}.{name}": getattr(row, name) for n, row in enumerate(self.adapter) for name in ("a", "b")}
        rows = [[row.module, row.scale, row.transposed] for row in self.adapter]
        return {"steps": self.steps, "adapter": rows, "matrices": base64.b64encode(save(matrices)).decode()}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Unlearned:
        """What `as_json` gave; the matrices are in the memory of the CPU."""
        matrices = load(base64.b64decode(found["matrices"]))
        rows = enumerate(found["adapter"])
        adapter = (Delta(name, matrices[f"{n}.a"], matrices[f"{n}.b"], *rest) for n, (name, *rest) in rows)
        return cls(found["steps"], tuple(adapter))


def unlearn(
    live: LiveModel,
    forget: Sequence[Pair],
    retain: Sequence[str],
    settings: Unlearning,
    score: Callable[[], float],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Unlearned:
    """An adapter with which the answers of `forget` become unlikely, and the texts of `retain` stay as they are.

    `score` says how much is left. The loss is that of `settings.Unlearning`. Equal arguments give equal results; the
    model is afterwards as before.
    """
    lost = rows_of(live, forget, settings.max_learned)
    left = rows_of(live, [("", text) for text in retain], settings.max_learned)
    with torch.no_grad():
        before = torch.cat([_logprobs([row], *answered(live, [row])) for row in lost])
    forgetting = Draw(list(zip(lost, before, strict=True)), settings.batch, seed)
    keeping = Draw(left, settings.batch, seed)
    with trainable(live, settings.way, seed) as wrapped:
        for step in range(settings.most + 1):
            if step == settings.most or (step % settings.every == 0 and _at_most(score, settings.goal)):
                return Unlearned(step, deltas(live))
            chosen, values = zip(*forgetting.next(), strict=True)
            spared = keeping.next()
            with torch.no_grad(), wrapped.disable_adapter():
                expected = answered(live, spared)[0].log_softmax(-1)
            logits, wanted = answered(live, [*chosen, *spared])
            n_lost = len(wanted) - len(expected)
            gain = _logprobs(chosen, logits[:n_lost], wanted[:n_lost]) - torch.stack(values)
            negative = gain.mean()
            if settings.beta:
                negative = -2 / settings.beta * nn.functional.logsigmoid(-settings.beta * gain).mean()
            found = logits[n_lost:].log_softmax(-1)
            kl = nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)
            checked(live, negative + settings.kl_weight * kl).backward()
            if progress:
                progress(1)
    raise AssertionError("the last step returns")


def _at_most(score: Callable[[], float], goal: float) -> bool:
    with torch.no_grad():
        return score() <= goal


def _logprobs(rows: Sequence[Continuation], logits: Tensor, wanted: Tensor) -> Tensor:
    """Log-probability (nats) of the answer of each row, (n_rows,), of what `answered` gives for them."""
    losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
    return torch.stack([-part.sum() for part in losses.split([row.n_answer for row in rows])])
