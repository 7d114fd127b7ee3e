"""Bytes on disk: reading and copying, staged output folders, the journal, caches, strict JSON, SQLite.

Knows files and folders; knows nothing of models, weights or entities.
Front doors: `staging.staged_output`, `journal.apply`, `disk.copy_file`, `strict_json.StrictJson`.
"""
