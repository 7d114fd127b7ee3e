#!/usr/bin/env bash
# CTranslate2 converts Gemma 2 and the larger Gemma 3 without parts of what their config.json says, silently:
#   Gemma 2           attn_logit_softcapping, final_logit_softcapping and sliding_window (all sizes),
#                     query_pre_attn_scalar (27B, where it is not head_dim)
#   Gemma 3 from 4B   the factor 8 of the global layers' rotary positions, query_pre_attn_scalar (27B)
# The likeliest next token of Gemma 2 is mostly the same, as the last soft cap keeps the order. The probabilities are
# not, nor is what is drawn by them. Gemma 1 and Gemma 3 270M and 1B have none of these values and are right.
# Seen with ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0, on random text models of two layers with such values,
# head_dim 32 and 60 tokens: greatest difference of the log-probabilities (nats), computed in float32
#                              from transformers   from transformers without these values
#   Gemma                             0.00                     0.00
#   Gemma 2, 2B and 9B                0.46                     0.00
#   Gemma 2, 27B                      0.55                     0.00
#   Gemma 2, past the window          4.53                     0.00
#   Gemma 3, 270M and 1B              0.00                     0.00
#   Gemma 3, 4B and 12B               1.53                     0.00
#   Gemma 3, 27B                      1.68                     0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 ctranslate2==4.8.5 numpy==2.4.6
cat >look.py <<'PY'
import shutil
import sys

import ctranslate2
import numpy
import torch
from tokenizers import Tokenizer, models
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, PreTrainedTokenizerFast)

WORDS = 96
IDS = [index * 7 % (WORDS - 3) for index in range(60)]
SIZES = dict(vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=32)
NO_CAPS = CAPS | dict(attn_logit_softcapping=None, final_logit_softcapping=None)
LAYERS = dict(layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=32)


def rotary(**all_layers):
    return dict(rope_parameters={"sliding_attention": dict(rope_type="default", rope_theta=1e4),
                                 "full_attention": dict(rope_theta=1e6, **all_layers)})


LINEAR, DEFAULT = rotary(rope_type="linear", factor=8.0), rotary(rope_type="default")
CASES = {
    "Gemma": (GemmaConfig, {}, {}),
    "Gemma 2, 2B and 9B": (Gemma2Config, CAPS, NO_CAPS),
    "Gemma 2, 27B": (Gemma2Config, CAPS | dict(query_pre_attn_scalar=36), NO_CAPS),
    "Gemma 2, past the window": (Gemma2Config, CAPS | dict(sliding_window=16), NO_CAPS),
    "Gemma 3, 270M and 1B": (Gemma3TextConfig, LAYERS | DEFAULT, LAYERS | DEFAULT),
    "Gemma 3, 4B and 12B": (Gemma3TextConfig, LAYERS | LINEAR, LAYERS | DEFAULT),
    "Gemma 3, 27B": (Gemma3TextConfig, LAYERS | LINEAR | dict(query_pre_attn_scalar=42), LAYERS | DEFAULT),
}


def in_transformers(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].log_softmax(-1).numpy()


def in_ctranslate2():
    shutil.rmtree("converted", ignore_errors=True)
    ctranslate2.converters.TransformersConverter("model").convert("converted")
    reader = ctranslate2.Generator("converted", compute_type="float32", intra_threads=1)
    return numpy.array(reader.forward_batch([IDS], return_log_probs=True))[0]


words = Tokenizer(models.WordLevel({f"w{place}": place for place in range(WORDS)}, unk_token="w3"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w3")
good = True
for name, (kind, options, reduced) in CASES.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SIZES, **options)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.2)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    other = AutoModelForCausalLM.from_config(kind(**SIZES, **reduced)).eval()
    other.load_state_dict(model.state_dict())
    found = in_ctranslate2()
    right, without = in_transformers(model), in_transformers(other)
    off, same = abs(found - right).max(), abs(found - without).max()
    print(f"{name:26} {off:.2f} {same:.2f}", flush=True)
    good = good and same < 0.01 and (off > 0.1 if reduced != options else off < 0.01)
sys.exit(not good)
PY
env/bin/python look.py 2>/dev/null
echo "as described"
