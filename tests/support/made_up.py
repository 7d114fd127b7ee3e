"""An MLP of no known architecture."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig


class MadeUpMlp(torch.nn.Module):
    """Not gated, and not named like any other."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.widen = torch.nn.Linear(config.hidden_size, config.intermediate_size)
        self.back = torch.nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.back(self.widen(values).relu())
