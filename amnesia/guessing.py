"""A row for an architecture that the table lacks, by names and shapes of its tensors alone.

A guess is used only where the user asks for it, and proven on the loaded model by `live.proving`.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any

from amnesia.architectures import GUESSED, LAYOUTS, TEXT_CONFIG, MlpLayout
from amnesia.errors import LayoutError, clipped

ASKED = contextvars.ContextVar("amnesia_guess_layouts", default=False)
"""Whether types without a row are guessed at."""


@contextlib.contextmanager
def as_declared() -> Generator[None]:
    """Guess in here, whether the user asked or not, and forget it: for the bytes of outputs.

    Their manifests name the tensors that the edits must mean, so that a wrong guess is found out.
    """
    known, token = dict(GUESSED), ASKED.set(True)
    try:
        yield
    finally:
        ASKED.reset(token)
        GUESSED.clear()
        GUESSED.update(known)


_NAME = r"[A-Za-z_]\w*"
_WEIGHT = re.compile(
    rf"(?P<prefix>(?:{_NAME}\.)*)(?P<layers>{_NAME})\.(?P<layer>\d{{1,6}})\.(?P<path>{_NAME}(?:\.{_NAME})*)\.weight"
)
# What mixes tokens has a matrix of this kind, too, which may be as wide as the MLP.
_MIXERS = {path for row in LAYOUTS.values() for path in row.mixers}
# What configurations call the number of layers, the width between them, and that of the MLP.
_N_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_D_MODEL = ("hidden_size", "n_embd", "d_model")
_D_MLP = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "mlp_hidden_size")


def guess(config: Mapping[str, Any], shapes: Callable[[], Mapping[str, tuple[int, ...]]], model: str) -> None:
    """Put the row of an unknown type into `GUESSED`, if the user asked for that.

    `shapes` gives those of all tensors, and is asked for an unknown type alone; quantized ones are refused later. It is
    the one matrix of each layer that leads from the MLP's width to that between the layers. Raises LayoutError when
    there is none, or several.
    """
    kind = config.get("model_type")
    if not ASKED.get() or not isinstance(kind, str) or kind in LAYOUTS or config.get("quantization_config"):
        return
    text = config.get(TEXT_CONFIG)
    text = text if isinstance(text, Mapping) else config
    (layers_key, n_layers), (model_key, d_model), (_, d_mlp) = (
        _size(text, keys, model) for keys in (_N_LAYERS, _D_MODEL, _D_MLP)
    )
    places: dict[tuple[str, str, str], set[int]] = {}
    for name, shape in shapes().items():
        match = _WEIGHT.fullmatch(name)
        if match is not None and shape == (d_model, d_mlp) and match["path"] not in _MIXERS:
            places.setdefault((match["prefix"], match["layers"], match["path"]), set()).add(int(match["layer"]))
    found = [place for place, layers in places.items() if layers == set(range(n_layers))]
    if len(found) != 1 or d_model == d_mlp:
        names = ", ".join(f"{prefix}{layers}.N.{path}" for prefix, layers, path in found) or "no such matrix"
        raise LayoutError(
            f"{model} is of the unknown type {clipped(kind)!r} and has {names}: expected one matrix of shape "
            f"{[d_model, d_mlp]} in each of {n_layers} layers, outside of attention; layers with experts alone, or of "
            "another width than config.json has, cannot be guessed: use a model of a known type"
        )
    prefix, layers, path = found[0]
    # Old files of such models have no part for the language model; a list of names has one.
    takes_images = text is not config or "ForConditionalGeneration" in str(config.get("architectures"))
    GUESSED[kind] = MlpLayout(
        kind,
        (path,),
        prefix=prefix,
        layers=layers,
        n_layers_key=layers_key,
        d_model_key=model_key,
        auto_class="AutoModelForImageTextToText" if takes_images else "",
    )


def _size(config: Mapping[str, Any], keys: tuple[str, ...], model: str) -> tuple[str, int]:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return key, value
    raise LayoutError(
        f"config.json of {model} has none of {', '.join(keys)} as a positive number: use a model of a known type"
    )
