"""What a model knows and what it lost: measurements, knowledge scores, damage, comparison.

Never chooses an edit. Front doors: `examination.examine`, `comparison`, `measurement.measure`.
"""
