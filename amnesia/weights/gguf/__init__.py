"""GGUF: its container, its block types, and edits that change only the codes of the declared columns.

Front doors: `edit`, `widen` where tensors are stored in a wider type, `proof` of what a file holds.
"""
