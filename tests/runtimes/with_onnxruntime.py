"""Built by the builder of onnxruntime-genai, from a model folder."""

import subprocess
import sys
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime_genai as og
from programs import ids_of, save

with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
    options = ("-i", sys.argv[1], "-o", folder, "-c", cache, "-p", "fp32", "-e", "cpu")
    subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *options], check=True)
    model = og.Model(folder)
    rows = []
    for ids in ids_of(sys.argv[2]):
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + 1)
        generator = og.Generator(model, settings)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        rows.append(np.array(generator.get_logits()).reshape(-1))
save(rows, sys.argv[3])
