"""Frozen dataclasses as JSON, and read from it by the types of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from amnesia.files.strict_json import StrictJson

Form = Callable[["TypedJson", object, str], Any]
"""Reads a value, of the field that is named, of a type that JSON writes in a form of its own."""

_hints = cache(get_type_hints)


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings as dictionaries, tuples as lists."""
    if is_dataclass(value):
        return {row.name: plain(getattr(value, row.name)) for row in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class TypedJson:
    """Values of one JSON file as types; what is none of its type raises the error of `check`, with the field's path.

    A dataclass is an object with exactly its fields, of which those with a default may be absent; a tuple is a list.
    `forms` are for types that are written otherwise.
    """

    check: StrictJson
    forms: Mapping[Any, Form]

    def read(self, kind: Any, value: object, key: str) -> Any:
        """The value of the field `key`, as the type `kind`."""
        if kind in self.forms:
            return self.forms[kind](self, value, key)
        if is_dataclass(kind):
            return self.dataclass(kind, value, key)
        origin, parts = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            (kind,) = (part for part in parts if part is not NoneType)
            return None if value is None else self.read(kind, value, key)
        if origin is Literal:
            return self.check.choice(value, key, parts)
        if origin is tuple:
            rows = self.check.list(value, key)
            return tuple(self.read(parts[0], row, f"{key}[{place}]") for place, row in enumerate(rows))
        if origin is Mapping:
            rows = self.check.mapping(value, key)
            return {
                self.check.string(name, key): self.read(parts[1], row, f"{key}.{name}") for name, row in rows.items()
            }
        plain = {int: self.check.integer, float: self.check.number, bool: self.check.boolean, str: self.check.string}
        return plain[kind](value, key)

    def dataclass(self, kind: Any, value: object, key: str = "") -> Any:
        """The object `value` as the dataclass `kind`, whatever form it has; `key` is empty for the whole file."""
        optional = {row.name for row in fields(kind) if row.default is not MISSING}
        required = " ".join(row.name for row in fields(kind) if row.name not in optional)
        found = self.check.object(value, key or "the file", required, " ".join(optional))
        hints = _hints(kind)
        prefix = f"{key}." if key else ""
        return kind(**{name: self.read(hints[name], row, prefix + name) for name, row in found.items()})
