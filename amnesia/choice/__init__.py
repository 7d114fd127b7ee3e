"""Which edit makes the model forget: candidates, what each does, and the fewest columns that keep within the bounds.

Knows the search part of a recipe and the live model; never reads a held-out fact.
Front doors: `extraction.extract` and `extraction.choose`; every number that was set by hand is in `settings`.
"""
