"""Pushing a finished folder to the Hub: what goes there, its model card, one commit, every hash checked.

Front door: `push`.
"""
