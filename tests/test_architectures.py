"""The table of architectures, against what transformers really builds."""

import json

import pytest
import torch
from safetensors import safe_open

from amnesia.architectures import LAYOUTS, layout_for, shape_from_config
from amnesia.errors import LayoutError
from amnesia.weights.safetensors import read_weight_files
from support.tiny import D_MLP, D_MODEL, MODEL_TYPES, MOE_TYPES, N_EXPERTS, N_LAYERS, save_tiny, tiny_model

# Layer 0 has no experts by the list, layer 1 has some, layer 2 has none by the period.
MIXED = {"moe_intermediate_size": 16, "mlp_only_layers": [0], "decoder_sparse_step": 2}
QWEN = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 4,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_experts": 4,
    "moe_intermediate_size": 6,
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_inner": None}
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rows_fit_the_modules_of_transformers(model_type):
    model = tiny_model(model_type)
    shape = shape_from_config(model.config.to_dict())
    assert (shape.n_layers, shape.d_model, shape.d_mlp) == (N_LAYERS, D_MODEL, D_MLP)
    for layer in range(N_LAYERS):
        module = model.get_submodule(shape.layout.out_proj_path(layer))
        expected = (D_MLP, D_MODEL) if shape.layout.neuron_axis == 0 else (D_MODEL, D_MLP)
        assert tuple(module.weight.shape) == expected
        # Whatever the orientation is called, the module maps d_mlp activations to d_model outputs.
        assert module(torch.zeros(1, D_MLP)).shape == (1, D_MODEL)
    names = {name for name, _ in model.named_modules()}
    assert shape.layout.out_proj_path(N_LAYERS) not in names


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rows_fit_the_tensors_on_disk(tmp_path, model_type):
    save_tiny(tmp_path, model_type, extras=())
    names = set()
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    for layer in range(N_LAYERS):
        assert len(names & set(LAYOUTS[model_type].tensor_names(layer))) == 1


def settings_of(model_type):
    return MIXED if model_type == "qwen3_moe" else {}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_rows_of_experts_fit_memory_and_disk(tmp_path, model_type, fused):
    model = tiny_model(model_type, **settings_of(model_type))
    save_tiny(tmp_path, model_type, extras=(), fused=fused, **settings_of(model_type))
    config = json.loads((tmp_path / "config.json").read_text())
    shape = shape_from_config(config)
    assert shape == shape_from_config(model.config.to_dict())
    weights = read_weight_files(tmp_path)
    for layer in range(N_LAYERS):
        experts = shape.experts_in(layer)
        assert (experts is None) == (model_type == "qwen3_moe" and layer != 1)
        if experts is None:
            assert model.get_submodule(shape.layout.out_proj_path(layer)).weight.shape == (D_MODEL, D_MLP)
            assert sum(weights.find(name) is not None for name in shape.layout.tensor_names(layer)) == 1
            continue
        assert experts == (N_EXPERTS, 16 if model_type == "qwen3_moe" else D_MLP)
        assert model.get_parameter(shape.layout.fused_path(layer)).shape == (N_EXPERTS, D_MODEL, experts[1])
        for expert in range(N_EXPERTS):
            found = [weights.find(name) for name in shape.layout.tensor_names(layer, expert)]
            assert [place[1].shape for place in found if place is not None] == [(D_MODEL, experts[1])]
        assert not any(weights.find(name) for name in shape.layout.tensor_names(layer, N_EXPERTS))


def test_layers_without_experts_follow_from_the_configuration():
    def with_experts(**change):
        shape = shape_from_config(QWEN | change)
        return [layer for layer in range(4) if shape.experts_in(layer)]

    assert with_experts() == with_experts(mlp_only_layers=None) == [0, 1, 2, 3]
    assert with_experts(mlp_only_layers=[1, 7]) == [0, 2, 3]
    assert with_experts(decoder_sparse_step=2) == [1, 3]
    assert with_experts(decoder_sparse_step=2, mlp_only_layers=[3]) == [1]
    assert with_experts(num_experts=0, moe_intermediate_size=None) == []
    assert with_experts(num_local_experts=4) == [0, 1, 2, 3]
    assert shape_from_config(QWEN).experts_in(0) == (4, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, r"has no number of experts: expected one number as num_local_experts or num_experts"),
        ({"num_local_experts": 8}, r"has \{'num_local_experts': 8, 'num_experts': 4\}: expected one number"),
        ({"num_experts": -1}, r"num_experts = -1: expected a whole number"),
        ({"num_experts": True}, r"num_experts = True: expected"),
        ({"moe_intermediate_size": None}, r"moe_intermediate_size = None: expected a positive integer"),
        ({"decoder_sparse_step": 0}, r"decoder_sparse_step = 0: expected a positive integer"),
        ({"mlp_only_layers": 3}, r"mlp_only_layers that is not a list of layers"),
        ({"mlp_only_layers": ["0"]}, r"mlp_only_layers that is not a list of layers"),
    ],
)
def test_experts_that_cannot_be_used(change, message):
    with pytest.raises(LayoutError, match=message):
        shape_from_config(QWEN | change)
    with pytest.raises(LayoutError, match="num_local_experts = 0: expected a positive integer"):
        shape_from_config({**QWEN, "model_type": "mixtral", "num_experts": None, "num_local_experts": 0})


def test_the_hub_stores_gpt2_without_its_prefix():
    assert layout_for("gpt2").tensor_names(1) == ("transformer.h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.weight")


def test_gpt2_may_leave_out_the_size_of_its_mlp():
    assert shape_from_config(GPT2).d_mlp == 32
    assert shape_from_config({**GPT2, "n_inner": 20}).d_mlp == 20


@pytest.mark.parametrize("model_type", ["opt", None, "", "Llama"])
def test_unknown_architectures_are_refused_with_the_known_ones(model_type):
    with pytest.raises(
        LayoutError, match=r"is not supported: known are gemma2, gemma3_text, gpt2, .*qwen3_moe; use a model of one"
    ):
        layout_for(model_type)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized \(gptq\).*use the unquantized model"),
        ({"quantization_config": {"bits": 4}}, r"quantized \(unknown\)"),
        ({"hidden_size": None}, r"hidden_size = None: expected a positive integer"),
        ({"intermediate_size": [8, 12]}, r"intermediate_size = \[8, 12\]: expected a positive integer"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers = 0: expected a positive integer"),
        ({"hidden_size": "8"}, r"hidden_size = '8'"),
    ],
)
def test_configurations_that_cannot_be_used(change, message):
    with pytest.raises(LayoutError, match=message):
        shape_from_config(LLAMA | change)
    with pytest.raises(LayoutError, match="n_embd"):
        shape_from_config({**GPT2, "n_embd": None})
