"""The source's experiments: layers, sweep, injection, sufficiency, robustness, atlas, and their figures.

Each module is one experiment and returns a result dataclass; `atlas` alone writes a file, a table that grows.
Front doors: `layers.layer_significance`, `sweep.sweep`, `forms.direction`, `injection.inject`,
`sufficiency.sufficiency`, `robustness.robustness`, `atlas.fill`, `figures.draw`.
"""
