#!/usr/bin/env bash
# Llama 3.1, 3.2 and 3.3 stretch their slow rotary frequencies ("rope_type": "llama3", by 8 or 32). Three programs read
# such a model without that, silently, so that all its positions are others than it was trained with, short texts' too:
#   transformers, from a GGUF file   llama.cpp's converter writes the scaling as a tensor, rope_freqs.weight, and not as
#                                    metadata; the reader drops tensors whose names it does not know
#   OpenVINO GenAI, from a GGUF file the same
#   CTranslate2, from a folder       the converter knows "llama3" and stores the two bounds, but the factor for "linear"
#                                    only; the factor that is not stored is taken for 1
# llama.cpp uses the tensor. A GGUF file that is loaded in transformers and saved again has lost the scaling for good:
# its config.json says "default".
# Seen with transformers 5.24.0, torch 2.13.0, gguf 0.19.0, xllamacpp 2026.10.11549, openvino-genai and
# openvino-tokenizers 2026.4.1.0, openvino 2026.4.1, ctranslate2 4.8.5, on a random Llama of two layers with the scaling
# of Llama 3.2 and a text of 200 tokens: greatest difference of the log-probabilities after it (nats)
#                                   from transformers, the folder   from the same without scaling
#   llama.cpp, GGUF                             0.01                           0.44
#   transformers, GGUF                          0.44                           0.00
#   OpenVINO GenAI, GGUF                        0.44                           0.02    (as without the tensor, exactly)
#   CTranslate2, folder                         0.44                           0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6 \
    xllamacpp==2026.10.11549 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 \
    ctranslate2==4.8.5
cat >look.py <<'PY'
import json
import os
import pathlib
import shutil
import urllib.request

import ctranslate2
import gguf
import numpy
import openvino
import openvino_genai
import torch
import xllamacpp
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, WIDTH, INNER, HEADS, LAYERS, THETA = 320, 128, 256, 2, 2, 500000.0
IDS = numpy.arange(200) * 11 % (WORDS - 1)
LLAMA32 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=8192)
vocabulary = ["a", "b", "ab", *(chr(0x4E00 + word) for word in range(WORDS - 4)), "<s>"]


def llama(**rope):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, rms_norm_eps=1e-5,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=131072, bos_token_id=WORDS - 1,
        eos_token_id=WORDS - 1, rope_parameters={"rope_theta": THETA} | rope)).eval()


def last(logits):
    logits = numpy.asarray(logits, "float64")
    return logits - numpy.logaddexp.reduce(logits)


def in_transformers(model):
    with torch.no_grad():
        return last(model(torch.tensor(IDS[None])).logits[0, -1])


def write(path, factors=None):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in dict(context_length=131072, embedding_length=WIDTH, block_count=LAYERS,
                            feed_forward_length=INNER, head_count=HEADS, head_count_kv=HEADS, vocab_size=WORDS,
                            rope_dimension_count=WIDTH // HEADS, rope_freq_base=THETA, layer_norm_rms_eps=1e-5,
                            file_type=gguf.LlamaFileType.MOSTLY_F16, tokenizer_model="gpt2", tokenizer_pre="gpt-2",
                            token_merges=["a b"], token_list=vocabulary, token_types=[1] * (WORDS - 1) + [3],
                            bos_token_id=WORDS - 1, eos_token_id=WORDS - 1).items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for key, tensor in model.state_dict().items():
        tensor = tensor.numpy()
        if "q_proj" in key or "k_proj" in key:
            tensor = tensor.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(tensor.shape)
        tensor = numpy.ascontiguousarray(tensor, "float16" if tensor.ndim == 2 else "float32")
        writer.add_tensor(names.get_name(key, (".weight",)), tensor)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_llamacpp(path):
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.port, settings.n_ctx, settings.n_parallel, settings.warmup = 0, 512, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    body = {"prompt": IDS.tolist(), "n_predict": 1, "n_probs": WORDS, "temperature": 0}
    with urllib.request.urlopen(f"{server.listening_address}/completion", json.dumps(body).encode()) as reply:
        (first,) = json.load(reply)["completion_probabilities"]
    row = numpy.full(WORDS, numpy.nan)
    row[[top["id"] for top in first["top_logprobs"]]] = [top["logprob"] for top in first["top_logprobs"]]
    return row


def in_openvino(path):
    folder = pathlib.Path(f"OpenVINO {path}")
    folder.mkdir()
    shutil.copy(path, folder / "model.gguf")
    openvino_genai.LLMPipeline(str(folder / "model.gguf"), "CPU", enable_save_ov_model=True)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", exact)
    return last(model({"input_ids": IDS[None], "attention_mask": IDS[None] * 0 + 1, "beam_idx": numpy.zeros(1, "int32"),
                       "position_ids": numpy.arange(len(IDS))[None]})["logits"][0, -1])


def in_ctranslate2(path):
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<s>"))
    special = dict(bos_token="<s>", eos_token="<s>", unk_token="<s>")
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(path)
    ctranslate2.converters.TransformersConverter(path).convert("converted")
    reader = ctranslate2.Generator("converted", compute_type="float32", intra_threads=1)
    return last(numpy.array(reader.forward_batch([IDS.tolist()], return_log_probs=True))[0, -1])


torch.manual_seed(0)
model, unscaled = llama(**LLAMA32), llama(rope_type="default")
for parameter in model.parameters():
    if parameter.dim() == 2:
        parameter.data = torch.randn_like(parameter).mul(0.2).half().float()
unscaled.load_state_dict(model.state_dict())
model.save_pretrained("model")
write("scaled.gguf", (unscaled.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy())
write("plain.gguf")

right, without = in_transformers(AutoModelForCausalLM.from_pretrained("model")), in_transformers(unscaled)
read = AutoModelForCausalLM.from_pretrained(".", gguf_file="scaled.gguf", dtype="float32")
found = {
    "llama.cpp, GGUF": in_llamacpp("scaled.gguf"),
    "transformers, GGUF": in_transformers(read),
    "OpenVINO GenAI, GGUF": in_openvino("scaled.gguf"),
    "CTranslate2, folder": in_ctranslate2("model"),
}
good = (in_openvino("plain.gguf") == found["OpenVINO GenAI, GGUF"]).all()
good = good and read.config.rope_parameters == {"rope_type": "default", "rope_theta": THETA}
for name, row in found.items():
    scaled, plain = abs(row - right).max(), abs(row - without).max()
    print(f"{name:24} {scaled:.2f} {plain:.2f}", flush=True)
    near, far = (scaled, plain) if name == "llama.cpp, GGUF" else (plain, scaled)
    good = good and near < 0.1 < 0.3 < far
os._exit(not good)
PY
env/bin/python look.py 2>/dev/null
echo "as described"
