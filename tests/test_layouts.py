"""The table of architectures, against what transformers really builds."""

import pytest
import torch
from safetensors import safe_open

from amnesia.errors import LayoutError
from amnesia.layouts import LAYOUTS, layout_for, shape_from_config
from tiny import D_MLP, D_MODEL, N_LAYERS, save_tiny, tiny_model

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_inner": None}
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12}


@pytest.mark.parametrize("model_type", LAYOUTS)
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
    gated = any(name.endswith(("gate_proj", "gate_up_proj")) for name in names)
    assert shape.layout.gated == gated


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_rows_fit_the_tensors_on_disk(tmp_path, model_type):
    save_tiny(tmp_path, model_type, extras=())
    names = set()
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    for layer in range(N_LAYERS):
        assert len(names & set(LAYOUTS[model_type].tensor_names(layer))) == 1


def test_the_hub_stores_gpt2_without_its_prefix():
    assert layout_for("gpt2").tensor_names(1) == ("transformer.h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.weight")


def test_gpt2_may_leave_out_the_size_of_its_mlp():
    assert shape_from_config(GPT2).d_mlp == 32
    assert shape_from_config({**GPT2, "n_inner": 20}).d_mlp == 20


@pytest.mark.parametrize("model_type", ["opt", None, "", "Llama"])
def test_unknown_architectures_are_refused_with_the_known_ones(model_type):
    with pytest.raises(LayoutError, match=r"is not supported: known are gemma2, gpt2, .*qwen3; use a model of one"):
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
