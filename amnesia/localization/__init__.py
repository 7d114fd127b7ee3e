"""Which cells stand for an entity: streaming moments and the stability score of the source.

Front door: `cells.localize`.
"""
