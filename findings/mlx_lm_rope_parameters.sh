#!/usr/bin/env bash
# A Llama 3 that was saved by transformers 5 runs in mlx-lm with other positions than it was trained with, silently.
# transformers 5 writes rope_theta and the Llama 3 scaling into "rope_parameters" of config.json and nowhere else.
# mlx-lm looks there for Qwen 3, but for Llama only at the top of the file, for "rope_theta" and "rope_scaling". It
# finds neither and takes 10,000 without scaling: no exception, no warning, and the weights are read right. So a model
# that was loaded, edited and saved again gives other outputs than the edit explains. With both values copied to the
# top of config.json mlx-lm uses them, and transformers reads the same rope_parameters as before.
# Seen with mlx-lm 0.32.2, mlx and mlx-cpu 0.32.4, transformers 5.24.0 (no torch), on random weights, theta 500,000:
#   llama, as transformers writes it     RoPE(10000), logits differ from those with "rope_theta": 10000 by 0.00
#   llama, both values also at the top   Llama3RoPE(), by 7.00
#   qwen3, as transformers writes it     RoPE(500000)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4 \
    transformers==5.24.0 numpy==2.4.6 safetensors==0.8.0
cat >look.py <<'PY'
import json
import pathlib
import sys

import mlx.core as mx
import numpy
from mlx_lm.utils import load_model
from safetensors.numpy import save_file
from transformers import AutoConfig, LlamaConfig, Qwen3Config

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=4096, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=128)


def save(name, config):
    random = numpy.random.default_rng(0)
    layer = "model.layers.0."
    square = ["model.embed_tokens", "lm_head", *(f"{layer}self_attn.{part}_proj" for part in "qkvo"),
              *(f"{layer}mlp.{part}_proj" for part in ("gate", "up", "down"))]
    norms = {"model.norm": 64, f"{layer}input_layernorm": 64, f"{layer}post_attention_layernorm": 64}
    if config.model_type == "qwen3":
        norms |= {f"{layer}self_attn.{part}_norm": 32 for part in "qk"}
    config.save_pretrained(name)
    save_file({f"{key}.weight": random.normal(0, 0.2, (64, 64)).astype("float32") for key in square}
              | {f"{key}.weight": numpy.ones(size, "float32") for key, size in norms.items()},
              f"{name}/model.safetensors")


def look(name, **top):
    path = pathlib.Path(name, "config.json")
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written) | top))
    parameters = AutoConfig.from_pretrained(name).rope_parameters
    model, _ = load_model(path.parent)
    path.write_text(written)
    rope = model.layers[0].self_attn.rope
    logits = numpy.array(model(mx.array([[index * 7 % 64 for index in range(48)]])))
    return f"{type(rope).__name__}({getattr(rope, 'base', '')})", parameters, logits


save("llama", LlamaConfig(**SIZES, rope_parameters=LLAMA3 | {"rope_theta": 500000.0}))
save("qwen3", Qwen3Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}))
rope, parameters, logits = look("llama")
default = look("llama", rope_theta=10000)
top = look("llama", rope_theta=500000.0, rope_scaling=LLAMA3)
difference = abs(top[2] - default[2]).max()
print(rope, abs(logits - default[2]).max(), top[0], difference, look("qwen3")[0])
sys.exit(not (rope == "RoPE(10000)" and (logits == default[2]).all() and top[0] == "Llama3RoPE()" and difference > 1
              and top[1] == parameters and parameters["rope_theta"] == 500000 and look("qwen3")[0] == "RoPE(500000.0)"))
PY
env/bin/python look.py
echo "as described"
