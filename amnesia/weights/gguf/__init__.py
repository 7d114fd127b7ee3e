"""GGUF: its container, its block types, and edits that change only the codes of the declared columns.

Knows files and numbers of that format; knows nothing of prompts or torch.
Front doors: `edit.write_edited_gguf`, `widen.write_widened_gguf` where tensors are stored in a wider type,
`proof.prove_gguf` for what a file holds.
"""
