"""Which cells stand for an entity: streaming moments and the stability of z-scores over many prompts.

Knows the live model and wordings of names; knows nothing of facts, scores or edits.
Front door: `cells.localize`.
"""
