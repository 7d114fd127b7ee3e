"""The only room in which torch models are built: loading, tokens, forward passes, hooks.

Knows tensors and prompts; decides nothing.
Front doors: `loading.load_source`, `model.edited`, `forward.answer_logprobs`, `forward.generate`,
`duet.Duet`.
"""
