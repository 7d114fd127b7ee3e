"""Adapters reach the modules of the class that serves them, or are not written."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from amnesia.architectures import GUESSED
from amnesia.domain import ModelRef
from amnesia.hub.card import BaseCard
from amnesia.hub.contents import prepare
from support.commands import done, refused
from support.tiny import save_tiny, tiny_model
from support.tiny_text import VOCAB_SIZE, save_random

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
VISION = {
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
    "idefics3": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    | {"image_size": 28, "patch_size": 14},
}
# PEFT asks transformers for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
CELLS = ("--cell", "0:1", "--cell", "2:2", "--multiplier", -3)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    GUESSED.clear()


def save_unknown(folder, auto, config):
    """A model of a type without a row, and its tokenizer, so that it can be loaded."""
    torch.manual_seed(0)
    return save_random(folder, auto.from_config(config))


def edit_guessed(folder, output, *more):
    GUESSED.clear()
    return ("--layout", "auto", "edit", folder, *CELLS, *more, "-o", output)


def assert_adapter_is_the_edit(auto, base, adapter, full):
    merged = PeftModel.from_pretrained(auto.from_pretrained(base), adapter).merge_and_unload().state_dict()
    before, after = (auto.from_pretrained(folder).state_dict() for folder in (base, full))
    assert sum(not torch.equal(before[name], after[name]) for name in after) == 2
    assert all(torch.equal(merged[name], after[name]) for name in after)


@pytest.mark.parametrize("model_type", ["gemma3", "mistral3"])
def test_an_adapter_is_proven_without_its_base_where_files_and_memory_differ_in_names(tmp_path, model_type):
    save_tiny(tmp_path / "m", model_type)
    assert any(name.startswith("language_model.model.") for name in tensors_of(tmp_path / "m"))
    done("edit", tmp_path / "m", "--cell", "0:1", "--format", "adapter", "-o", tmp_path / "ad")
    assert "changed as declared" in done("verify", tmp_path / "ad")
    assert "compared with the base" in done("verify", tmp_path / "ad", "--base", tmp_path / "m")
    weights = tmp_path / "ad" / "adapter_model.safetensors"
    save_file({name.replace(".layers.0.", ".layers.1."): row for name, row in load_file(weights).items()}, weights)
    assert "lacks the factors of tensor language_model.model.layers.0" in refused("verify", tmp_path / "ad")


def tensors_of(folder):
    return [name for path in folder.glob("*.safetensors") for name in load_file(path)]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", VISION)
def test_a_guessed_model_that_takes_images_has_an_adapter_by_the_names_in_memory(tmp_path, model_type):
    text = SIZES | (ROPE if model_type == "qwen2_vl" else {})
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=VISION[model_type])
    base = save_unknown(tmp_path / "m", AutoModelForImageTextToText, config)
    done(*edit_guessed(base, tmp_path / "full"))
    done(*edit_guessed(base, tmp_path / "ad", "--format", "adapter"))
    GUESSED.clear()
    done("verify", tmp_path / "ad")
    done("verify", tmp_path / "ad", "--base", base)
    assert_adapter_is_the_edit(AutoModelForImageTextToText, base, tmp_path / "ad", tmp_path / "full")
    assert "Load the base as `AutoModelForImageTextToText`" in (tmp_path / "ad" / "README.md").read_text()
    for name in ("full", "ad"):
        card = prepare(tmp_path / name, "ada/m", BaseCard(ModelRef("org/base"))).files["README.md"].decode()
        assert "AutoModelForImageTextToText.from_pretrained" in card and "AutoModelForCausalLM" not in card


@pytest.mark.slow
def test_a_guessed_model_saved_without_its_head_has_an_adapter_for_the_one_with_it(tmp_path):
    base = save_unknown(tmp_path / "m", AutoModelForCausalLM, AutoConfig.for_model("helium", **SIZES, head_dim=8))
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("model."): row for name, row in tensors.items()}, base / "model.safetensors")
    done(*edit_guessed(base, tmp_path / "full"))
    done(*edit_guessed(base, tmp_path / "ad", "--format", "adapter"))
    assert_adapter_is_the_edit(AutoModelForCausalLM, base, tmp_path / "ad", tmp_path / "full")


@pytest.mark.slow
def test_no_adapter_is_written_that_peft_would_not_put_on_a_guessed_mixture(tmp_path):
    config = AutoConfig.for_model("hunyuan_v1_moe", **SIZES, head_dim=8, num_experts=4, moe_topk=[2, 2, 2])
    base = save_unknown(tmp_path / "m", AutoModelForCausalLM, config)
    done(*edit_guessed(base, tmp_path / "full"))
    line = refused(*edit_guessed(base, tmp_path / "ad", "--format", "adapter"))
    assert "PEFT does not put this adapter on the modules of HunYuanMoEV1ForCausalLM" in line
    assert "write the format safetensors" in line and not (tmp_path / "ad").exists()


@pytest.mark.parametrize(
    ("model_type", "dense", "found"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, False),
        ("qwen3_next", {"mlp_only_layers": [0, 1, 2]}, False),
        ("glm4_moe", {"first_k_dense_replace": 3}, False),
        ("ernie4_5_moe", {"moe_layer_start_index": 3}, False),
        ("qwen2_moe", {"mlp_only_layers": [0, 1, 2]}, True),
        ("lfm2_moe", {"num_dense_layers": 3}, True),
    ],
)
def test_a_type_with_experts_but_none_in_the_model_has_an_adapter_where_peft_finds_its_modules(
    tmp_path, model_type, dense, found
):
    tiny_model(model_type, **dense).save_pretrained(tmp_path / "m")
    edit = ("edit", tmp_path / "m", *CELLS, "-o")
    if not found:
        assert "so that it would have no effect" in refused(*edit, tmp_path / "ad", "--format", "adapter")
        assert not (tmp_path / "ad").exists()
        return
    done(*edit, tmp_path / "full")
    done(*edit, tmp_path / "ad", "--format", "adapter")
    done("verify", tmp_path / "ad", "--base", tmp_path / "m")
    assert_adapter_is_the_edit(AutoModelForCausalLM, tmp_path / "m", tmp_path / "ad", tmp_path / "full")


def test_a_class_that_names_the_mlp_otherwise_than_the_files_cannot_be_guessed(tmp_path):
    sizes = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
    base = save_unknown(tmp_path / "m", AutoModelForCausalLM, AutoConfig.for_model("exaone", **sizes))
    line = refused(*edit_guessed(base, tmp_path / "full"))
    assert "transformers names its modules otherwise than its files do; use a model of a known type" in line
