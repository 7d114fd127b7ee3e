"""What stands for an entity, in closed form: one direction in the space of a layer's activations.

Knows activations, second moments and linear algebra; knows nothing of facts, scores or files of weights.
Front doors: `moments.moments_of` (once per model), `keys.name_keys` (once per name), `solve.Metric`,
and `response.response_of` for what an edit costs on text.
"""
