#!/usr/bin/env bash
# The model builder of onnxruntime-genai leaves parts of PEFT adapters and of some models out, silently:
#   use_dora        the magnitudes, so that the factors act as a plain LoRA's
#   lora_bias       the bias of lora_B
#   embed_tokens    the factors of the embedding
#   Llama, linear   the factor of the rotary positions (DeepSeek Coder, Vicuna 16k); "llama3" is kept
#   OLMo            the mean, which its norms take off: they become RMS norms; clip_qkv as well
# A plain LoRA of linear layers is right, with any lora_alpha, use_rslora, alpha_pattern and rank_pattern. An adapter of
# another kind can be merged in PEFT before.
# Seen with onnxruntime-genai 0.18.0, onnxruntime 1.32.0, onnx 1.23.2, onnx-ir 1.1.0, torch 2.13.0, transformers 5.24.0,
# peft 0.21.2, on random models of two layers, built in float32 for CPUs: greatest difference of the log-probabilities
# after 60 tokens (nats)
#                                from transformers   from transformers without what is left out
#   LoRA                               0.00                     0.00
#   LoRA, rslora and patterns          0.00                     0.00
#   LoRA, use_dora                     0.74                     0.00
#   LoRA, lora_bias                    0.57                     0.00
#   LoRA, embed_tokens                 9.45                     0.00
#   Llama, llama3                      0.00                     0.00
#   Llama, linear                      6.90                     0.00
#   OLMo                               6.17                     0.00
#   OLMo, clip_qkv                     8.13                     0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6 \
    onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0
cat >look.py <<'PY'
import shutil
import subprocess
import sys

import numpy
import onnxruntime_genai
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig, PreTrainedTokenizerFast
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

WORDS = 96
IDS = [index * 7 % (WORDS - 3) for index in range(60)]
SIZES = dict(vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}


def in_transformers(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0, -1].log_softmax(-1).numpy()


def built(*options):
    shutil.rmtree("built", ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", "model", "-o", "built", "-c", "cache"]
    subprocess.run([*command, "-p", "fp32", "-e", "cpu", *options], check=True, stdout=subprocess.DEVNULL)
    model = onnxruntime_genai.Model("built")
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(IDS) + 1)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(numpy.array([IDS], "int32"))
    logits = numpy.array(generator.get_logits()).reshape(-1)
    return logits - numpy.logaddexp.reduce(logits)


def save(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained("model")
    words = Tokenizer(models.WordLevel({f"w{place}": place for place in range(WORDS)}, unk_token="w3"))
    special = dict(bos_token="w1", eos_token="w2", unk_token="w3")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained("model")


def read(adapter=False):
    model = AutoModelForCausalLM.from_pretrained("model")
    return PeftModel.from_pretrained(model, "adapter") if adapter else model


def adapter(name, leave_out=None, **options):
    torch.manual_seed(1)
    options = dict(r=8, lora_alpha=16, target_modules=["down_proj"], init_lora_weights=False) | options
    adapted = get_peft_model(read(), LoraConfig(task_type="CAUSAL_LM", **options))
    for key, parameter in adapted.named_parameters():
        if "magnitude" in key or "lora_B.default.bias" in key:
            parameter.data += 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained("adapter")
    less = read(adapter=True)
    if leave_out == "magnitudes":
        for layer in less.base_model.model.model.layers:
            del layer.mlp.down_proj.lora_variant["default"]
    elif leave_out:
        for key, parameter in less.named_parameters():
            if leave_out in key:
                parameter.data.zero_()
    compare(name, in_transformers(read(adapter=True)), in_transformers(less), "--extra_options", "adapter_path=adapter")


def compare(name, right, less, *options):
    global good
    found = built(*options)
    off, same = abs(found - right).max(), abs(found - less).max()
    print(f"{name:30} {off:.2f} {same:.2f}", flush=True)
    good = good and same < 0.01 and (off > 0.1 if abs(right - less).max() else off < 0.01)


def model(name, config, leave_out=lambda model: None):
    save(config)
    right, less = in_transformers(read()), read()
    leave_out(less)
    compare(name, right, in_transformers(less))


def no_factor(model):
    model.model.rotary_emb.inv_freq *= LINEAR["factor"]


def rms_norms(model):
    model.config.clip_qkv = None
    for layer in model.modules():
        if isinstance(layer, OlmoLayerNorm):
            layer.forward = lambda hidden: torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)


good = True
save(LlamaConfig(**SIZES))
adapter("LoRA")
adapter("LoRA, rslora and patterns", use_rslora=True, alpha_pattern={"layers.1.mlp.down_proj": 64},
        rank_pattern={"layers.0.mlp.down_proj": 2})
adapter("LoRA, use_dora", "magnitudes", use_dora=True)
adapter("LoRA, lora_bias", "lora_B.default.bias", lora_bias=True)
adapter("LoRA, embed_tokens", "lora_embedding_B", target_modules=["embed_tokens", "down_proj"])
model("Llama, llama3", LlamaConfig(**SIZES, rope_parameters=LLAMA3, max_position_embeddings=1024))
model("Llama, linear", LlamaConfig(**SIZES, rope_parameters=LINEAR), no_factor)
model("OLMo", OlmoConfig(**SIZES), rms_norms)
model("OLMo, clip_qkv", OlmoConfig(**SIZES, clip_qkv=1.0), rms_norms)
sys.exit(not good)
PY
env/bin/python look.py 2>/dev/null
echo "as described"
