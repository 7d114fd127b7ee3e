"""The experiments of the source: atlas, robustness, sweep, injection, sufficiency, layers, and their figures.

Each module is one experiment and returns a result dataclass; none writes a file.
"""
