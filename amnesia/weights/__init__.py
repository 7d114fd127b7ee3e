"""Bytes of weights: reading them, changing columns exactly, writing checkpoints, adapters and GGUF.

Knows numbers, files and the layouts of architectures; knows nothing of prompts or torch.
Front doors: `checkpoint.write_edited`, `adapter.write_adapter`, `gguf.edit.write_edited_gguf`. The edit itself, the
sign flip, is `scaling.flip_signs`.
"""
