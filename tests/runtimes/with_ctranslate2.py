"""Converted by CTranslate2, from a model folder."""

import sys
from tempfile import TemporaryDirectory

import ctranslate2
import numpy as np
from programs import ids_of, save

with TemporaryDirectory() as folder:
    ctranslate2.converters.TransformersConverter(sys.argv[1]).convert(folder, force=True)
    model = ctranslate2.Generator(folder, compute_type="float32", intra_threads=1)
    # One at a time, so that nothing is padded.
    rows = [np.array(model.forward_batch([ids], return_log_probs=True))[0, -1] for ids in ids_of(sys.argv[2])]
save(rows, sys.argv[3])
