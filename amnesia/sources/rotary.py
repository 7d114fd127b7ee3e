"""The rotary scaling that a GGUF file asks for, as settings of transformers.

transformers (5.24.0) reads the base of the rotary frequencies from a GGUF file (not for StableLM and StarCoder2) and
nothing else: neither the metadata `*.rope.scaling.*`, nor the tensors in which llama.cpp keeps factors of frequencies
(Llama 3.1 and later, Phi-3 with a long context). Without them a model takes all its positions for others than it was
trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from amnesia.errors import SourceError
from amnesia.weights.gguf.container import GgufModel, Value, read_model

_FREQUENCIES = "rope_freqs.weight"
_FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}

# Of all Llama models with that scaling; a file holds only the factors that come of them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# Architectures whose factors transformers knows by itself.
_KNOWN = ("gemma4",)

_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def rotary_settings(path: Path, theta: float) -> dict[str, Any]:
    """`rope_parameters` as a `.gguf` file has them: the base of the frequencies, `theta` where it names none, and a
    scaling, which most have not.

    Raises SourceError for a scaling that has no counterpart there, CheckpointError for a malformed file.
    """
    model = read_model(path)
    architecture = str(model.metadata.get("general.architecture"))
    if architecture in _KNOWN:
        return {"rope_theta": theta}
    theta = _number(model.metadata, f"{architecture}.rope.freq_base", theta)
    return {"rope_theta": theta, **_scaling(path, model, architecture, theta)}


def _scaling(path: Path, model: GgufModel, architecture: str, theta: float) -> dict[str, Any]:
    begin = f"{architecture}.rope.scaling."
    given = {key.removeprefix(begin): value for key, value in model.metadata.items() if key.startswith(begin)}
    factors = {name: _numbers(model, tensor) for name, tensor in _FACTORS.items() if model.find(tensor)}
    if len(factors) == len(_FACTORS):
        return _longrope(given, factors)
    if model.find(_FREQUENCIES):
        if (found := _llama3(_numbers(model, _FREQUENCIES), theta)) is not None:
            return found
        raise _unread(path, f"factors of its own in {_FREQUENCIES}")
    kind, factor = given.get("type", "none"), _number(given, "factor", 1.0)
    if kind in ("none", "longrope") or factor == 1.0:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and _number(given, "original_context_length", 0) > 0:
        return _yarn(given, factor)
    raise _unread(path, f"{begin}type {kind}")


def _unread(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path} scales its rotary positions by {what}, which transformers reads from no GGUF file: use the model in "
        "safetensors instead (editing the file needs no reading)"
    )


def _llama3(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The settings from which these factors (n_frequencies,) come; None where none does."""
    most = round(float(factors.max()), 4)
    if most == 1.0 == factors.min():
        return {}
    frequencies = theta ** -(np.arange(len(factors)) / len(factors))
    low, high, context = _LLAMA3.values()
    turns = context * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    if not np.allclose(1.0 / ((1.0 - smooth) / most + smooth), factors, rtol=1e-3):
        return None
    return {"rope_type": "llama3", "factor": most, **_LLAMA3}


def _longrope(given: Mapping[str, Value], factors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "longrope"} | {name: values.tolist() for name, values in factors.items()}
    if context := _number(given, "original_context_length", 0):
        found["original_max_position_embeddings"] = int(context)
    if attention := _number(given, "attn_factor", 0):
        found["attention_factor"] = attention
    return found


def _yarn(given: Mapping[str, Value], factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    found["original_max_position_embeddings"] = int(_number(given, "original_context_length", 0))
    for name, setting in _YARN.items():
        if name in given:
            found[setting] = _number(given, name, 0)
    if attention := _number(given, "attn_factor", 0):
        found["attention_factor"] = attention * (1.0 + 0.1 * math.log(factor))
    return found


def _number(given: Mapping[str, Value], name: str, default: float) -> float:
    value = given.get(name, default)
    return float(value) if isinstance(value, int | float) else default


def _numbers(model: GgufModel, name: str) -> np.ndarray:
    """A tensor of one axis that is stored as float32."""
    found = model.find(name)
    assert found is not None, "looked for before"
    file, tensor = found
    if tensor.tensor_type != GGMLQuantizationType.F32:
        raise SourceError(f"{file.path} has {name} as {tensor.tensor_type.name}, expected F32: make the file again")
    with file.path.open("rb") as source:
        source.seek(tensor.offset)
        return np.frombuffer(source.read(tensor.n_bytes), "<f4").astype(np.float64)
