"""Bytes of weights: reading them, changing columns exactly, writing checkpoints and adapters.

Knows numbers, files and the layouts of architectures; knows nothing of prompts or torch.
Front doors: `checkpoint.write_edited`, `adapter.write_adapter`, `gguf.edit`. The edit itself, the sign flip: `scaling`.
"""
