"""Read from a GGUF file by OpenVINO GenAI, which keeps what it has read as a model of OpenVINO."""

import os
import sys

import numpy as np
import openvino
import openvino_genai
from programs import ids_of, save

openvino_genai.LLMPipeline(sys.argv[1], "CPU", enable_save_ov_model=True)
model = openvino.Core().compile_model(
    os.path.join(os.path.dirname(sys.argv[1]), "openvino_model.xml"),  # noqa: PTH118, PTH120
    "CPU",
    {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
)
rows = []
for ids in ids_of(sys.argv[2]):
    request = model.create_infer_request()
    places = np.arange(len(ids))[None]
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones_like(places), "position_ids": places}
    found = request.infer({**inputs, "beam_idx": np.zeros(1, dtype=np.int32)})
    rows.append(found["logits"][0, -1])
save(rows, sys.argv[3])
