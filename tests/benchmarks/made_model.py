"""Models of given shapes with random weights, and a tokenizer of the package's own sentences."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from amnesia.facts.names import code_snippets, contrast_entities, foreign_sentences, neutral_texts
from amnesia.live.model import LiveModel, freeze, wrap

SHAPES = {
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 3072,
    },
}
N_MERGES = 2000


def made_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with `size` entries, of which at most `N_MERGES` occur in texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, N_MERGES),
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*neutral_texts("search"), *foreign_sentences(), *code_snippets(), *contrast_entities()]
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary.update({f"entry {token}": token for token in range(len(vocabulary), size)})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="<pad>", eos_token="</s>"
    )


def made_config(shape: str, **more: int) -> Qwen2Config:
    """A configuration of that shape, but for what `more` says."""
    return Qwen2Config.from_dict(SHAPES[shape] | more, tie_word_embeddings=False)


def made_model(shape: str, device: torch.device, seed: int) -> LiveModel:
    """A model with random weights, made where it stays."""
    torch.manual_seed(seed)
    config = made_config(shape, pad_token_id=0, eos_token_id=1)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.bfloat16, device.type)}
    return wrap(freeze(model), made_tokenizer(config.vocab_size), shape)
