"""Adapters against what vLLM takes, as read in the sources of the version below; vLLM itself is not needed here.

Its loader refuses settings, keys and modules that it does not know, and applies an adapter by the full path of each
module: one that it cannot find is left out without a word.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, EntityEdits
from amnesia.hub.card import BaseCard, model_card
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.weights.adapter import CONFIG_NAME, RANKS, WEIGHTS_NAME
from support.tiny import MODEL_TYPES, save_tiny, tiny_model

VERSION = "0.33.0"
# vllm/config/lora.py, MaxLoRARanks: what --max-lora-rank can be. An adapter's rank may not exceed it.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vllm/lora/peft_helper.py: fields without a default, fields that must be empty, and those with one allowed value.
REQUIRED = {"r", "lora_alpha", "target_modules"}
MUST_BE_EMPTY = (
    "modules_to_save use_dora lora_bias alora_invocation_tokens layer_replication use_bdlora use_qalora"
).split()
ONLY_VALUE = {"bias": "none"}
# Read by this version, misread or refused by earlier ones.
NOT_EVERYWHERE = ("use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "target_parameters")
# vllm/lora/utils.py, parse_fine_tuned_lora_name.
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# vllm/model_executor/models/: the linear layers of each class, and those that vLLM packs together, for which it
# expects one adapter for each part. None: the class takes no adapters (no SupportsLoRA).
ATTENTION = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
GATED = {"gate_up_proj": ["gate_proj", "up_proj"]}
LLAMA = ({"o_proj", "down_proj"}, ATTENTION | GATED)
CLASSES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "phi3": ({"o_proj", "down_proj"}, {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}),
    # These run on the modules of transformers, whose linear layers keep their names.
    "olmo2": LLAMA,
    "gpt_neox": ({"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}, {}),
    "gpt2": None,
}
# Two entities; three layers with one, nine and three cells, and multipliers of which one needs rounding.
GROUPS = (
    EntityEdits("Japan", (ColumnEdit(Cell(0, 3)), *(ColumnEdit(Cell(1, neuron), -2.0) for neuron in range(9)))),
    EntityEdits("Peru", tuple(ColumnEdit(Cell(2, neuron), -1.3) for neuron in (40, 7, 21))),
)


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def dtype(request):
    return request.param


def adapter(tmp_path, model_type, dtype=torch.bfloat16):
    folder = save_tiny(tmp_path / "m", model_type, dtype=dtype)
    manifest = save("adapter", ModelSource(folder, ModelRef("org/base")), GROUPS, tmp_path / "out")
    return manifest, json.loads((tmp_path / "out" / CONFIG_NAME).read_bytes())


def test_every_architecture_is_known_here():
    assert CLASSES.keys() == set(MODEL_TYPES)
    assert set(RANKS) < set(MAX_LORA_RANKS)


@pytest.mark.parametrize("model_type", [name for name, row in CLASSES.items() if row is not None])
def test_vllm_takes_the_adapter_and_finds_every_module(tmp_path, model_type, dtype):
    _, config = adapter(tmp_path, model_type, dtype)
    assert config.keys() >= REQUIRED
    assert not [name for name in MUST_BE_EMPTY if config.get(name)]
    assert not [name for name in NOT_EVERYWHERE if name in config]
    assert {name: config[name] for name in ONLY_VALUE} == ONLY_VALUE
    assert config["r"] == 16 and config["r"] in MAX_LORA_RANKS
    assert config["lora_alpha"] / config["r"] == 1.0
    (target,) = config["target_modules"]
    assert config["layers_to_transform"] == [0, 1, 2]

    linear, packed = CLASSES[model_type]
    parts = {part for names in packed.values() for part in names}
    model = tiny_model(model_type)
    found = {}
    for key, factor in load_file(tmp_path / "out" / WEIGHTS_NAME).items():
        match = KEY.fullmatch(key)
        assert match is not None, key
        found.setdefault(match["module"], {})[match["factor"]] = factor
    assert [re.split(r"\.\d\.", path)[1] for path in found] == [target] * 3
    for path, factors in found.items():
        name = path.rsplit(".", 1)[-1]
        assert name in linear
        assert name not in packed.keys() | parts, "a packed layer would need an adapter for each of its parts"
        weight = model.get_submodule(path).weight
        assert factors["A"].shape == (config["r"], weight.shape[1])
        assert factors["B"].shape == (weight.shape[0], config["r"])
        # vLLM casts both to the type of the model.
        assert factors["A"].dtype == factors["B"].dtype and factors["A"].dtype in (dtype, torch.float32)
        assert bool(torch.isfinite(factors["B"].float()).all())


def test_the_card_gives_the_rank_that_is_needed_and_no_hint_where_vllm_takes_no_adapter(tmp_path):
    for model_type, row in CLASSES.items():
        (tmp_path / model_type).mkdir()
        manifest, config = adapter(tmp_path / model_type, model_type)
        card = model_card(manifest, BaseCard(ModelRef("org/base")), "ada/m", None)
        if row is None:
            assert "vllm" not in card
        else:
            assert f"vllm serve org/base --enable-lora --max-lora-rank {config['r']} --lora-modules" in card
