"""What the headers of a model's files must show before anything is built or edited: plain numbers, and every layer.

Without this a program that ignores scales would run on numbers without them, and one that believes config.json would
build ten million layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from amnesia.errors import LayoutError
from amnesia.weights.safetensors import TensorInfo, WeightFiles

# How tensors are called that stand in place of a `weight`, in formats of packed weights.
_PACKED = frozenset(("qweight", "weight_packed", "W_q", "codes", "codebooks", "_weight_qdata", "_data"))
# What may stand beside a weight: nothing but a bias, under whatever name, and what norms over batches count.
_BESIDE = re.compile(r"weight|.*bias|running_mean|running_var|num_batches_tracked")
# The factors of a LoRA, in a module beside the weight or as parameters of it.
_LORA = re.compile(r"(?:(.*)\.)?lora_(?:embedding_)?[AB](?:\..*)?")
_NUMBERS = re.compile(r"B?F(16|32|64)|F8_.*")


def check_numbers(name: str, weights: WeightFiles) -> None:
    """Raise LayoutError when the weights of the model `name` are packed, or are to be multiplied by scales beside them,
    or have an unmerged LoRA beside them.

    Classes of plain weights would ignore all of these.
    """
    tensors = {key: weights.headers[file].tensors[key] for key, file in weights.location.items()}
    if (factor := next((key for key in tensors if _has_lora(key, tensors.keys())), None)) is not None:
        raise LayoutError(
            f"the weights of {name} have an unmerged LoRA beside them ({factor}), which plain weights would leave out: "
            "merge it with PEFT (merge_and_unload) and give the merged model"
        )
    sign = next(filter(None, (_sign_of_packing(tensor, tensors.keys()) for tensor in tensors.values())), None)
    if sign is not None:
        raise LayoutError(
            f"the weights of {name} are quantized ({sign}): columns of packed weights cannot be edited exactly; "
            "use the unquantized model, or its GGUF file"
        )


def _has_lora(name: str, names: Collection[str]) -> bool:
    """Whether a tensor is a factor of a LoRA that is put on a weight among `names`."""
    match = _LORA.fullmatch(name)
    return match is not None and any(f"{match[1]}.{own}" in names for own in ("weight", "base_layer.weight"))


def scaled_tensors(names: Collection[str]) -> dict[str, str]:
    """Of tensors, those that are multiplied by another one beside them, or may be, with the name of that one."""
    found = {}
    for name in names:
        owner = None if _has_lora(name, names) else _owner(name, names)
        if owner is not None:
            found.setdefault(owner, name)
    return found


def _sign_of_packing(tensor: TensorInfo, names: Collection[str]) -> str | None:
    """What shows that a tensor is packed, or belongs to one that is."""
    last = tensor.name.rpartition(".")[2]
    if len(tensor.shape) > 1 and last == "weight" and not _NUMBERS.fullmatch(tensor.dtype):
        return f"{tensor.name} is {tensor.dtype}"
    if last in _PACKED:
        return f"it has {tensor.name}"
    owner = _owner(tensor.name, names)
    return None if owner is None else f"{owner} has {tensor.name} beside it"


def _owner(name: str, names: Collection[str]) -> str | None:
    """The tensor or module among `names` that a tensor belongs to as its scales do; None for weights and biases."""
    module, _, last = name.rpartition(".")
    if _BESIDE.fullmatch(last):
        return None
    # `X.scales` and `X.weight.absmax` beside `X.weight`; `X_scale` beside a parameter `X` or the weight of a module X.
    ends = [place.start() for place in re.finditer("_", last)]
    owners = [module, f"{module}.weight", *(name[: end - len(last)] for end in ends)]
    owners += [f"{owner}.weight" for owner in owners[2:]]
    return next((owner for owner in owners if owner in names), None)


def check_layers(name: str, layers: str, n_layers: int, weights: WeightFiles) -> None:
    """Raise LayoutError when the files of the model `name` have no tensors of one of its layers.

    `layers` is what the list of layers is called, `n_layers` how many config.json says there are.
    """
    numbered = re.compile(rf"(?:.*\.)?{re.escape(layers)}\.(\d{{1,9}})\..*")
    held = {int(match[1]) for key in weights.location if (match := numbered.fullmatch(key))}
    missing = next((layer for layer in range(n_layers) if layer not in held), None)
    if missing is not None:
        raise LayoutError(
            f"{name} has no tensors of layer {missing}, but config.json says that there are {n_layers} layers: "
            "the weights do not belong to this config.json; fetch the model again"
        )
