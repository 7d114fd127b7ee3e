"""Folders that are made of GGUF files."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia.sources.conversion import convert_gguf
from amnesia.sources.opening import open_gguf
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_text import tiny_tokenizer


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
