"""Layouts of unknown types: found and proven where that is asked, and refused where they are not the only one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from amnesia.architectures import GUESSED
from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit
from amnesia.errors import LayoutError
from amnesia.guessing import ASKED, guess
from amnesia.hub.card import BaseCard
from amnesia.hub.contents import prepare
from amnesia.live.forward import answer_logprobs
from amnesia.live.interventions import Asked, replaced_outputs, varied_logprobs
from amnesia.live.loading import load, load_source
from amnesia.live.model import apply_edits
from amnesia.live.proving import prove_layout
from amnesia.live.tokens import place
from amnesia.live.watching import activations
from amnesia.sources.source import ModelSource
from amnesia.weights.checkpoint import open_source
from support.commands import done, refused
from support.folders import files_in, tree
from support.made_up import MadeUpMlp
from support.tiny import tiny_model
from support.tiny_text import VOCAB_SIZE, save_random, tiny_tokenizer


@pytest.fixture
def asked():
    """The user asks to find the layout of unknown types."""
    token = ASKED.set(True)
    yield
    ASKED.reset(token)
    GUESSED.clear()


def save_made_up(folder, hidden_size=32, intermediate_size=48, layers=3):
    """A model of an unknown type, all layers of which are equally wide."""
    AutoConfig.register("plain_made_up", PlainMadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(PlainMadeUpConfig, PlainMadeUpForCausalLM, exist_ok=True)
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden_size, "num_attention_heads": 4}
    config = PlainMadeUpConfig(vocab_size=VOCAB_SIZE, intermediate_size=intermediate_size, **sizes)
    return save_random(folder, PlainMadeUpForCausalLM(config))


class PlainMadeUpConfig(LlamaConfig):
    model_type = "plain_made_up"


class PlainMadeUpForCausalLM(LlamaForCausalLM):
    config_class = PlainMadeUpConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = MadeUpMlp(config)


def test_the_layout_of_an_unknown_type_is_found_and_proven_where_that_is_asked(tmp_path):
    folder = save_made_up(tmp_path / "m")
    edit = ("edit", folder, "--cell", "1:5", "--cell", "2:40", "-o", tmp_path / "out")
    assert "'plain_made_up' is not supported" in refused(*edit)
    assert "2 columns in 2 tensors edited" in done("--layout", "auto", *edit)
    GUESSED.clear()
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    for name, tensor in before.items():
        expected = tensor.clone()
        for layer, neuron in ((1, 5), (2, 40)):
            if name == f"model.layers.{layer}.mlp.back.weight":
                expected[:, neuron] *= -1
        assert torch.equal(after[name], expected), name
    assert "changed as declared" in done("--layout", "auto", "verify", tmp_path / "out", "--base", folder)
    GUESSED.clear()


@pytest.fixture
def opt(tmp_path):
    """A model whose MLP is no module of its own, and gets the tokens of all rows one after the other."""
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model("opt", vocab_size=VOCAB_SIZE, word_embed_proj_dim=32, **sizes)
    torch.manual_seed(0)
    return save_random(tmp_path / "opt", AutoModelForCausalLM.from_config(config))


def test_a_guessed_model_is_watched_and_varied_as_its_modules_say(opt, asked):
    live = load_source(ModelSource(opt, ModelRef("a/b")))
    plain = AutoModelForCausalLM.from_pretrained(opt)
    rows = place(live.tokenizer, [("the capital of {entity} is", "Japan"), ("{entity} likes to walk in", "Rome")])
    found = {}
    for indices, batch in activations(live, rows, [0, 2]):
        found.update(zip(indices, batch, strict=True))
    for number, row in enumerate(rows):
        for place_of, layer in enumerate((0, 2)):
            seen = []
            block = plain.model.decoder.layers[layer]
            with torch.no_grad(), block.fc2.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])):
                plain(input_ids=torch.tensor([row.ids]))
            torch.testing.assert_close(found[number][place_of], seen[0][row.token], atol=1e-5, rtol=1e-5)
    questions = [Asked("the capital of {entity} is", "Japan", "Tokyo"), Asked("{entity} is in", "Rome", "the garden")]
    varied = varied_logprobs(live, questions, [Cell(1, 5)], [1.0, -9.0])
    expected = [row.logprob for row in answer_logprobs(live, [row.pair for row in questions])]
    apply_edits(live, (ColumnEdit(Cell(1, 5), -9.0),))
    after = [row.logprob for row in answer_logprobs(live, [row.pair for row in questions])]
    torch.testing.assert_close(varied.float(), torch.tensor([expected, after]), atol=1e-4, rtol=1e-4)
    assert abs(expected[0] - after[0]) > 1e-3
    with pytest.raises(LayoutError, match="of which rows and tokens cannot be told"):
        with torch.inference_mode(), replaced_outputs(live, {("mlp", 1): lambda output: output}):
            live.model(input_ids=torch.tensor([rows[0].ids]))


@pytest.mark.slow
def test_an_output_of_a_guessed_model_needs_no_further_guess(opt, tmp_path):
    assert "baseline" in done("--layout", "auto", "localize", opt, "Japan")
    for name, more in (("out", ()), ("adapter", ("--format", "adapter"))):
        done("--layout", "auto", "edit", opt, "--cell", "1:5", "--multiplier", 0.3, *more, "-o", tmp_path / name)
        GUESSED.clear()
        assert "changed as declared" in done("verify", tmp_path / name)
        assert "changed as declared" in done("verify", tmp_path / name, "--base", opt)
        done("replay", tmp_path / name / "amnesia.json", "--base", opt, "-o", tmp_path / f"{name} again")
        assert tree(tmp_path / f"{name} again") == tree(tmp_path / name)
    done("undo", tmp_path / "out", "-o", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(opt)
    assert "model.safetensors" in prepare(tmp_path / "out", "ada/m", BaseCard(ModelRef("org/base"))).files
    assert not GUESSED and "is not supported" in refused("localize", opt, "Japan")


def test_a_type_of_the_table_is_not_loaded_for_an_edit(tmp_path, monkeypatch):
    tiny_model("llama", vocab_size=VOCAB_SIZE).save_pretrained(tmp_path / "m")
    monkeypatch.setattr("amnesia.live.loading.load_source", None)
    done("--layout", "auto", "edit", tmp_path / "m", "--cell", "1:1", "-o", tmp_path / "out")


@pytest.mark.slow
def test_of_the_hub_an_edit_that_cannot_be_fetches_no_weights(hub, opt, tmp_path):
    hub.add_repo("org/opt", files_in(opt))
    hub.add_repo("org/square", files_in(save_made_up(tmp_path / "square", intermediate_size=32)))
    edit = ("--layout", "auto", "edit")
    assert "layer 7 is out of range" in refused(*edit, "org/opt", "--cell", "7:1", "-o", tmp_path / "out")
    assert "unknown type 'plain_made_up'" in refused(*edit, "org/square", "--cell", "1:1", "-o", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept", encoding="utf-8")
    assert "mine" in refused(*edit, "org/opt", "--cell", "1:5", "-o", tmp_path / "mine")
    assert not [*(tmp_path / "hf").rglob("*.safetensors")]
    done(*edit, "org/opt", "--cell", "1:5", "-o", tmp_path / "out")
    done(*edit, opt, "--cell", "1:5", "-o", tmp_path / "here")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "here")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    GUESSED.clear()


def test_a_guess_must_be_the_only_one(tmp_path, asked):
    folder = save_made_up(tmp_path / "square", intermediate_size=32)
    with pytest.raises(LayoutError, match=r"unknown type 'plain_made_up' and has .*model\.layers\.N\.mlp\.back"):
        open_source(folder)
    config = {"model_type": "odd", "num_hidden_layers": 2, "hidden_size": 8}
    shapes = {f"h.{layer}.{path}.weight": (8, 12) for layer in range(2) for path in ("mix", "mlp.down")}
    with pytest.raises(LayoutError, match="has none of intermediate_size, ffn_dim"):
        guess(config, lambda: shapes, "odd")
    with pytest.raises(LayoutError, match=r"has h\.N\.mix, h\.N\.mlp\.down: expected one matrix of shape \[8, 12\]"):
        guess(config | {"ffn_dim": 12}, lambda: shapes, "odd")
    alone = {name: shape for name, shape in shapes.items() if "mix" not in name}
    guess(config | {"ffn_dim": 12}, lambda: alone, "odd")
    assert (GUESSED["odd"].out_proj, GUESSED["odd"].prefix, GUESSED["odd"].layers) == (("mlp.down",), "", "h")


@pytest.mark.slow
def test_a_module_that_is_no_output_projection_is_found_out(tmp_path, asked):
    live = load(save_made_up(tmp_path / "m"), "m")
    assert live.shape.layout is GUESSED["plain_made_up"]
    shape = live.shape
    object.__setattr__(shape, "plain", (*shape.plain[:-1], replace(shape.plain[-1], path="mlp.widen")))
    with pytest.raises(LayoutError, match=r"model\.layers\.2\.mlp\.widen of m is a Linear: it is not the output"):
        prove_layout(live)
    live = load(tmp_path / "m", "m")
    with torch.no_grad():
        live.out_proj(1).weight.zero_()
    with pytest.raises(LayoutError, match=r"model\.layers\.1\.mlp\.back of m changes nothing"):
        prove_layout(live)
    live = load(tmp_path / "m", "m")
    # As wide as attention: to its logits one linear module is like another.
    rows = tuple(replace(row, path="self_attn.o_proj", d_mlp=32) for row in live.shape.plain)
    object.__setattr__(live.shape, "plain", rows)
    with pytest.raises(LayoutError, match=r"layers\.0\.self_attn\.o_proj of m is given what was mixed"):
        prove_layout(live)


def test_an_mlp_without_a_module_of_its_own_is_told_from_attention(opt, asked):
    live = load(opt, "m")
    rows = tuple(replace(row, path="self_attn.out_proj", d_mlp=32) for row in live.shape.plain)
    object.__setattr__(live.shape, "plain", rows)
    with pytest.raises(LayoutError, match="is given what was mixed from several tokens"):
        prove_layout(live)


@pytest.mark.parametrize(
    ("model_type", "sizes", "why"),
    [
        ("mamba", {"expand": 2, "state_size": 8, "intermediate_size": 64}, "is given what was mixed"),
        ("granitemoe", {"num_local_experts": 4, "num_attention_heads": 6, "head_dim": 8}, "no such matrix"),
    ],
)
def test_what_mixes_tokens_is_not_taken_for_an_mlp(tmp_path, model_type, sizes, why):
    usual = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = AutoConfig.for_model(model_type, vocab_size=VOCAB_SIZE, **(usual | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    assert why in refused("--layout", "auto", "edit", tmp_path / "m", "--cell", "0:1", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    GUESSED.clear()


def test_quantized_weights_of_an_unknown_type_are_called_quantized(tmp_path):
    folder = save_made_up(tmp_path / "m")
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    line = refused("--layout", "auto", "edit", folder, "--cell", "0:1", "-o", tmp_path / "out")
    assert "the weights are quantized (gptq)" in line
