"""The terminal: commands, their options, and what they print; the only room that prints.

Knows what a user types, and which front door of another room answers it; computes nothing itself.
Front door: `main.main`. Heavy modules, and the modules of other commands, are imported when a command asks for them.
"""
