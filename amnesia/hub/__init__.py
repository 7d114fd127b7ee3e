"""Pushing a finished folder to the Hub: what goes there, its model card, one commit, every hash checked.

Knows finished folders, their manifests and the Hub; edits no weights.
Front door: `push.push`.
"""
