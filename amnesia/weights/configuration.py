"""`config.json` as this package reads it: a JSON object that is bounded, and whose numbers can be those of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.errors import CheckpointError, os_errors_as
from amnesia.files.disk import read_small
from amnesia.files.lfs import check_no_pointer
from amnesia.files.strict_json import StrictJson, shown
from amnesia.weights.safetensors import INDEX_FILE, SINGLE_FILE

MAX_CONFIG = 2**24

# What is divided by, taken to a power or under a root, at whatever depth: transformers computes with any number, and
# the answers are NaN, or look like answers. None of them is a size, which the headers of the weights contradict.
_POSITIVE = frozenset(
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon",
     "rope_theta", "rope_local_base_freq", "rotary_emb_base", "factor", "low_freq_factor", "high_freq_factor",
     "beta_fast", "beta_slow", "original_max_position_embeddings",
     "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
     "attention_multiplier", "embedding_multiplier", "lm_head_multiplier", "logit_scale", "logits_scaling")
)  # fmt: skip


def read_config(folder: Path) -> Mapping[str, object]:
    """The `config.json` of a folder; raises CheckpointError."""
    with os_errors_as(
        CheckpointError, f"{folder / 'config.json'} cannot be read", "give the folder of a Hugging Face model"
    ):
        content = read_small(folder / "config.json", MAX_CONFIG)
    return parse_config(str(folder / "config.json"), content)


def small_object(where: str, content: bytes, remedy: str, what: str) -> tuple[StrictJson, dict[str, Any]]:
    """The JSON object of at most MAX_CONFIG bytes that `content` is, and who says where it is wrong.

    Raises CheckpointError naming the file `where`, also for a pointer to a file that was not fetched.
    """
    check_no_pointer(where, content)
    json_file = StrictJson(where, CheckpointError, remedy)
    if len(content) > MAX_CONFIG:
        raise json_file.fail(f"has more than {MAX_CONFIG} bytes")
    return json_file, json_file.mapping(json_file.parse(content), what)


def parse_config(where: str, content: bytes) -> Mapping[str, object]:
    """A model's `config.json`; raises CheckpointError naming the file `where`."""
    json_file, config = small_object(where, content, "fetch the model again", "configuration")
    json_file.text(config.get("model_type"), "model_type")
    json_file.mapping(config.get("quantization_config") or {}, "quantization_config")
    if config.get("transformers_weights") not in (None, SINGLE_FILE, INDEX_FILE):
        raise json_file.fail(
            f"has transformers_weights = {shown(config['transformers_weights'])}, another set of files"
        )
    for key, value in _settings(config):
        if key in _POSITIVE and isinstance(value, (int, float)) and value <= 0:
            raise json_file.fail(f"has {key} = {shown(value)}, expected a number above 0")
    return config


@dataclass(frozen=True)
class NestedRotary:
    """Which rotary settings a configuration has in `rope_parameters` alone, as transformers 5 writes them.

    `in_text` says that they are those of `text_config`, `layered` that the layers which see everything have settings of
    their own. `keys` are the names that transformers 4 gave them; `scaled` says that there is a scaling.
    """

    in_text: bool
    layered: bool
    keys: tuple[str, ...]
    scaled: bool


def nested_rotary(config: Mapping[str, object]) -> NestedRotary | None:
    """The rotary settings that older programs miss in a configuration, None where there are none."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) and "rope_parameters" in text else config
    parameters = inner.get("rope_parameters")
    if not isinstance(parameters, dict):
        return None
    layered = isinstance(parameters.get("full_attention"), dict)
    whole = parameters["full_attention"] if layered else parameters
    sliding = parameters.get("sliding_attention") if layered else None
    scaled = whole.get("rope_type") not in (None, "default")
    values = {
        "rope_theta": whole.get("rope_theta"),
        "rope_local_base_freq": sliding.get("rope_theta") if isinstance(sliding, dict) else None,
        "partial_rotary_factor": whole.get("partial_rotary_factor"),
        "rope_scaling": scaled or None,
    }
    keys = tuple(key for key, value in values.items() if value is not None and inner.get(key) is None)
    return NestedRotary(inner is text, layered, keys, scaled) if keys else None


def _settings(value: object) -> Iterator[tuple[str, object]]:
    """Each key with its value, those of objects within objects too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _settings(inner)
