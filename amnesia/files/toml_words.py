"""Values of a TOML file in a short line of a message, in the words of TOML."""

from __future__ import annotations

import datetime

from amnesia.errors import clipped


def in_toml(value: object) -> str:
    """A value as a message shows it, 80 characters at most: as it may stand in the file, of a table only its kind."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return clipped(f"[{', '.join(map(in_toml, value))}]")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:  # Python shows no number of thousands of digits.
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return clipped(repr(value))
