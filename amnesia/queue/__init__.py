"""A list of entities that one model forgets: each alone, then all in one edit, by one process or by several.

Knows folders in which finished work is found again, and who works on what; knows nothing of how an edit is chosen.
Front doors: `listed.read_list`, `work.run_queue`, and `summary.summary_text` for what came of it.
"""
