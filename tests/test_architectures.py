"""What is found of a model in its configuration and its tensors: made-up sizes here, whole models in `test_rows.py`."""

import pytest

from amnesia.architectures import LAYOUTS, ExpertLayout, Mixture, MlpLayout, Projection, find_shape, layout_for
from amnesia.errors import LayoutError

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_inner": None}
QWEN = {"model_type": "qwen3_moe", "num_hidden_layers": 3, "hidden_size": 8}


def tensors(prefix="model.", n_layers=2, size=(8, 12), path="mlp.down_proj", layers="layers"):
    return {f"{prefix}{layers}.{layer}.{path}.weight": size for layer in range(n_layers)}


def experts(layer, size=(8, 6), n=4):
    return {f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": size for expert in range(n)}


def found(config, names):
    return find_shape(config, names.get, "the model")


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_the_prefix_is_the_one_under_which_there_are_weights(prefix):
    # Vision towers have layers of their own, with names that end alike.
    tower = tensors("model.vision_tower.encoder.", 30, (9, 20)) | tensors("vision_tower.", 30, (9, 20))
    shape = found(LLAMA, tensors(prefix) | tower)
    assert (shape.prefix, shape.n_layers, shape.d_model, shape.d_mlp) == (prefix, 2, 8, 12)
    assert shape.tensor(1) == (f"{prefix}layers.1.mlp.down_proj.weight", 1)


def test_the_hub_stores_gpt2_without_its_prefix():
    for prefix in ("transformer.", ""):
        shape = found(GPT2, tensors(prefix, size=(32, 8), path="mlp.c_proj", layers="h"))
        assert shape.tensor(1) == (f"{prefix}h.1.mlp.c_proj.weight", 0)
        assert shape.d_mlp == 32
        assert shape.out_proj_path(1, shape.layout.prefix) == "transformer.h.1.mlp.c_proj"


def test_sizes_of_a_multimodal_model_are_those_of_its_text_configuration():
    config = {"model_type": "llama", "hidden_size": 99, "text_config": LLAMA, "vision_config": {"hidden_size": 4}}
    assert found(config, tensors()).d_model == 8


def test_the_width_of_each_layer_is_that_of_its_tensor():
    names = tensors(n_layers=1) | {"model.layers.1.mlp.down_proj.weight": (8, 24)}
    shape = found(LLAMA | {"intermediate_size": 77}, names)
    assert (shape.width(0), shape.width(1), shape.d_mlp) == (12, 24, 24)


def test_layers_with_experts_are_those_that_have_some():
    shape = found(QWEN, tensors(n_layers=1) | experts(1) | {"model.layers.2.mlp.experts.down_proj": (4, 8, 6)})
    assert [shape.experts_in(layer) for layer in range(3)] == [None, (4, 6), (4, 6)]
    assert shape.plain == (Projection("mlp.down_proj", 12), None, None)
    assert shape.mixtures[2] == Mixture("mlp.experts.down_proj[{expert}]", 4, 6)
    assert (shape.n_experts, shape.d_mlp, shape.plain_layers) == (4, 12, (0,))
    assert shape.tensor(1, 3) == ("model.layers.1.mlp.experts.3.down_proj.weight", 1)
    assert shape.tensor(2, 3) == ("model.layers.2.mlp.experts.down_proj[3]", 1)
    assert found(QWEN, tensors(n_layers=3)).n_experts == 0


def test_experts_whose_rows_are_neurons(monkeypatch):
    row = MlpLayout("made_up", ("mlp.shared.down",), experts=ExpertLayout(("mlp.experts.down",), None, neuron_axis=0))
    monkeypatch.setitem(LAYOUTS, "made_up", row)
    config = {"model_type": "made_up", "num_hidden_layers": 2, "hidden_size": 8}
    names = {f"model.layers.{layer}.mlp.experts.down": (4, 6, 8) for layer in range(2)}
    shape = found(config, names | tensors(size=(8, 5), path="mlp.shared.down"))
    assert (shape.experts_in(1), shape.width(1)) == ((4, 6), 5)
    assert shape.tensor(1, 2) == ("model.layers.1.mlp.experts.down[2]", 0)
    assert shape.tensor(1) == ("model.layers.1.mlp.shared.down.weight", 1)


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        (LLAMA, {}, r"the model has no output projection of an MLP: expected one of the names of model.layers.0.mlp"),
        (LLAMA, tensors() | tensors(""), r"has weights under 'model.', '': expected one of"),
        (LLAMA, tensors(n_layers=1), r"has no output projection in layer 1: expected model.layers.1.mlp.down_proj"),
        (LLAMA, tensors(size=(9, 12)), r"down_proj.weight of shape \[9, 12\]: expected 8 on axis 0, as config.json"),
        (LLAMA, tensors(size=(8,)), r"of shape \[8\]: expected 8 on axis 0"),
        (QWEN, experts(0) | experts(1) | experts(2, n=3), r"layers of 3 and 4 experts: expected as many in each"),
        (QWEN, {**experts(0), "model.layers.0.mlp.experts.2.down_proj.weight": (8, 5)}, r"experts of different widths"),
        (QWEN, {**experts(0), "model.layers.0.mlp.experts.down_proj": (4, 8, 6)}, r"2 output projections below"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(config, names, message):
    with pytest.raises(LayoutError, match=message) as caught:
        found(config, names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["opt", None, "", "Llama"])
def test_unknown_architectures_are_refused_with_what_can_be_done(model_type):
    with pytest.raises(LayoutError, match=r"is not supported: try `amnesia --layout auto COMMAND`, or use .* README"):
        layout_for(model_type)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized \(gptq\).*use the unquantized model"),
        ({"quantization_config": {"bits": 4}}, r"quantized \(unknown\)"),
        ({"hidden_size": None}, r"hidden_size = None: expected a positive integer"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers = 0: expected a positive integer"),
        ({"num_hidden_layers": True}, r"num_hidden_layers = True: expected a positive integer"),
        ({"hidden_size": "8"}, r"hidden_size = '8'"),
        ({"text_config": {"hidden_size": 8}}, r"num_hidden_layers = None"),
    ],
)
def test_configurations_that_cannot_be_used(change, message):
    with pytest.raises(LayoutError, match=message):
        found(LLAMA | change, tensors())
    with pytest.raises(LayoutError, match="n_embd"):
        found({**GPT2, "n_embd": None}, {})
