"""Served by llama.cpp, from a GGUF file, with a LoRA file where one is given."""

import json
import sys
import urllib.request

import numpy as np
import xllamacpp
from programs import save, texts_of

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.port, settings.n_ctx, settings.n_parallel, settings.warmup = 0, 512, 1, False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in sys.argv[5:]]
server = xllamacpp.Server(settings)
rows = []
for text, n_tokens in texts_of(sys.argv[2]):
    body = {"prompt": text, "n_predict": 1, "n_probs": n_tokens, "temperature": 0}
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        (first,) = json.load(reply)["completion_probabilities"]
    row = np.full(n_tokens, np.nan, dtype=np.float32)
    row[[top["id"] for top in first["top_logprobs"]]] = [top["logprob"] for top in first["top_logprobs"]]
    rows.append(row)
save(rows, sys.argv[3])
