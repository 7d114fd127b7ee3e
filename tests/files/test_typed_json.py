"""Dataclasses are read from JSON by the types of their fields, and what does not fit is named by its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from amnesia.errors import InputError
from amnesia.files.strict_json import StrictJson
from amnesia.files.typed_json import TypedJson, plain


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Shape:
    name: str
    kind: Literal["line", "area"]
    n: int
    closed: bool
    points: tuple[Point, ...]
    center: Point | None
    labels: Mapping[str, tuple[str, ...]]


SHAPE = {
    "name": "",
    "kind": "area",
    "n": 2,
    "closed": True,
    "points": [{"x": 1, "y": 2.5}, {"x": -1}],
    "center": None,
    "labels": {"en": ["a", "b"]},
}


def read(value, forms=None):
    return TypedJson(StrictJson("s.json", InputError, "mend it"), forms or {}).dataclass(Shape, value)


def test_a_value_has_the_types_of_its_fields():
    shape = read(SHAPE)
    assert shape == Shape("", "area", 2, True, (Point(1.0, 2.5), Point(-1.0)), None, {"en": ("a", "b")})
    assert isinstance(shape.points[0].x, float)
    assert read(SHAPE | {"center": {"x": 3}}).center == Point(3.0)


def test_what_was_read_is_written_again():
    written = plain(read(SHAPE))
    assert written == SHAPE | {"points": [{"x": 1.0, "y": 2.5}, {"x": -1.0, "y": 0.0}]}
    assert read(written) == read(SHAPE)


def test_a_type_may_have_a_form_of_its_own():
    def pair(json, value, key):
        return Point(*(json.read(float, one, key) for one in value))

    assert read(SHAPE | {"points": [[1, 2]], "center": [0, 4]}, {Point: pair}).center == Point(0.0, 4.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 1.5}, "has 1.5 as n, expected a whole number from 0"),
        ({"n": True}, "has True as n, expected a whole number"),
        ({"closed": 1}, "has 1 as closed, expected true or false"),
        ({"name": None}, "has None as name, expected a string"),
        ({"name": "\ud800"}, "has .* as name, expected a string"),
        ({"kind": "point"}, "has 'point' as kind, expected one of line, area"),
        ({"points": [{"x": 1}, {"x": "1"}]}, r"has '1' as points\[1\].x, expected a finite number"),
        ({"points": [{"y": 1}]}, r"lacks the key 'x' in points\[0\]"),
        ({"points": {"x": 1}}, "has dict as points, expected a list"),
        ({"center": []}, "has list as center, expected an object"),
        ({"labels": {"en": [1]}}, r"has 1 as labels.en\[0\], expected a string"),
        ({"size": 1}, "has the unknown key 'size' in the file"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(changed, message):
    with pytest.raises(InputError, match=rf"^s\.json {message}.*: mend it$"):
        read(SHAPE | changed)
