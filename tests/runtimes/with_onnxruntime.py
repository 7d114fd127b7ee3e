"""Built by the builder of onnxruntime-genai, from a model folder."""

import sys
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime_genai as og
from onnxruntime_genai.models.builder import create_model
from programs import ids_of, save

with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
    create_model(None, sys.argv[1], folder, "fp32", "cpu", cache)
    model = og.Model(folder)
    rows = []
    for ids in ids_of(sys.argv[2]):
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + 1)
        generator = og.Generator(model, settings)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        rows.append(np.array(generator.get_logits()).reshape(-1))
save(rows, sys.argv[3])
