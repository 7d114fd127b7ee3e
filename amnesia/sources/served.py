"""The model class that serves an adapter: how it names its modules, and whether PEFT finds those of the adapter.

PEFT only warns of keys without a module, and rewrites adapters for types with experts, so that an adapter may be loaded
without effect. The class is built without numbers, and only where the table of architectures does not say all of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from amnesia.architectures import LAYOUTS, Configured, Search, Sizes
from amnesia.errors import CheckpointError, SourceError
from amnesia.progress import quiet
from amnesia.sources.opening import auto_class, config_of, open_adapter, skeleton
from amnesia.sources.remote import RemoteCheckpoint
from amnesia.sources.views import small_content
from amnesia.weights.checkpoint import CheckpointSource
from amnesia.weights.configuration import MAX_CONFIG

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

_SourceT = TypeVar("_SourceT", bound=CheckpointSource | RemoteCheckpoint)


def sizes_in(model: nn.Module) -> Sizes:
    """The shapes of the parameters of a model in memory, by name."""
    from torch import nn

    def sizes(path: str) -> tuple[int, ...] | None:
        module, _, parameter = path.rpartition(".")
        try:
            found = getattr(model.get_submodule(module), parameter, None)
        except AttributeError:
            return None
        return tuple(found.shape) if isinstance(found, nn.Parameter) else None

    return sizes


def as_served(source: _SourceT) -> _SourceT:
    """The same model, its layout with the prefix and the class that the adapter needs: a guess knows those of files.

    Raises LayoutError when the class names the MLP otherwise than the files do, and what `config_of` raises.
    """
    shape = source.shape
    if shape.layout.model_type in LAYOUTS:
        return source
    config = _config(source)
    with quiet():
        whole = skeleton(config)
    found = Search(Configured(shape.layout, shape.n_layers, shape.d_model), sizes_in(whole), source.name).shape()
    layout = replace(shape.layout, prefix=found.prefix, auto_class=auto_class(config).__name__)
    return replace(source, shape=replace(shape, layout=layout))


def check_found(source: CheckpointSource | RemoteCheckpoint, folder: Path) -> None:
    """Raise CheckpointError unless PEFT puts each factor of the adapter in `folder` on a module, and makes no others.

    Types of the table without experts are not built: that their modules are found does not depend on the model.
    """
    layout = source.shape.layout
    if layout.model_type in LAYOUTS and layout.experts is None:
        return
    config = _config(source)
    with quiet():
        whole = skeleton(config)
    try:
        open_adapter(whole, folder)
    except SourceError as error:
        raise CheckpointError(
            f"PEFT does not put this adapter on the modules of {type(whole).__name__}, which transformers builds for "
            f"{source.name}, so that it would have no effect, or another: write the format safetensors"
        ) from error


def _config(source: CheckpointSource | RemoteCheckpoint) -> PreTrainedConfig:
    if isinstance(source, CheckpointSource):
        content = small_content(source.folder / "config.json")
    else:
        content = source.files.content("config.json", MAX_CONFIG)
    return config_of(content, source.name)
