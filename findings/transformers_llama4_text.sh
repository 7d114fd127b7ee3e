#!/usr/bin/env bash
# Llama 4 as transformers builds it for images and text takes no text alone: the forward pass computes the logits and
# then raises, because Llama4ForConditionalGeneration reads `image_outputs` of an output that has no such field unless
# images were given. Gemma 3, built in the same way, takes text alone. Llama4ForCausalLM, which AutoModelForCausalLM
# makes of the same configuration, takes it, too. So a loader that asks AutoModelForImageTextToText for whatever holds a
# vision tower, and then asks it about text, works for other models of the kind and fails for this one.
# Seen with transformers 5.24.0 and torch 2.13.0 on random weights of one layer:
#   gemma3 Gemma3ForConditionalGeneration (1, 3, 96)
#   llama4 Llama4ForConditionalGeneration AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
#   llama4 Llama4ForCausalLM (1, 3, 96)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat >look.py <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config, Llama4Config

SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, head_dim=16, pad_token_id=0)
VISION = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28,
              patch_size=14)


def look(auto, config):
    model = auto.from_config(config).eval()
    try:
        with torch.no_grad():
            found = str(tuple(model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(config.model_type, type(model).__name__, found)
    return found


gemma = Gemma3Config(text_config=SIZES, vision_config=VISION, image_token_index=90, boi_token_index=91, eoi_token_index=92)
llama = Llama4Config(
    text_config=SIZES | dict(num_local_experts=2, intermediate_size_mlp=32, interleave_moe_layer_step=1),
    vision_config=VISION | dict(vision_output_dim=16, projector_input_dim=16, projector_output_dim=16),
    image_token_index=90, boi_token_index=91, eoi_token_index=92,
)
right = "(1, 3, 96)"
found = [look(AutoModelForImageTextToText, gemma), look(AutoModelForImageTextToText, llama),
         look(AutoModelForCausalLM, llama)]
sys.exit(not (found[0] == found[2] == right and "'image_outputs'" in found[1]))
PY
env/bin/python look.py
echo "as described"
