"""Folders that are made of GGUF files."""

import json

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia.errors import SourceError
from amnesia.sources.conversion import convert_gguf
from amnesia.sources.opening import open_gguf
from amnesia.sources.rotary import rotary_settings
from support.tiny import tiny_model
from support.tiny_gguf import gemma3_gguf, llama_gguf, phi3_gguf
from support.tiny_text import tiny_tokenizer


@pytest.mark.slow
def test_a_file_of_the_same_name_in_the_working_directory_is_not_read(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    for seed, folder in enumerate(("here", "there")):
        (tmp_path / folder).mkdir()
        torch.manual_seed(seed)
        llama_gguf(
            tmp_path / folder / "m.gguf", tiny_model("llama", vocab_size=len(tokenizer), seed=seed), tokenizer=tokenizer
        )
    monkeypatch.chdir(tmp_path / "here")
    convert_gguf(tmp_path / "there" / "m.gguf", tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "there")
    convert_gguf(tmp_path / "there" / "m.gguf", tmp_path / "expected")
    name = "model.safetensors"
    assert (tmp_path / "folder" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_nothing_of_the_reader_reaches_the_terminal(tmp_path, capfd):
    tokenizer = tiny_tokenizer()
    llama_gguf(tmp_path / "m.gguf", tiny_model("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    capfd.readouterr()
    open_gguf(tmp_path / "m.gguf")
    assert capfd.readouterr() == ("", "")


def test_the_base_of_rotary_embeddings_stands_where_old_and_new_readers_look(tmp_path):
    tokenizer = tiny_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 123000.0}
    model = tiny_model("llama", vocab_size=len(tokenizer), rope_parameters=rope)
    convert_gguf(llama_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer), tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (123000.0, 123000.0)
    ids = torch.tensor([[1, 5, 9, 33, 60]])
    with torch.no_grad():
        both = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
        torch.testing.assert_close(both(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
        logits = both(ids).logits
        both.save_pretrained(tmp_path / "again")
        assert AutoConfig.from_pretrained(tmp_path / "again").rope_parameters == both.config.rope_parameters
        del config["rope_theta"]
        path.write_text(json.dumps(config), encoding="utf-8")
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "folder")(ids).logits, logits)


LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS = {
    "llama3": {"rope_theta": 500000.0, **LLAMA3},
    "linear": {"rope_theta": 10000.0, "factor": 8.0},
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_rotary_settings_of_a_file_is_that_of_the_model(tmp_path, kind):
    tokenizer, rope = tiny_tokenizer(), {"rope_type": kind, **SCALINGS[kind]}
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 64,
    }
    scaled, plain = (
        tiny_model("llama", vocab_size=len(tokenizer), rope_parameters=parameters, **sizes)
        for parameters in (rope, {"rope_type": "default", "rope_theta": rope["rope_theta"]})
    )
    plain.load_state_dict(scaled.state_dict())
    convert_gguf(llama_gguf(tmp_path / "m.gguf", scaled, tokenizer=tokenizer), tmp_path / "folder")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    ids = torch.arange(60)[None] % len(tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, scaled(ids).logits, atol=1e-4, rtol=1e-4)
        assert (plain(ids).logits - scaled(ids).logits).abs().max() > 1e-2
    # mlx-lm reads these two alone.
    config = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == rope["rope_theta"]
    assert config["rope_scaling"].items() >= {name: rope[name] for name in ("rope_type", "factor")}.items()


def test_the_layers_of_gemma_that_see_everything_are_scaled_alone(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    path = gemma3_gguf(tmp_path / "m.gguf", tiny_model("gemma3_text", rope_parameters=rope))
    assert rotary_settings(path, 0.0) == rope["full_attention"]


def test_the_factors_of_phi_3_are_taken_over(tmp_path):
    rope = {
        "rope_type": "longrope",
        "long_factor": [1.0, 1.5, 4.0, 8.0],
        "short_factor": [1.0, 1.0, 1.25, 1.5],
        "original_max_position_embeddings": 16,
        "attention_factor": 1.25,
    }
    model = tiny_model("phi3")
    model.config.rope_parameters = {**rope, "rope_theta": 10000.0}
    assert rotary_settings(phi3_gguf(tmp_path / "m.gguf", model), 0.0) == {**rope, "rope_theta": 10000.0}


def test_a_scaling_that_transformers_has_not_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("rope_freqs.weight", np.array([1.0, 3.0, 2.0, 5.0], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        SourceError, match=r"by factors of its own in rope_freqs\.weight, which transformers reads from"
    ):
        rotary_settings(tmp_path / "m.gguf", 10000.0)
