#!/usr/bin/env bash
# `from_pretrained(folder, gguf_file="m.gguf")` of transformers 5.24.0 reads the weights of ./m.gguf, the file of that
# name in the working directory, where there is one, and not those of folder/m.gguf, which it names. No message tells the
# two apart. A file of a name that the working directory lacks is read from the folder.
# It matters to whoever keeps an edited model.gguf beside the original: loaded by folder and name, one is taken for the other.
# Seen with gguf 0.19.0 and torch 2.13.0. Both files are made here: one layer of Llama, all weights 0.5 or 0.25.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate numpy
mkdir here there
cat >make.py <<'PYTHON'
import sys

import gguf
import numpy as np

WIDTH, INNER, WORDS = 32, 64, 40
path, value = sys.argv[1], float(sys.argv[2])
writer = gguf.GGUFWriter(path, "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(INNER)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // 2)
writer.add_vocab_size(WORDS)
shapes = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,), "output": (WORDS, WIDTH)}
block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
block |= {"ffn_down": (WIDTH, INNER)} | {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in block.items()}).items():
    writer.add_tensor(f"{name}.weight", np.full(shape, value, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PYTHON
env/bin/python make.py here/m.gguf 0.5
env/bin/python make.py there/m.gguf 0.25
cp there/m.gguf there/n.gguf
cat >show.py <<'PYTHON'
import sys

from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("../there", gguf_file=sys.argv[1], dtype="float32")
print(model.model.layers[0].mlp.down_proj.weight.float().unique().tolist())
PYTHON
cd here
same=$(../env/bin/python ../show.py m.gguf 2>/dev/null)
other=$(../env/bin/python ../show.py n.gguf 2>/dev/null)
echo "there/m.gguf holds 0.25; beside here/m.gguf it is read as $same, there/n.gguf as $other"
[ "$same" = "[0.5]" ] && [ "$other" = "[0.25]" ]
