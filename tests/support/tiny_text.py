"""Tokenizers built in the test, and tiny models that fit them."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from amnesia.facts.names import contrast_entities, entity_templates, generic_sentences
from amnesia.live.model import LiveModel, freeze, wrap
from support.kept_folders import kept
from support.tiny import randomized, tiny_model

VOCAB_SIZE = 600


@cache
def _trained() -> str:
    """Byte-level BPE over the package's own texts, as JSON; it is trained once a process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*entity_templates(), *contrast_entities(), *generic_sentences()], trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of the test's own, over the package's own texts; `bos` and `eos` put a special token at the beginning
    and the end of every text."""
    tokenizer = Tokenizer.from_str(_trained())
    if bos or eos:
        form = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
        tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )


def tiny_live(model_type: str = "llama", *, bos: bool = False, seed: int = 0, **settings: object) -> LiveModel:
    """A tiny model with random weights and its tokenizer, ready to be asked; `settings` go to its configuration."""
    model = tiny_model(model_type, vocab_size=VOCAB_SIZE, seed=seed, **settings)
    return wrap(freeze(model), tiny_tokenizer(bos=bos), "tiny")


def save_tiny_live(folder: Path, model_type: str = "llama", *, bos: bool = False, dtype=torch.float32) -> Path:
    """A tiny model folder with a tokenizer, in several shards."""

    def write(folder: Path) -> None:
        tiny_model(model_type, vocab_size=VOCAB_SIZE, dtype=dtype).save_pretrained(folder, max_shard_size="60KB")
        tiny_tokenizer(bos=bos).save_pretrained(folder)

    return kept(f"live {(model_type, bos, dtype)}", write, folder)


def save_random(folder: Path, model: PreTrainedModel) -> Path:
    """A folder of a model, of a type without a row perhaps, with random weights and a tokenizer."""
    randomized(model).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
