"""The first layers of a model by themselves: classes of transformers without the rest, and the tensors that they need.

The configuration stays whole, so that every layer is built, and computes, as it does in the whole model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from amnesia.architectures import FINAL_NORMS, MlpLayout, MlpShape
from amnesia.weights.safetensors import WeightFiles

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


class AbsentError(RuntimeError):
    """Something was asked of a part of a model that only the whole can do."""


class Absent(nn.Module):
    """Stands where a part of a model has nothing."""

    def forward(self, *_args: Any, **_settings: Any) -> None:
        """Raises AbsentError, because what is not there cannot be run."""
        raise AbsentError("only the first layers of this model are in memory")


def part_class(whole: PreTrainedModel, shape: MlpShape) -> type[PreTrainedModel]:
    """The class of `whole` with the layers of `shape` alone, and what comes before them."""
    own = type(whole)

    def init(self: PreTrainedModel, config: PretrainedConfig, *arguments: Any, **settings: Any) -> None:
        own.__init__(self, config, *arguments, **settings)
        _cut(self, shape)

    # Transformers knows its classes by their names.
    return type(own.__name__, (own,), {"__init__": init, "__module__": own.__module__})


def beside_layers(model: PreTrainedModel, layout: MlpLayout) -> Iterator[str]:
    """Paths of the modules that neither are layers nor hold them, those of the language model last."""
    parent: nn.Module = model
    path = ""
    for step in (*layout.prefix.rstrip(".").split("."), layout.layers):
        yield from (path + name for name, _ in parent.named_children() if name != step)
        parent, path = parent.get_submodule(step), f"{path}{step}."


def _cut(model: PreTrainedModel, shape: MlpShape) -> None:
    layout = shape.layout
    for path in list(beside_layers(model, layout)):
        parent, _, name = path.rpartition(".")
        if name in FINAL_NORMS or not path.startswith(layout.prefix):
            setattr(model.get_submodule(parent), name, Absent())
    parent = model.get_submodule(layout.prefix.rstrip("."))
    layers = parent.get_submodule(layout.layers)
    assert isinstance(layers, nn.ModuleList), "all classes of the table keep their layers in one"
    setattr(parent, layout.layers, layers[: shape.n_layers])
    left = model.state_dict().keys()
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {key: source for key, source in tied.items() if {key, source} <= left}


def mapped(folder: Path, weights: WeightFiles, names: Collection[str]) -> dict[str, Tensor]:
    """Tensors of the files in a folder, mapped into memory: their numbers are read when they are used."""
    from safetensors import safe_open

    files = {name: safe_open(folder / name, framework="pt") for name in {weights.location[key] for key in names}}
    return {key: files[weights.location[key]].get_slice(key)[...] for key in names}
