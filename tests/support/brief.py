"""How little of a text is read where a test is about something else. Imports nothing, so that it can be known early."""

N_CHARACTERS = 150
"""Characters of each neutral text, an eighth of all tokens."""
