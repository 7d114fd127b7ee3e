"""JSON: written in one form, and read although it may be damaged or hostile.

Reading is bounded, refuses duplicate keys, and has errors that name the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amnesia.errors import AmnesiaError, InputError, clipped
from amnesia.files.disk import is_inside_name

_MAX_INTEGER = 2**63
Unchecked = object  # A value as it was read. `StrictJson` has a method of the name `object`.


def shown(value: object) -> str:
    """A value from a file in one short line, whatever it is."""
    return clipped(repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__)


def json_bytes(document: Any) -> bytes:
    """JSON as it is written to files: indented, UTF-8, keys in the order given.

    Raises ValueError for NaN and infinity, InputError for a text that is not UTF-8, as a name on disk may be.
    """
    return utf8_bytes(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def utf8_bytes(text: str) -> bytes:
    """JSON text as UTF-8; raises InputError that names the string in it that is none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        name = text[: error.start].rpartition('"')[2] + text[error.start :].partition('"')[0]
        raise InputError(
            f"{clipped(ascii(name))} is not UTF-8, which JSON needs: rename the folder or file of that name"
        ) from error


@dataclass(frozen=True)
class StrictJson:
    """Checks for the values of one JSON file.

    `source` names the file in messages, `error` is the class that is raised, and `remedy` ends each message.
    """

    source: str
    error: type[AmnesiaError]
    remedy: str

    def parse(self, content: bytes) -> Any:
        """The JSON value of `content`; duplicate keys, NaN and infinity are errors."""
        try:
            return json.loads(
                content.decode("utf-8"),
                object_pairs_hook=self._unique,
                parse_constant=self._refuse_constant,
                parse_float=self._finite,
            )
        except AmnesiaError:
            raise
        except RecursionError as error:
            raise self.fail("is nested too deeply") from error
        except ValueError as error:
            raise self.fail(f"is not valid JSON ({error})") from error

    def fail(self, problem: str) -> AmnesiaError:
        """The error that says `problem` about this file."""
        return self.error(f"{self.source} {problem}: {self.remedy}")

    def _unique(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            raise self.fail("has the same key twice in one object")
        return row

    def _refuse_constant(self, name: str) -> Any:
        raise self.fail(f"holds {name}, which is not a number")

    def _finite(self, text: str) -> float:
        number = float(text)
        # What is beyond the range of float is read as infinity.
        return self._refuse_constant(text[:80]) if math.isinf(number) else number

    def _wrong(self, key: str, value: Unchecked, expected: str) -> AmnesiaError:
        return self.fail(f"has {shown(value)} as {key[:80]}, expected {expected}")

    def mapping(self, value: Unchecked, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value

    def object(self, value: Unchecked, key: str, names: str, optional: str = "") -> Mapping[str, Any]:
        """An object with exactly the keys of the space-separated `names`, and any of those in `optional`."""
        row = self.mapping(value, key)
        expected = set(names.split())
        if row.keys() - set(optional.split()) != expected:
            different = sorted((row.keys() - set(optional.split())) ^ expected)[0]
            state = "lacks the key" if different in expected else "has the unknown key"
            raise self.fail(f"{state} {shown(different)} in {key}")
        return row

    def list(self, value: Unchecked, key: str) -> Sequence[Any]:
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def string(self, value: Unchecked, key: str) -> str:
        """A text, which may be empty."""
        # Lone surrogates can be spelled in JSON but cannot be written as UTF-8.
        if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
            raise self._wrong(key, value, "a string")
        return value

    def text(self, value: Unchecked, key: str) -> str:
        if not value or not isinstance(value, str):
            raise self._wrong(key, value, "a non-empty string")
        return self.string(value, key)

    def optional_text(self, value: Unchecked, key: str) -> str | None:
        return None if value is None else self.text(value, key)

    def integer(self, value: Unchecked, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_INTEGER:
            raise self._wrong(key, value, "a whole number from 0")
        return value

    def number(self, value: Unchecked, key: str) -> float:
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass  # A whole number beyond the range of float is as wrong as infinity.
        raise self._wrong(key, value, "a finite number")

    def boolean(self, value: Unchecked, key: str) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, value: Any, key: str, choices: Sequence[Any]) -> Any:
        if value not in choices:
            raise self._wrong(key, value, f"one of {', '.join(map(str, choices))}")
        return value

    def sha256(self, value: Unchecked, key: str) -> str:
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise self._wrong(key, value, "64 hexadecimal digits")
        return value

    def file_name(self, value: Unchecked, key: str) -> str:
        """A relative path that cannot leave its folder."""
        if not isinstance(value, str) or not is_inside_name(value):
            raise self._wrong(key, value, "the name of a file inside the folder")
        return value

    def file_names(self, value: Unchecked, key: str) -> tuple[str, ...]:
        return tuple(self.file_name(item, key) for item in self.list(value, key))
