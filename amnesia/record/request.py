"""What was asked, as whoever keeps the case says it: a TOML file of free fields, none of which is required."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path

from amnesia.errors import InputError, os_errors_as
from amnesia.files.disk import read_small
from amnesia.files.toml_words import in_toml

_MAX_REQUEST = 2**20
_DATES = ("received", "next_test")
_REMEDY = "give a TOML file of `key = value` lines"


@dataclass(frozen=True)
class Field:
    """A field of a request: its key, and its value as text; dates are written as in TOML (ISO 8601)."""

    key: str
    value: str


def read_request(path: Path) -> tuple[Field, ...]:
    """The fields of a request, in the order of its file.

    Values are strings, dates, whole numbers and truth values; `received` and `next_test` are dates. Raises InputError
    for a file that cannot be read, is no TOML, or holds other values.
    """
    with os_errors_as(InputError, f"request {path} cannot be read", _REMEDY):
        content = read_small(path, _MAX_REQUEST)
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"request {path} is not valid TOML ({error}): {_REMEDY}") from error
    return tuple(Field(key, _text(path, key, value)) for key, value in document.items())


def _text(path: Path, key: str, value: object) -> str:
    # A date with a time of day is a date, too; a truth value is no number.
    if isinstance(value, datetime.date):
        return value.isoformat()
    if key in _DATES:
        raise InputError(
            f"request {path} has {in_toml(value)} as {key}, expected a date: write it as {key} = 2030-01-31"
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or (isinstance(value, int) and value.bit_length() < 64):
        return str(value)
    raise InputError(
        f"request {path} has {in_toml(value)} as {key}, expected a string, a date, a whole number or a truth "
        "value: write it as a string"
    )
