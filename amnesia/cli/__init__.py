"""The terminal: commands and their options; the only room that prints.

Front door: `main.main`. Modules of other commands are imported late.
"""
