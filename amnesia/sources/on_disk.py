"""What is different where accelerate has left layers of a model on the disk, and PEFT puts an adapter on them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from amnesia.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_HOOK, _PLACES = "_hf_hook", "hf_device_map"
_PLAIN = frozenset(
    ("alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
     "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r",
     "rank_pattern", "revision", "target_modules", "task_type", "use_rslora")
)  # fmt: skip
_OF_TRAINING = frozenset(
    ("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size")
)
"""Which do nothing beside the plain values of others."""
_WITHOUT_THE_BASE = frozenset(("eva", "gaussian", "orthogonal"))
"""How factors can begin that are then overwritten by those of the file, and the base is neither read nor changed."""


def check_plain(settings: Mapping[str, Any], name: str) -> None:
    """Raises InputError unless the settings of an adapter say that it only adds a product of two factors.

    Others read or replace weights of the base, which are not there while they do. Names that PEFT does not know, it
    drops; what is null, false or empty is off.
    """
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    other = {key: value for key, value in settings.items() if value and value != usual.get(key, value)}
    found = [key for key in other if key not in _PLAIN | _OF_TRAINING]
    if str(other.get("init_lora_weights")).lower() in _WITHOUT_THE_BASE:
        found.remove("init_lora_weights")
    if settings.get("peft_type") != "LORA":
        found.insert(0, "peft_type")
    if found:
        raise InputError(
            f"adapter {name} has {found[0]} = {settings.get(found[0])!r}: on layers that are left on the disk only "
            "plain LoRA can be put; give the merged model, or a machine on which the whole model fits into memory"
        )


def left_on_disk(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The weights of a model that accelerate reads when they are needed: their module, name in it, and parameter."""
    return [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta and _HOOK in vars(module)
    ]


@contextlib.contextmanager
def stand_ins(model: PreTrainedModel) -> Generator[None]:
    """Let PEFT put an adapter on a model while the block runs, and leave the layers where they are.

    PEFT 0.21 would move factors to where the weights beside them seem to be, on no device; and where it is told that
    layers are on the disk it writes them into the working directory. In place of each weight stands one number,
    repeated, on the device on which the layer runs.
    """
    import torch
    from torch import nn

    places, found = vars(model).pop(_PLACES, None), left_on_disk(model)
    try:
        for module, name, parameter in found:
            device = vars(module)[_HOOK].execution_device
            one = torch.zeros((), dtype=parameter.dtype, device=device)
            setattr(module, name, nn.Parameter(one.expand(parameter.shape), requires_grad=False))
        yield
    finally:
        for module, name, parameter in found:
            setattr(module, name, parameter)
        if places is not None:
            vars(model)[_PLACES] = places
