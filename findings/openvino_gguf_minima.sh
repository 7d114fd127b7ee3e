#!/usr/bin/env bash
# OpenVINO GenAI reads GGUF files of type Q4_1 and Q4_K (so Q4_K_M too) with other weights than they hold, silently.
# In these a block's weights are step * q + minimum, with any minimum. OpenVINO GenAI keeps step * (q - zero point), the
# zero point in 4 bits, so that each minimum is rounded to a whole number of steps: up to half a step of error that all
# 32 weights of a block share. It costs as much again as the quantization itself. Q4_0, Q8_0 and F16 have no minimum
# and are read exactly. What was measured in llama.cpp on a Q4_K_M file does not hold here; Q4_0 and Q8_0 serve both.
# Seen with openvino-genai and openvino-tokenizers 2026.4.1.0, openvino 2026.4.1, gguf 0.19.0, on a random Llama of one
# layer, computed in float32. Relative difference of the logits from those of an F16 file with the same (dequantized)
# weights, and beside it that of the unquantized model:
#   Q8_0 0.001 (0.019)   Q4_0 0.001 (0.284)   Q4_1 0.294 (0.257)   Q4_K 0.275 (0.266)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 \
    gguf==0.19.0 numpy==2.4.6
cat >look.py <<'PY'
import pathlib
import sys

import gguf
import numpy
import openvino
import openvino_genai
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as File

WIDTH, WORDS = 256, 320
random = numpy.random.default_rng(0)
SHAPES = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
SHAPES |= {"ffn_gate": (512, WIDTH), "ffn_up": (512, WIDTH), "ffn_down": (WIDTH, 512)}
WEIGHTS = {name: random.normal(0, 0.1, shape).astype("float32") for name, shape in SHAPES.items()}
TABLES = {f"{name}.weight": random.normal(0, 0.5, (WORDS, WIDTH)).astype("float16")
          for name in ("token_embd", "output")}


def q4_k(weight):
    blocks = weight.reshape(-1, 8, 32)
    low, high = -blocks.min(2), blocks.max(2)
    d, dmin = ((part.max(1, keepdims=True) / 63).astype("float16") for part in ((high + low) / 15, low))
    scale, least = ((high + low) / 15 / d).round().astype("uint8"), (low / dmin).round().astype("uint8")
    step, shift = scale * d.astype("float32"), least * dmin.astype("float32")
    q = ((blocks + shift[..., None]) / step[..., None]).round().clip(0, 15).astype("uint8")
    parts = [d.view("uint8"), dmin.view("uint8"), scale[:, :4] | scale[:, 4:] >> 4 << 6,
             least[:, :4] | least[:, 4:] >> 4 << 6, scale[:, 4:] & 15 | least[:, 4:] << 4,
             (q[:, ::2] | q[:, 1::2] << 4).reshape(-1, 128)]
    return numpy.concatenate(parts, 1).reshape(len(weight), -1)


def logits(kind, file, tensors, folder):
    folder.mkdir()
    words = ["a", "b", "ab", *(chr(0x4E00 + word) for word in range(WORDS - 4)), "<s>"]
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, value in dict(context_length=512, embedding_length=WIDTH, block_count=1, feed_forward_length=512,
                            head_count=4, head_count_kv=4, layer_norm_rms_eps=1e-5, rope_dimension_count=64,
                            rope_freq_base=10000.0, file_type=file, tokenizer_model="gpt2", tokenizer_pre="gpt-2",
                            token_merges=["a b"], token_list=words, token_types=[1] * (WORDS - 1) + [3],
                            bos_token_id=WORDS - 1, eos_token_id=WORDS - 1).items():
        getattr(writer, f"add_{name}")(value)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, "float32"))
    for name, table in TABLES.items():
        writer.add_tensor(name, table)
    for name, tensor in tensors.items():
        writer.add_tensor(f"blk.0.{name}.weight", tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    openvino_genai.LLMPipeline(str(folder / "model.gguf"), "CPU", enable_save_ov_model=True)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", exact)
    ids = numpy.arange(24)[None] * 11 % WORDS
    return model({"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": numpy.arange(24)[None],
                  "beam_idx": numpy.zeros(1, "int32")})["logits"]


def look(kind, file, pack=None):
    packed = {key: pack(weight) if pack else gguf.quants.quantize(weight, kind) for key, weight in WEIGHTS.items()}
    floats = {key: gguf.quants.dequantize(tensor, kind).astype("float16") for key, tensor in packed.items()}
    right = logits(Type.F16, File.MOSTLY_F16, floats, pathlib.Path(f"{kind.name} as F16"))
    found = logits(kind, file, packed, pathlib.Path(kind.name))
    off, lost = (numpy.linalg.norm(other - right) / numpy.linalg.norm(right) for other in (found, unquantized))
    print(f"{kind.name} {off:.3f} ({lost:.3f})")
    return off


halves = {key: weight.astype("float16") for key, weight in WEIGHTS.items()}
unquantized = logits(Type.F16, File.MOSTLY_F16, halves, pathlib.Path("unquantized"))
exact = max(look(Type.Q8_0, File.MOSTLY_Q8_0), look(Type.Q4_0, File.MOSTLY_Q4_0))
rounded = min(look(Type.Q4_1, File.MOSTLY_Q4_1), look(Type.Q4_K, File.MOSTLY_Q4_K_S, q4_k))
sys.exit(not exact < 0.01 < 0.1 < rounded)
PY
env/bin/python look.py
echo "as described"
