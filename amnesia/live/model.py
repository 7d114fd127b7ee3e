"""Live models: where their MLPs are, hooks on them, and edits in memory. It knows nothing of texts.

With `batches`, `forward` and `interventions` it is all that touches live models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from amnesia.architectures import NORMS_AFTER, MlpShape, find_shape
from amnesia.domain import ModelRef
from amnesia.edit_checks import check_edits
from amnesia.edits import DirectionEdit, Edit, columns_of, directions_of
from amnesia.errors import InputError, LayoutError, NumericalError
from amnesia.live.disk import numbers_of
from amnesia.live.tokens import Tokenizer
from amnesia.sources.served import sizes_in

MAX_BATCH_TOKENS = 1024
"""Padded tokens per forward pass: large enough for full matrix products on a CPU, small in memory."""

OFFLOADED_TOKENS = 8192
"""The same where every pass reads the layers from the disk: the more at once, the fewer times.

Sums of other batches round otherwise, in 16 bits visibly.
"""


@dataclass(frozen=True)
class LiveModel:
    """A causal language model in memory, its fast tokenizer, and where its MLPs are. `name` is for messages.

    `n_held` says how many of the layers of `shape` are in memory, from the first, where nothing follows them and only
    activations can be asked; None for a whole model. `is_recurrent` says whether layers carry a state from each
    token to the one beside it, as linear attention and convolutions do, which ignore masks. `max_tokens` is how many
    padded tokens one forward pass takes.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    shape: MlpShape
    name: str
    is_recurrent: bool
    n_held: int | None = None
    max_tokens: int = MAX_BATCH_TOKENS

    @property
    def label(self) -> str:
        """The name in results, which are passed on."""
        return str(ModelRef.parse(self.name).portable)

    @property
    def device(self) -> torch.device:
        embeddings = self.model.get_input_embeddings()
        weight = weight_of(embeddings)
        if weight.is_meta:  # Left on disk by accelerate, whose hook fetches it to where it runs.
            return torch.device(vars(embeddings)["_hf_hook"].execution_device)
        return weight.device

    def out_proj(self, layer: int) -> nn.Module:
        """The output projection of layer `layer`; its input is the layer's activations.

        Raises LayoutError for a layer with a mixture of experts, which transformers fuses in one parameter.
        """
        if not self.shape.width(layer):
            raise LayoutError(no_hooks(self.name))
        return self.model.get_submodule(self.shape.out_proj_path(layer))

    def beside(self, layer: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors on the device on which the output projection of layer `layer` runs."""
        device = weight_of(self.out_proj(layer)).device
        device = self.device if device.type == "meta" else device  # Left on disk by accelerate.
        return a.to(device), b.to(device)

    def out_weight(self, layer: int) -> Tensor:
        """Weights of the output projection of layer `layer`, float32 (d_model, d_mlp), however they are stored."""
        weight = numbers_of(self.out_proj(layer)).float()
        return self.padded(weight if self.shape.layout.neuron_axis else weight.T)

    def padded(self, values: Tensor) -> Tensor:
        """Values (..., neurons of a layer) with zeros for the neurons that only wider layers have: (..., d_mlp)."""
        missing = self.shape.d_mlp - values.shape[-1]
        return nn.functional.pad(values, (0, missing)) if missing else values

    def whole_mlp(self, layer: int) -> nn.Module:
        """`out_proj` of a layer whose MLP writes through it alone; raises LayoutError where experts write, too."""
        if self.shape.experts_in(layer) is not None:
            raise LayoutError(no_hooks(self.name))
        return self.out_proj(layer)

    def watchable(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Those of the layers whose activations can be watched; raises LayoutError when there is none."""
        found = tuple(layer for layer in layers if self.shape.width(layer))
        if not found:
            raise LayoutError(no_hooks(self.name))
        return found

    @property
    def text_config(self) -> PretrainedConfig:
        """The configuration of the language model, which may be a part of a larger model."""
        return self.model.config.get_text_config()

    @property
    def n_positions(self) -> int | None:
        """How many tokens the model has positions for, None where it does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def norm_after(self, layer: int) -> nn.Module | None:
        """The norm between what the MLP of layer `layer` writes and the residual stream, if there is one."""
        block = self.model.get_submodule(self.shape.layer_path(layer))
        return next((found for name in NORMS_AFTER if (found := getattr(block, name, None)) is not None), None)

    def mixer(self, layer: int) -> nn.Module:
        """The output projection of attention, or of what stands in its place.

        Raises LayoutError for a layer with several side by side, which no single one stands for.
        """
        path, names = self.shape.layer_path(layer), self.shape.layout.mixers
        found = [module for name in names if (module := _submodule(self.model, f"{path}.{name}")) is not None]
        if len(found) != 1:
            raise LayoutError(
                f"layer {layer} of {self.name} has {len(found)} of {', '.join(names)}: expected one, through which all "
                "that attention writes can be replaced; this experiment needs another model"
            )
        return found[0]


def check_range(layers: tuple[int, int], n_layers: int, name: str) -> None:
    """Raises InputError when layers, the first and the last, are not all in the model called `name`."""
    low, high = layers
    if not 0 <= low <= high < n_layers:
        raise InputError(f"layers {low}-{high} are out of range: {name} has layers 0–{n_layers - 1}; choose from these")


def no_hooks(name: str) -> str:
    """Why the activations of a mixture of experts cannot be seen or changed, and what can be done instead."""
    return (
        f"{name} is a mixture of experts, which transformers fuses in memory so that no single one can be watched: its "
        "cells cannot be searched, nor the experiments done; `amnesia edit` writes an edit of known cells "
        "(LAYER:EXPERT:NEURON), and `amnesia evaluate` measures it"
    )


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a linear or embedding module, as it is stored."""
    return module.get_parameter("weight")


def wrap(
    model: PreTrainedModel, tokenizer: Tokenizer | None, name: str | None = None, whole: PreTrainedModel | None = None
) -> LiveModel:
    """A LiveModel from a model and tokenizer that are already in memory; edits alone need no tokenizer.

    Where `model` is only the first layers, `whole` is the model that they are of, perhaps without numbers.

    Raises LayoutError for architectures outside the table and InputError for tokenizers without offset mapping.
    """
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (tokenizer.json)"
        )
    name = name or getattr(model.config, "name_or_path", "") or "the model"

    every = whole or model
    if model.get_output_embeddings() is None:
        raise LayoutError(
            f"{name} has no language-model head: expected a causal language model; load it with AutoModelForCausalLM "
            "(AutoModelForImageTextToText where it takes images, too)"
        )
    shape = find_shape(model.config.to_dict(), sizes_in(every), name)
    layers = [every.get_submodule(shape.layer_path(layer)) for layer in range(shape.n_layers)]
    is_recurrent = any(isinstance(module, nn.Conv1d) for layer in layers for module in layer.modules())
    held = list(model.get_submodule(shape.layer_path(0).rpartition(".")[0]).children())
    # None is for edits, which ask no tokenizer.
    asked = cast(Tokenizer, tokenizer)
    return LiveModel(model, asked, shape, name, is_recurrent, None if whole is None else len(held))


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode with `requires_grad` off: gradients are only ever taken of multipliers."""
    return model.eval().requires_grad_(False)


def not_finite(live: LiveModel, what: str, cause: str = "its weights are damaged") -> NumericalError:
    """The error of a model whose weights are finite and whose `what` are not, for `cause` or for lack of range.

    In Gemma 3 what an MLP writes reaches 8e6 before the norm that follows; float16 ends at 65504.
    """
    if live.model.dtype == torch.float16:
        return NumericalError(
            f"{live.name} gives NaN or infinite {what}, because it overflows in float16: use bfloat16 or float32"
        )
    return NumericalError(f"{live.name} gives NaN or infinite {what}: {cause}")


@contextlib.contextmanager
def plain_generation(live: LiveModel) -> Generator[None]:
    """Without the model's own settings of generation, which transformers puts where a given configuration says nothing:
    penalties of repetition, other ends of a text.

    All layers run whole prompts, as hooks expect. Those of Gemma 4 that share keys and values would run no more than
    the last token, unless hidden states are asked for.
    """
    own, config = live.model.generation_config, live.text_config
    live.model.generation_config = GenerationConfig()
    shares = bool(getattr(config, "num_kv_shared_layers", 0))
    with_states = config.output_hidden_states
    config.output_hidden_states = with_states or shares
    try:
        yield
    finally:
        live.model.generation_config = own
        config.output_hidden_states = with_states


def no_rows(live: LiveModel, layer: int, values: Tensor) -> LayoutError:
    """The error of a tensor of an MLP whose rows and tokens are in no known order."""
    return LayoutError(
        f"{live.name} has in the MLP of layer {layer} a tensor of shape {[*values.shape]}, of which rows and tokens "
        "cannot be told, so that it cannot be watched: use a model of a known type"
    )


@contextlib.contextmanager
def hooks(live: LiveModel, by_layer: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Generator[None]:
    """Call a function on the activations (batch, tokens, d_mlp) of given layers; a returned tensor replaces them.

    Raises LayoutError for a model that puts the tokens of all rows one after the other in a way that is not known.
    """
    shapes: dict[int, torch.Size] = {}

    def shape_of(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            states = args[0] if args else kwargs.get("hidden_states")
            if isinstance(states, Tensor):
                shapes[layer] = states.shape[:-1]

        return hook

    def rows(layer: int, activations: Tensor) -> Tensor:
        shape = shapes.get(layer)
        if activations.ndim != 2 or shape is None or len(shape) != 2 or shape.numel() != len(activations):
            raise no_rows(live, layer, activations)
        return activations.unflatten(0, shape)

    def hook_of(layer: int, function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            # In OPT, and beside a mixture of experts, the tokens of all rows come one after the other: (tokens, d_mlp).
            if args[0].ndim == 3:
                replaced = function(args[0])
            elif (replaced := function(rows(layer, args[0]))) is not None:
                replaced = replaced.flatten(0, 1)
            return None if replaced is None else (replaced, *args[1:])

        return hook

    handles = []
    try:
        for layer, function in by_layer.items():
            block = live.model.get_submodule(live.shape.layer_path(layer))
            handles.append(block.register_forward_pre_hook(shape_of(layer), with_kwargs=True))
            handles.append(live.out_proj(layer).register_forward_pre_hook(hook_of(layer, function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def scaled_by(live: LiveModel, multipliers: Mapping[int, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Multiply the activations of each given layer, at every token, by a vector (d_mlp,) or (batch, 1, d_mlp).

    Multiplying activation j equals multiplying column j of the output projection's weight.
    """

    def multiply(vector: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda activations: activations * vector.to(activations)

    return hooks(live, {layer: multiply(vector) for layer, vector in multipliers.items()})


@contextlib.contextmanager
def added_by(live: LiveModel, deltas: Mapping[int, tuple[Tensor, Tensor]]) -> Generator[None]:
    """`add` while the block runs."""
    handles = add(live, deltas)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add(live: LiveModel, deltas: Mapping[int, tuple[Tensor, Tensor]]) -> list[RemovableHandle]:
    """Add B·(A·a) to what each given layer's output projection makes of activations a, at every token, from now on.

    Hooks that are set later do not change the a that is seen here. `deltas` are A (rank, d_mlp) and B (d_model, rank)
    by layer, or those of each line, (batch, rank, d_mlp) and (batch, d_model, rank).
    """
    seen: dict[int, Tensor] = {}

    def before(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[layer] = args[0]

        return hook

    def after(layer: int, a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            answers = seen.pop(layer).float() @ a.mT
            return (output.float() + answers @ b.mT).to(output.dtype)

        return hook

    handles: list[RemovableHandle] = []
    for layer, (a, b) in deltas.items():
        module = live.out_proj(layer)
        handles.append(module.register_forward_pre_hook(before(layer)))
        handles.append(module.register_forward_hook(after(layer, a, b)))
    return handles


def factors(edits: Sequence[DirectionEdit], d_mlp: int) -> tuple[Tensor, Tensor]:
    """A (rank, d_mlp) and B (d_model, rank), float32, of directions of one layer: the weight becomes W + B·A."""
    a = torch.zeros(len(edits), d_mlp)
    for row, edit in zip(a, edits, strict=True):
        row[list(edit.columns)] = torch.from_numpy(edit.read.array.copy())
    b = torch.stack([(edit.multiplier - 1.0) * torch.from_numpy(edit.write.array.copy()) for edit in edits], dim=1)
    return a, b


@contextlib.contextmanager
def edited(live: LiveModel, edits: Sequence[Edit]) -> Generator[None]:
    """Act as if the edits had been written into the weights while the block runs; the weights do not change."""
    vectors, deltas = acting(live, edits)
    with added_by(live, deltas), scaled_by(live, vectors):
        yield


def acting(live: LiveModel, edits: Sequence[Edit]) -> tuple[dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """What `scaled_by` and `added_by` are given for edits."""
    checked = _checked(live, edits) if edits else ()
    vectors: dict[int, Tensor] = {}
    for edit in columns_of(checked):
        if edit.cell.expert is not None:
            raise LayoutError(no_hooks(live.name))
        ones = torch.ones(live.shape.width(edit.cell.layer), device=live.device)
        vector = vectors.setdefault(edit.cell.layer, ones)
        vector[edit.cell.neuron] = edit.multiplier
    return vectors, _deltas(live, checked)


def _deltas(live: LiveModel, edits: Sequence[Edit]) -> dict[int, tuple[Tensor, Tensor]]:
    by_layer: dict[int, list[DirectionEdit]] = {}
    for edit in directions_of(edits):
        by_layer.setdefault(edit.layer, []).append(edit)
    return {layer: live.beside(layer, *factors(found, live.shape.width(layer))) for layer, found in by_layer.items()}


def _checked(live: LiveModel, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    shape = live.shape
    return check_edits(edits, shape.n_layers, shape.d_model, shape.width, live.name, shape.experts_in)


@torch.no_grad()
def apply_edits(live: LiveModel, edits: Sequence[Edit]) -> None:
    """Write the edits into the output projections in memory, permanently; sums are rounded once.

    Raises InputError, before anything changes, when a cell or direction does not fit the model.
    """
    checked = _checked(live, edits)
    axis = live.shape.layout.neuron_axis
    for edit in columns_of(checked):
        layer, expert = edit.cell.layer, edit.cell.expert
        if expert is None:
            weight = weight_of(live.out_proj(layer)), axis
        else:
            weight = live.model.get_parameter(live.shape.fused(layer))[expert], live.shape.tensor(layer, expert)[1]
        weight[0].select(weight[1], edit.cell.neuron).mul_(edit.multiplier)
    for layer, (a, b) in _deltas(live, checked).items():
        weight = weight_of(live.out_proj(layer))
        delta = (b @ a).to(weight.device)
        weight.copy_(weight.float() + (delta if axis else delta.T))
