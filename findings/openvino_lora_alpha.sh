#!/usr/bin/env bash
# OpenVINO GenAI applies a PEFT LoRA adapter at the strength of lora_alpha = r, whatever lora_alpha is, silently: it takes
# the path of the safetensors file and does not read adapter_config.json beside it, where PEFT keeps lora_alpha, and
# alpha = r is all that the factors alone say. PEFT scales them by lora_alpha / r, so that an adapter that was trained
# with lora_alpha = 2 r, a common choice, acts at half its strength. AdapterConfig.set_alpha or the second argument of
# AdapterConfig.add can make up for it by hand, with lora_alpha / r. An adapter is applied to a MatMul of the graph by the
# name of its node; the reader of GGUF files names none of those of the MLP, so that there all of it goes unused, with a
# warning.
# Seen with openvino-genai and openvino-tokenizers 2026.4.1.0, openvino 2026.4.1, gguf 0.19.0, on a random Llama of one
# layer whose node got the name that optimum-intel gives it; what 12 tokens are continued by, greedily:
#   B x 8, lora_alpha = r     [172, 247, 171, 95, 289, 182, 95, 289]
#   B x 4, lora_alpha = 2 r   [172, 247, 171, 28, 6, 41, 185, 226]    (in PEFT the same adapter as the one above)
#   B x 4, lora_alpha = r     [172, 247, 171, 28, 6, 41, 185, 226]
#   B x 4, lora_alpha = 2 r, added with 2.0 by hand   as the first
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 \
    gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
cat >look.py <<'PY'
import json
import pathlib
import shutil
import sys

import gguf
import numpy
import openvino
import openvino_genai as genai
from safetensors.numpy import save_file

WIDTH, WORDS, RANK = 64, 320, 4
random = numpy.random.default_rng(0)
SHAPES = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
SHAPES |= {"ffn_gate": (128, WIDTH), "ffn_up": (128, WIDTH), "ffn_down": (WIDTH, 128)}
writer = gguf.GGUFWriter("model.gguf", "llama")
words = ["a", "b", "ab", *(chr(0x4E00 + word) for word in range(WORDS - 4)), "<s>"]
for name, value in dict(context_length=512, embedding_length=WIDTH, block_count=1, feed_forward_length=128,
                        head_count=4, head_count_kv=4, layer_norm_rms_eps=1e-5, rope_dimension_count=16,
                        rope_freq_base=10000.0, file_type=gguf.LlamaFileType.MOSTLY_F16, tokenizer_model="gpt2",
                        tokenizer_pre="gpt-2", token_merges=["a b"], token_list=words,
                        token_types=[1] * (WORDS - 1) + [3], bos_token_id=WORDS - 1, eos_token_id=WORDS - 1).items():
    getattr(writer, f"add_{name}")(value)
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, "float32"))
for name in ("token_embd", "output"):
    writer.add_tensor(f"{name}.weight", random.normal(0, 0.5, (WORDS, WIDTH)).astype("float16"))
for name, shape in SHAPES.items():
    writer.add_tensor(f"blk.0.{name}.weight", random.normal(0, 0.3, shape).astype("float16"))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


genai.LLMPipeline("model.gguf", "CPU", enable_save_ov_model=True)
model = openvino.Core().read_model("openvino_model.xml")
scaled = [op for op in model.get_ops() if op.get_type_name() == "MatMul" and op.get_output_partial_shape(0)[2].is_static]
(down,) = (op for op in scaled if op.input_value(0).get_partial_shape()[2] == 128)
down.set_friendly_name("__module.model.layers.0.mlp.down_proj/aten::linear/MatMul")
pathlib.Path("named").mkdir()
openvino.save_model(model, "named/openvino_model.xml", compress_to_fp16=False)
for path in pathlib.Path().glob("openvino_*tokenizer.*"):
    shutil.copy(path, "named")

A, B = random.normal(0, 0.3, (RANK, 128)), random.normal(0, 0.3, (WIDTH, RANK))
KEY = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"


def adapter(factor, alpha):
    folder = pathlib.Path(f"{factor} {alpha}")
    folder.mkdir(exist_ok=True)
    factors = {KEY.format("A"): A.astype("float32"), KEY.format("B"): (B * factor).astype("float32")}
    save_file(factors, folder / "adapter_model.safetensors")
    config = dict(peft_type="LORA", r=RANK, lora_alpha=alpha, target_modules=["down_proj"], task_type="CAUSAL_LM")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return genai.Adapter(str(folder / "adapter_model.safetensors"))


def written(model, adapter, by=1.0):
    adapters = genai.AdapterConfig()
    adapters.add(adapter, by)
    pipe = genai.LLMPipeline(model, "CPU", INFERENCE_PRECISION_HINT="f32", adapters=adapters)
    wanted = genai.GenerationConfig(max_new_tokens=24, ignore_eos=True, do_sample=False, apply_chat_template=False)
    ids = numpy.arange(12, dtype="int64")[None] * 11 % WORDS
    asked = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    found = list(pipe.generate(asked, wanted).tokens[0])
    print(model, found[:8])
    return found


whole = written("named", adapter(8, RANK))
twice = written("named", adapter(4, 2 * RANK))
half = written("named", adapter(4, RANK))
by_hand = written("named", adapter(4, 2 * RANK), 2.0)
unnamed = {tuple(written("model.gguf", adapter(factor, RANK))) for factor in (0, 8)}
sys.exit(not (twice == half != whole == by_hand and len(unnamed) == 1))
PY
env/bin/python look.py
echo "as described"
