"""Bring models into memory with plain transformers, and say by name what is wrong with the ones that cannot be used."""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from amnesia.architectures import GUESSED, Configured, MlpLayout, MlpShape
from amnesia.domain import DEFAULT_LOADING, Format, Loading, check_place
from amnesia.errors import CheckpointError, InputError, LayoutError, NumericalError, library_errors_as
from amnesia.files.companions import LORA_NAME
from amnesia.live.disk import tell_reads
from amnesia.live.memory import need_of, stored_size
from amnesia.live.model import OFFLOADED_TOKENS, LiveModel, add, check_range, freeze, no_hooks, weight_of, wrap
from amnesia.live.proving import prove_layout
from amnesia.live.split import part_of, split_config
from amnesia.live.tokens import Tokenizer
from amnesia.sources.completeness import check_shapes
from amnesia.sources.conversion import convert_gguf
from amnesia.sources.opening import (
    open_adapter,
    open_config,
    open_gguf_tokenizer,
    open_model,
    open_tokenizer,
    skeleton,
)
from amnesia.sources.parts import beside_layers
from amnesia.sources.source import ModelSource, Notice
from amnesia.sources.views import shown, shown_texts
from amnesia.weights.checkpoint import open_source
from amnesia.weights.merging import saved_factors
from amnesia.weights.parts import part_names


def load(
    folder: Path,
    name: str,
    loading: Loading = DEFAULT_LOADING,
    n_layers: int | None = None,
    notice: Notice = lambda _: None,
) -> LiveModel:
    """Load a local folder with plain transformers, evaluation mode, without gradients for the weights.

    With `n_layers`, only so many layers are there, and no head: enough for activations, which are those of the whole.
    `notice` is told what a large model takes. Raises what `open_source` and the functions of `sources.opening` raise,
    InputError when the type or device cannot be used or memory is too small, NumericalError when a weight is NaN or
    infinite.
    """
    check_dtype(loading.dtype)
    if loading.split and (loading.device or loading.offload):
        raise InputError("processes that hold a model together have a device each: drop --device and --offload")
    assert not (loading.offload and n_layers is not None), "of a part nothing is left on the disk, see load_model"
    checkpoint = open_source(folder, n_layers)
    device = loading.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cannot = f"device {device!r} cannot be used"
    if device.partition(":")[0] == "meta":
        raise InputError(f"{cannot}, it holds no numbers: choose another, for example cpu")
    if device != "auto":
        with library_errors_as(InputError, cannot, "choose another, for example cpu"):
            torch.empty(0, device=device)
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(shown(checkpoint))
        config = open_config(view, name)
        tokenizer = open_tokenizer(view, name, config)
        whole = skeleton(config)
        check_shapes(whole.state_dict(), checkpoint, name)
        device_map = _device_map(whole, checkpoint.shape.layout, loading, device)
        split = split_config(whole, checkpoint.shape.layout, name) if loading.split else None
        if device != "auto" and split is None:
            need = need_of(_in_memory(whole, checkpoint.shape, n_layers, loading), checkpoint, loading.dtype)
            # What is to stay on the disk already can stay there no more.
            need.check(name, loading.options - {"--offload"} if loading.offload else loading.options)
            if line := need.line(name):
                notice(line)
        model = open_model(view, name, whole, checkpoint, loading.dtype, device_map, split)
        if device_map:
            # What finds no place in memory is read when it is needed.
            weakref.finalize(model, stack.pop_all().close)
    if not device_map and split is None:
        with library_errors_as(InputError, cannot, "choose another, for example cpu"):
            model = model.to(device)
    check_finite(model, name)
    live = wrap(freeze(model), cast(Tokenizer, tokenizer), name, None if n_layers is None else whole)
    if live.shape.layout.model_type in GUESSED:
        prove_layout(live)
    tell_reads(model, partial(stored_size, checkpoint))
    return replace(live, max_tokens=OFFLOADED_TOKENS) if loading.offload else live


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """The tokenizer of what `resolve_texts` found; no weights are read. Raises what `load` raises for it."""
    if source.gguf is not None:
        return cast(Tokenizer, open_gguf_tokenizer(source.gguf))
    check_place(str(source.folder))
    with shown_texts(source.folder) as view:
        config = open_config(view, str(source)) if (view / "config.json").exists() else None
        return cast(Tokenizer, open_tokenizer(view, str(source), config))


def _device_map(
    whole: PreTrainedModel, layout: MlpLayout, loading: Loading, device: str
) -> str | dict[str, str] | None:
    """That of transformers; None for a single device. Raises InputError for an offload from several devices."""
    if not loading.offload:
        return "auto" if device == "auto" else None
    if device == "auto":
        raise InputError("--offload and --device auto both say what is left on the disk: drop one of them")
    layers = whole.get_submodule(layout.prefix + layout.layers)
    on_disk = {f"{layout.prefix}{layout.layers}.{name}": "disk" for name, _ in layers.named_children()}
    return dict.fromkeys(beside_layers(whole, layout), device) | on_disk


def _in_memory(
    whole: PreTrainedModel, shape: MlpShape, n_layers: int | None, loading: Loading
) -> dict[str, nn.Parameter]:
    """The parameters that are going to stay in memory, by name."""
    found = dict(whole.named_parameters())
    if loading.offload:
        of_layers = shape.layout.prefix + shape.layout.layers + "."
        return {name: parameter for name, parameter in found.items() if not name.startswith(of_layers)}
    if n_layers is None:
        return found
    kept = part_names(Configured(shape.layout, n_layers, shape.d_model), found.keys())
    return {name: found[name] for name in kept}


def check_dtype(name: str) -> None:
    """Raises InputError for a name that is neither "auto" nor that of a type of torch to compute in."""
    found = getattr(torch, str(name), None)
    if name != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(
            f"dtype {name!r} cannot be used: choose another, for example float32, bfloat16, float16 or auto"
        )


def load_adapter(base: Path, adapter: Path, name: str, loading: Loading = DEFAULT_LOADING) -> LiveModel:
    """Load a base model and put a PEFT adapter on it, unmerged. Raises what `load` and `open_adapter` raise.

    On a model that processes share, of which PEFT 0.21 takes the part that one has for the whole, the factors act
    beside the weights without it; then the adapter must be one of this package. Raises CheckpointError where these do
    not fit the model, and what `saved_factors` raises.
    """
    live = load(base, name, loading)
    if loading.split:
        layers = {live.shape.out_proj_path(layer): layer for layer in range(live.shape.n_layers)}
        factors = saved_factors(adapter)
        if unknown := sorted(factors.keys() - layers.keys()):
            raise CheckpointError(f"{adapter} has factors of {unknown[0]}, which {name} has not: give its own base")
        put_on(live, {layers[path]: pair for path, pair in factors.items()}, adapter)
        return live
    model = open_adapter(live.model, adapter)
    check_finite(model, name)
    return replace(wrap(freeze(model), live.tokenizer, name), max_tokens=live.max_tokens)


def load_lora(base: Path, lora: Path, name: str, loading: Loading = DEFAULT_LOADING) -> LiveModel:
    """Load a base model and add to its weights what a LoRA file of llama.cpp that this package wrote holds for them.

    Raises what `load` and `read_factors` raise, and CheckpointError when the factors do not fit the model.
    """
    from amnesia.weights.gguf.lora import read_factors

    live = load(base, name, loading)
    put_on(live, read_factors(lora), lora)
    check_finite(live.model, name)
    return live


def put_on(live: LiveModel, factors: Mapping[int, tuple[np.ndarray, np.ndarray]], origin: Path) -> None:
    """Add B·A, of A (rank, d_mlp) and B (d_model, rank) by layer, to the weights that are whole in memory.

    Beside others the factors act from now on. Raises CheckpointError when they do not fit the model; `origin` is where
    they are from, for messages.
    """
    for layer, (a, b) in factors.items():
        fits = layer < live.shape.n_layers and (b.shape[0], a.shape[1]) == (live.shape.d_model, live.shape.width(layer))
        if not fits:
            raise CheckpointError(
                f"{origin} has factors for layer {layer} that do not fit {live.name}: give its own base"
            )
        pair = live.beside(layer, torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32)))
        weight = weight_of(live.out_proj(layer))
        if weight.is_meta or part_of(weight) is not weight:
            add(live, {layer: pair})
            continue
        delta = pair[1] @ pair[0]
        with torch.no_grad():
            weight.copy_(weight.float() + (delta if live.shape.layout.neuron_axis else delta.T))


def merge_adapter(live: LiveModel) -> None:
    """Add the deltas of PEFT layers to the weights beneath, and leave plain layers; without such layers, do nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(live.model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(live.model.get_submodule(parent), child, module.get_base_layer())


def weights_digest(live: LiveModel, without: Iterable[Tensor] = ()) -> str | None:
    """SHA-256 (hex) of all weights and buffers in memory but some; None where some of them are elsewhere.

    Models of one class and configuration with equal digests compute the same.
    """
    digest = hashlib.sha256()
    left_out = {tensor.data_ptr() for tensor in without}
    for name, tensor in sorted(live.model.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.data_ptr() not in left_out:
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_finite(model: nn.Module, name: str) -> None:
    """Raise NumericalError naming the first weight that holds NaN or infinity.

    Weights that accelerate left on disk are not here to be looked at; what they do to the activations is.
    """
    for key, parameter in ((key, part_of(found)) for key, found in model.named_parameters()):
        if not parameter.is_meta and not _is_finite(parameter):
            if parameter.dtype == torch.float16 and not torch.isnan(parameter).any():
                raise NumericalError(f"weight {key} of {name} overflows in float16: use bfloat16 or float32")
            raise NumericalError(
                f"weight {key} of {name} holds NaN or infinity: the checkpoint is damaged, fetch it anew"
            )


def _is_finite(numbers: Tensor) -> bool:
    # NaN and infinity show in a sum, which reads the numbers once; so does the overflow of a sum of finite ones.
    return bool(numbers.sum().isfinite()) or bool(torch.isfinite(numbers).all())


def load_source(
    source: ModelSource,
    loading: Loading = DEFAULT_LOADING,
    *,
    hooked: bool = True,
    layers: tuple[int, int] | None = None,
    notice: Notice = lambda _: None,
) -> LiveModel:
    """Load a model after its files have been looked over: damage is then named by file, before anything is read.

    `hooked` says that its activations will be watched or changed, in `layers` (the first and the last) where that is
    known. `notice` is told what a large model takes. Raises what `open_source` and `load` raise, LayoutError when a
    mixture of experts should be hooked, and InputError for layers that it does not have and for a path that is not
    UTF-8, which tokenizers cannot read.
    """
    check_place(str(source.folder))
    check_place(str(source))
    if layers is not None:
        check_range(layers, source.checkpoint.shape.n_layers, str(source))
    if hooked and not source.checkpoint.shape.d_mlp:
        raise LayoutError(no_hooks(str(source)))
    return load(source.folder, str(source), loading, source.n_layers, notice)


@contextlib.contextmanager
def loaded(name: Format, source: ModelSource, folder: Path, loading: Loading = DEFAULT_LOADING) -> Generator[LiveModel]:
    """The saved output, loaded afresh with the plain libraries, as its users will load it."""
    if name == "safetensors":
        yield load(folder, str(folder), loading)
    elif name == "adapter":
        yield load_adapter(source.folder, folder, str(folder), loading)
    elif name == "gguf-lora":
        yield load_lora(source.folder, folder / LORA_NAME, str(folder), loading)
    else:
        with TemporaryDirectory(prefix="amnesia-") as scratch:
            convert_gguf(folder / source.require_gguf().name, Path(scratch))
            yield load(Path(scratch), str(folder), loading)
