"""Finished folders: writing them, proving them from their bytes, undoing, editing in place, replaying.

Front doors: `write.write_format`, `verify.verify`, `undo.undo`.
"""
