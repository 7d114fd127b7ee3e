"""A model on disk, as every command takes it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from amnesia.domain import ModelRef
from amnesia.errors import InputError, SourceError
from amnesia.weights.checkpoint import CheckpointSource, open_source
from amnesia.weights.safetensors import no_weights

Notice = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """A model on disk: its folder, what the user called it, and its `.gguf` file if any.

    `n_layers` says how many of its layers are asked for, from the first; None for the whole model, head included. Only
    activations can be asked of a part.
    """

    folder: Path
    ref: ModelRef
    gguf: Path | None = None
    n_layers: int | None = None

    def __str__(self) -> str:
        return str(self.ref)

    def require_gguf(self) -> Path:
        """The `.gguf` file; raises InputError when the model has none."""
        if self.gguf is None:
            raise InputError(
                f"formats gguf and gguf-lora need a .gguf model, {self} is not one: give the path of a .gguf file"
            )
        return self.gguf

    def require_whole(self) -> None:
        """Raises InputError for a part of a model."""
        if self.n_layers is not None:
            raise InputError(
                f"of {self} only the first layers were asked for ({self.n_layers}), which are no whole model: resolve "
                "it without n_layers"
            )

    @cached_property
    def checkpoint(self) -> CheckpointSource:
        """The folder, looked over once: when its files change, resolve it anew. Raises what `open_source` raises."""
        return open_source(self.folder, self.n_layers)

    @property
    def origin(self) -> Path:
        """What no output may replace: the `.gguf` file, beside which there is room for outputs, or the folder."""
        return self.gguf or self.folder


def check_weights(names: Collection[str], shown: str) -> None:
    """Raise SourceError, with what to give instead, when none of the files `names` holds safetensors."""
    if not any(name.endswith(".safetensors") for name in names if "/" not in name):
        raise SourceError(no_weights(shown, names))
