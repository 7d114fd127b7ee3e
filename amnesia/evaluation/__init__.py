"""What a model knows and what it lost: measurements, knowledge scores, damage, comparison.

Knows questions and a live model; never chooses an edit.
Front doors: `examination.examine` and `examination.conclude`, `comparison.compare`, `measurement.measure`.
"""
