"""Bring models into memory with plain transformers, and say by name what is wrong with the ones that cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from amnesia.architectures import no_hooks
from amnesia.domain import DEFAULT_LOADING, Format, Loading
from amnesia.errors import InputError, LayoutError, NumericalError, SourceError, first_line
from amnesia.live.model import LiveModel, freeze, wrap
from amnesia.progress import quiet
from amnesia.sources.conversion import convert_gguf
from amnesia.sources.source import ModelSource


def load(folder: Path, name: str, loading: Loading = DEFAULT_LOADING) -> LiveModel:
    """Load a local folder with plain transformers, evaluation mode, without gradients for the weights.

    Raises SourceError when transformers cannot load the folder, InputError when its tokenizer is missing or the type or
    device cannot be used, NumericalError when a weight is NaN or infinite.
    """
    check_dtype(loading.dtype)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{name} has no usable tokenizer ({first_line(error)}): expected tokenizer.json beside the weights"
            ) from error
        try:
            found = auto_class(folder).from_pretrained(
                folder,
                dtype=loading.dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                device_map="auto" if loading.device == "auto" else None,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise SourceError(f"{name} cannot be loaded by transformers: {first_line(error)}") from error
    # With the loading info it is a pair, which the annotations of transformers leave out.
    model, info = cast("tuple[PreTrainedModel, Mapping[str, Any]]", found)
    if info["missing_keys"]:
        # Transformers would fill them with random numbers.
        missing = sorted(info["missing_keys"])
        raise SourceError(f"{name} lacks {len(missing)} of its weights, first {missing[0]}: fetch the model again")
    chosen = loading.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen != "auto":
        try:
            model = model.to(chosen)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {chosen!r} cannot be used ({first_line(error)}): choose another, for example cpu"
            ) from error
    check_finite(model, name)
    return wrap(freeze(model), tokenizer, name)


def auto_class(folder: Path) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """The Auto class for a folder: that of causal language models, else that of models that take images, too."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    causal = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if causal else AutoModelForImageTextToText


def check_dtype(name: str) -> None:
    """Raises InputError for a name that is neither "auto" nor that of a type of torch to compute in."""
    found = getattr(torch, str(name), None)
    if name != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(
            f"dtype {name!r} cannot be used: choose another, for example float32, bfloat16, float16 or auto"
        )


def load_adapter(base: Path, adapter: Path, name: str, loading: Loading = DEFAULT_LOADING) -> LiveModel:
    """Load a base model and put a PEFT adapter on it, unmerged. Raises what `load` raises, and SourceError."""
    from peft import PeftModel

    live = load(base, name, loading)
    with quiet():
        try:
            wrapped = PeftModel.from_pretrained(live.model, adapter)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise SourceError(f"adapter {adapter} cannot be loaded by PEFT: {first_line(error)}") from error
    # PEFT puts its layers into the base model itself, whose module paths stay as they were.
    return wrap(freeze(cast(PreTrainedModel, wrapped.get_base_model())), live.tokenizer, name)


def merge_adapter(live: LiveModel) -> None:
    """Add the deltas of PEFT layers to the weights beneath, and leave plain layers; without such layers, do nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(live.model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(live.model.get_submodule(parent), child, module.get_base_layer())


def check_finite(model: nn.Module, name: str) -> None:
    """Raise NumericalError naming the first weight that holds NaN or infinity.

    Weights that accelerate left on disk are not here to be looked at; what they do to the activations is.
    """
    for key, parameter in model.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            if parameter.dtype == torch.float16 and not torch.isnan(parameter).any():
                raise NumericalError(f"weight {key} of {name} overflows in float16: use bfloat16 or float32")
            raise NumericalError(
                f"weight {key} of {name} holds NaN or infinity: the checkpoint is damaged, fetch it anew"
            )


def load_source(source: ModelSource, loading: Loading = DEFAULT_LOADING, *, hooked: bool = True) -> LiveModel:
    """Load a model after its files have been looked over: damage is then named by file, before anything is read.

    `hooked` says that its activations will be watched or changed. Raises what `open_source` and `load` raise, and
    LayoutError when a mixture of experts should be hooked.
    """
    if hooked and not source.checkpoint.shape.d_mlp:
        raise LayoutError(no_hooks(str(source)))
    return load(source.folder, str(source), loading)


@contextlib.contextmanager
def loaded(name: Format, source: ModelSource, folder: Path, loading: Loading = DEFAULT_LOADING) -> Generator[LiveModel]:
    """The saved output, loaded afresh with the plain libraries, as its users will load it."""
    if name == "safetensors":
        yield load(folder, str(folder), loading)
    elif name == "adapter":
        yield load_adapter(source.folder, folder, str(folder), loading)
    else:
        with TemporaryDirectory(prefix="amnesia-") as scratch:
            convert_gguf(folder / source.require_gguf().name, Path(scratch))
            yield load(Path(scratch), str(folder), loading)
