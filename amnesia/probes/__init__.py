"""Does a forgotten entity show in any other way: choices, samples, inner layers, free texts, questions under pressure.

Knows facts and the live model, one at a time; never chooses an edit. Numbers that were set by hand are in `settings`.
Front doors: `plan.prepare`, `trial.probe`, `conclusion.conclude`.
"""
