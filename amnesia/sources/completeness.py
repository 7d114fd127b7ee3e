"""Whether a model and the weights that it was loaded from belong together: shapes, missing tensors, ignored ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from amnesia.architectures import MlpShape
from amnesia.errors import CheckpointError, SourceError
from amnesia.weights.checkpoint import CheckpointSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_shapes(described: Mapping[str, torch.Tensor], checkpoint: CheckpointSource, name: str) -> None:
    """Raise CheckpointError when the tensors that a configuration describes do not fit those of the model `name`."""
    for key, tensor in described.items():
        # Files may leave out the name of the part that is not the head.
        found = checkpoint.weights.find(key) or checkpoint.weights.find(key.partition(".")[2])
        # Experts are transposed while some files are read.
        if found is not None and sorted(found[1].shape) != sorted(tensor.shape):
            raise CheckpointError(
                f"config.json of {name} describes {key} of shape {list(tensor.shape)}, but {found[0]} holds "
                f"{list(found[1].shape)}: the weights do not belong to this config.json; fetch the model again"
            )


def complete(found: object, name: str, shape: MlpShape | None = None) -> PreTrainedModel:
    """The model of what transformers loaded with its loading info.

    Raises SourceError when weights of it are missing, or, with its `shape`, when there are some that it ignores.
    """
    # With the loading info it is a pair, which the annotations of transformers leave out.
    model, info = cast("tuple[PreTrainedModel, Mapping[str, Any]]", found)
    if missing := info["missing_keys"]:
        # Transformers would fill them with random numbers.
        raise SourceError(f"{name} lacks {len(missing)} of its weights, first {min(missing)}: fetch the model again")
    if shape is not None and (ignored := sorted(_ignored(info["unexpected_keys"], shape))):
        raise SourceError(
            f"{name} holds {len(ignored)} tensors of layers that transformers ignores, first {ignored[0]}, so that it "
            "would be another model than programs run that read them: merge or remove them, or mend config.json"
        )
    return model


def _ignored(keys: Iterable[str], shape: MlpShape) -> Iterator[str]:
    """Of tensors for which the class has no place those of the language model's layers.

    Scales of a cache of keys and values change no number of the model itself, and of layers behind the last one those
    that predict further tokens (with an `eh_proj`) are left out by design.
    """
    prefixes = "|".join(re.escape(prefix) for prefix in {shape.prefix, shape.layout.prefix})
    place = re.compile(rf"(?:{prefixes}){re.escape(shape.layout.layers)}\.(\d+)\.")
    found = [(key, int(match[1])) for key in keys if (match := place.match(key))]
    further = {layer for key, layer in found if layer >= shape.n_layers and ".eh_proj." in key}
    for key, layer in found:
        if layer not in further and key.rpartition(".")[2] not in ("q_scale", "k_scale", "v_scale"):
            yield key
