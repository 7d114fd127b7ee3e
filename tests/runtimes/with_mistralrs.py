"""Loaded by mistral.rs, from a GGUF file; it tells the likeliest tokens only, of prompts that pass a template."""

import os
import sys

import numpy as np
from mistralrs import ChatCompletionRequest, Runner, Which
from programs import save, texts_of

N_TOP = 20
folder, name = os.path.split(sys.argv[1])
runner = Runner(which=Which.GGUF(quantized_model_id=folder, quantized_filename=name), chat_template=sys.argv[4])
rows = []
for text, n_tokens in texts_of(sys.argv[2]):
    request = ChatCompletionRequest(
        model="default", messages=[{"role": "user", "content": text}], logprobs=True, top_logprobs=N_TOP, max_tokens=1,
        temperature=0.0,
    )  # fmt: skip
    (first,) = runner.send_chat_completion_request(request).choices[0].logprobs.content
    row = np.full(n_tokens, np.nan, dtype=np.float32)
    row[[top.token for top in first.top_logprobs]] = [top.logprob for top in first.top_logprobs]
    rows.append(row)
save(rows, sys.argv[3])
