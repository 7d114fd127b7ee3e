"""Recipes made by asking a model: from a table of facts, or from what the model itself says.

Front doors: `entity.mine` for a model in memory, `entity.mine_recipe` for one by its name.
"""
