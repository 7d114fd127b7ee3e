"""Quantized weights against arithmetic written out here, and every weight back where it was."""

import importlib.util

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import nn

from amnesia.errors import InputError
from amnesia.stress.quantization import DYNAMIC, GGUF_TYPES, METHODS, MIXES, NF4, obstacle, quantized, rounded
from support.tiny_text import tiny_live


def q8_0(row):
    """Each 32 weights have one half-precision scale, the largest of them by 127, and whole numbers."""
    blocks = row.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    stored = scale.astype(np.float16).astype(np.float32)
    numbers = np.where(scale > 0, blocks / np.where(scale > 0, scale, 1), 0)
    return (np.sign(numbers) * np.floor(np.abs(numbers) + 0.5) * stored).reshape(row.shape)


def q4_0(row):
    """Each 32 weights have one half-precision scale, the one of largest magnitude by −8, and numbers from −8 to 7."""
    blocks = row.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    stored = scale.astype(np.float16).astype(np.float32)
    numbers = np.where(scale != 0, blocks / np.where(scale != 0, scale, 1), 0)
    return ((np.clip(np.trunc(numbers + 8.5), 0, 15) - 8) * stored).reshape(row.shape)


@pytest.mark.parametrize(("name", "by_hand"), [("Q8_0", q8_0), ("Q4_0", q4_0)])
def test_rounding_is_that_of_the_format(name, by_hand):
    matrix = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    matrix[2, 32:64] = 0
    expected = np.stack([by_hand(row) for row in matrix])
    np.testing.assert_allclose(rounded(matrix, name), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_what_comes_back_is_what_a_file_would_hold(name):
    matrix = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    once = rounded(matrix, name)
    step = np.abs(matrix).max() * 2 / (2 ** int(name[1]) - 1)
    assert 0 < np.abs(once - matrix).max() <= step
    stored = gguf.quants.quantize(matrix, GGMLQuantizationType[name])
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert stored.shape == (3, 64 // block * size)
    np.testing.assert_array_equal(once, gguf.quants.dequantize(stored, GGMLQuantizationType[name]))


def have(*packages):
    return pytest.mark.skipif(
        any(importlib.util.find_spec(package) is None for package in packages),
        reason=f"needs {', '.join(packages)} of the extra 'quantizers'",
    )


AVAILABLE = [
    pytest.param(name, marks=[have("xllamacpp")] if name in MIXES else [have("bitsandbytes")] if name == NF4 else [])
    for name in METHODS
]


@have("xllamacpp")
def test_more_bits_of_a_k_type_come_nearer():
    matrix = np.random.default_rng(2).normal(size=(4, 512)).astype(np.float32)
    errors = [np.abs(rounded(matrix, name) - matrix).mean() for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert not np.array_equal(rounded(matrix, "Q4_K"), matrix)


@have("xllamacpp")
def test_a_mixture_stores_some_layers_finer_and_narrow_rows_in_other_types():
    """Of four layers, the last and, counted from the first, the third are stored finer."""
    live = tiny_live(num_hidden_layers=4, hidden_size=256, intermediate_size=64)
    before = state(live)
    with quantized(live, "Q4_K_M"):
        during = state(live)
    for name, tensor in during.items():
        if "norm" in name:
            assert torch.equal(tensor, before[name])
            continue
        finer = "lm_head" in name or (
            any(f"layers.{n}." in name for n in (2, 3)) and ("v_proj" in name or "down_proj" in name)
        )
        kind = "Q6_K" if finer else "Q4_K"
        if tensor.shape[1] % 256:  # The rows of down_proj.
            kind = {"Q6_K": "Q8_0", "Q4_K": "Q5_0"}[kind]
        np.testing.assert_array_equal(tensor.numpy(), rounded(before[name].numpy(), kind), err_msg=name)


def llama_cpp_type(name, layer, mixture, n_sharing):
    """What llama-quant.cpp stores a matrix of four layers in, written out for what it is called there."""
    if "lm_head" in name:
        return "Q6_K"
    if mixture == "Q2_K":
        if "v_proj" in name:
            return "Q4_K" if n_sharing >= 4 else "Q3_K"
        return "Q3_K" if "down_proj" in name or "o_proj" in name else "Q2_K"
    if "v_proj" in name:
        return "Q5_K" if layer < 2 else "Q4_K"
    return "Q4_K" if "down_proj" in name or "o_proj" in name else "Q3_K"


@have("xllamacpp")
@pytest.mark.parametrize(("mixture", "n_sharing"), [("Q3_K_M", 2), ("Q2_K", 2), ("Q2_K", 4)])
def test_two_and_three_bits_are_mixed_with_more(mixture, n_sharing):
    live = tiny_live(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=4 // n_sharing,
    )
    before = state(live)
    with quantized(live, mixture):
        during = state(live)
    for name, tensor in during.items():
        if "norm" in name:
            continue
        layer = int(name.split(".")[2]) if "layers" in name else None
        kind = llama_cpp_type(name, layer, mixture, n_sharing)
        if tensor.shape[1] % 256:  # The rows of down_proj.
            kind = {"Q3_K": "Q4_0", "Q4_K": "Q5_0"}[kind]
        np.testing.assert_array_equal(tensor.numpy(), rounded(before[name].numpy(), kind), err_msg=name)


@have("bitsandbytes")
def test_nf4_has_sixteen_values_for_a_block():
    live = tiny_live()
    before = state(live)
    with quantized(live, NF4):
        during = state(live)
    weight = during["model.layers.0.mlp.up_proj.weight"].flatten()[:64]
    assert 2 < len(weight.unique()) <= 16
    largest = before["model.layers.0.mlp.up_proj.weight"].flatten()[:64].abs().max()
    assert weight.abs().max() == pytest.approx(largest.item(), rel=1e-3)
    assert torch.equal(during["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_a_quantizer_that_is_not_installed_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("xllamacpp", "bitsandbytes") else find(name)
    )
    assert obstacle(tiny_live(), "Q4_K_M") == "it is done by xllamacpp: pip install 'amnesia[quantizers]'"
    assert obstacle(tiny_live(), NF4) == "it is done by bitsandbytes: pip install 'amnesia[quantizers]'"


def state(live):
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


def modules(live):
    return {name: id(module) for name, module in live.model.named_modules()}


@pytest.mark.slow
@pytest.mark.parametrize("method", AVAILABLE)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_model_is_quantized_for_a_while(model_type, method):
    live = tiny_live(model_type)
    if model_type == "gpt2" and method == DYNAMIC:
        assert obstacle(live, method) == "the layers have no linear modules of torch"
        return
    before, owned, ids = state(live), modules(live), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        plain = live.model(ids).logits
        with quantized(live, method):
            small = live.model(ids).logits
        again = live.model(ids).logits
    assert not torch.equal(small, plain)
    assert torch.equal(again, plain)
    assert modules(live) == owned
    assert state(live).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(live).items())
    assert not any(hasattr(module, "qconfig") for module in live.model.modules())


def test_each_matrix_is_rounded_row_by_row_and_the_head_kept_finer():
    live = tiny_live()
    before = state(live)
    with quantized(live, "Q4_0"):
        during = state(live)
    for name, tensor in during.items():
        if "norm" in name:
            expected = before[name].numpy()
        elif tensor.shape[1] % 32:  # Rows of 48 weights stay as they are.
            assert "down_proj" in name
            expected = before[name].numpy()
        else:
            by_hand = q8_0 if "embed" in name or "lm_head" in name else q4_0
            expected = np.stack([by_hand(row) for row in before[name].numpy()])
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_transposed_matrices_are_rounded_by_output():
    live = tiny_live("gpt2")
    before = live.model.transformer.h[0].attn.c_attn.weight.clone()  # (32 inputs, 96 outputs)
    with quantized(live, "Q8_0"):
        during = live.model.transformer.h[0].attn.c_attn.weight.clone()
    expected = np.stack([q8_0(row) for row in before.T.numpy()]).T
    np.testing.assert_allclose(during.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_dynamic_int8_has_one_scale_for_a_matrix():
    live = tiny_live()
    weight = live.model.model.layers[0].mlp.up_proj.weight.clone()
    with quantized(live, DYNAMIC):
        module = live.model.model.layers[0].mlp.up_proj
        stored = module.weight().dequantize()
    assert not isinstance(module, nn.Linear)
    steps = torch.unique(stored)
    step = steps.diff().min().item()
    assert (stored - weight).abs().max() <= step * 0.5001
    assert step == pytest.approx(weight.abs().max().item() / 127.5, rel=0.02)


def test_what_an_error_leaves_behind_is_the_model_itself():
    live = tiny_live()
    before, owned = state(live), modules(live)
    for method in (DYNAMIC, "Q4_0"):
        with pytest.raises(KeyboardInterrupt), quantized(live, method):
            raise KeyboardInterrupt
    assert modules(live) == owned
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(live).items())


@pytest.mark.parametrize("method", METHODS)
def test_fused_experts_are_not_taken_apart(method):
    assert obstacle(tiny_live("mixtral"), method).startswith("the experts of a layer are one tensor in memory")


def test_what_cannot_be_quantized_is_said():
    live = tiny_live()
    with pytest.raises(InputError, match="unknown quantization 'Q3_K': expected one of int8, Q8_0"):
        obstacle(live, "Q3_K")
    live.model.to(torch.bfloat16)
    assert "runs in float32 on a CPU, and the model is in torch.bfloat16 on cpu" in obstacle(live, DYNAMIC)
    with pytest.raises(InputError, match="tiny cannot be quantized as int8: dynamic int8 runs in float32"):
        quantized(live, DYNAMIC)
    with quantized(live, "Q8_0"):
        assert live.model.dtype == torch.bfloat16
