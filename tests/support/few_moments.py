"""Settings for moments of a tiny model, and the texts that they are made of where all are read."""

from __future__ import annotations

from amnesia.directions import bystanders
from amnesia.directions.bystanders import MomentSettings

SMALL = MomentSettings(sampled=64, length=8, vocabulary_size=40)
WHOLE = {name: getattr(bystanders, name) for name in ("_sentences", "contrast_entities")}
