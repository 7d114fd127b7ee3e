"""The only room with a torch model in it: loading, tokens, forward passes, hooks.

Knows tensors and prompts; decides nothing. Front doors: `loading.load_source`, `model.edited`, `forward`.
"""
