"""What a small change of a layer's writes does to the predictions on text, to second order.

Let g be the gradient of a text's log-probability (nats) by what an MLP writes at one of its tokens. A change δ of that
write costs about ½ E[(g·δ)²] of divergence: Fisher's information, with the text's own words in place of the model's.
Both are kept once per model, so that what an edit costs is a product of matrices and needs no pass of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.live.model import LiveModel
from amnesia.live.watching import write_gradients
from amnesia.progress import Progress


@dataclass(frozen=True)
class Response:
    """`activations` (n_tokens, n_layers, d_mlp), float16, and `gradients` (n_tokens, n_layers, d_model), bfloat16.

    The tokens are those of sentences, without first and last ones.
    """

    activations: Tensor
    gradients: Tensor

    def to(self, place: int, cells: Tensor, read: Tensor, write: Tensor) -> Tensor:
        """Nats by which the rest of a text gets likelier for each token (n_tokens,) when layer number `place` writes
        `write` (d_model,) times `read` (n,) · activations of `cells` (n,) less."""
        answers = self.activations[:, place, cells].float() @ read.float()
        return -answers * (self.gradients[:, place].float() @ write.float())


def half(values: Tensor) -> Tensor:
    """Activations as float16; the few that are beyond its range are put at its ends, where infinity would be no use."""
    end = torch.finfo(torch.float16).max
    return values.clamp(-end, end).half()


def response_of(
    live: LiveModel, rows: Sequence[Sequence[int]], layers: Sequence[int], progress: Progress | None = None
) -> Response:
    """The response of a model on rows of tokens."""
    found = [(half(a), g.bfloat16()) for a, g in write_gradients(live, rows, layers, progress)]
    return Response(*(torch.cat(part) for part in zip(*found, strict=True)))
