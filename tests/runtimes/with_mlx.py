"""Loaded by mlx-lm, from a model folder; of rotary embeddings version 0.32.2 reads only what older configurations say."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from programs import ids_of, save

folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
model, _ = load_model(folder, model_config={"rope_theta": config["rope_parameters"]["rope_theta"]})
save([np.array(model(mx.array([ids]))[0, -1].astype(mx.float32)) for ids in ids_of(sys.argv[2])], sys.argv[3])
