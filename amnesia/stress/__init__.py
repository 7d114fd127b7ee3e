"""Does a forgotten entity come back: attacks by prompt, quantization, relearning.

Knows facts and the live model, one at a time; never chooses an edit. Numbers that were set by hand are in `settings`.
Front doors: `trial.prepare`, `trial.endure`, `conclusion.conclude`; `relearning.plan_relearning`,
`relearning.announce`, `relearning.retrain`, `relearning.retrain_peer`, `relearning.conclude_relearning`.
"""
