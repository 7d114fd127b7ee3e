"""Small pictures for a page: shapes with names, scales with round ticks. Colors are classes, which the page defines.

A drawing is made with xml.etree, so that text is escaped, and with the same input it has the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

Shape = str
# Corners of unit shapes, which differ in outline, so that they can be told apart without color.
_DIAMOND = ((0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0))
_SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
_SHAPES = {"diamond": _DIAMOND, "square": _SQUARE}


def number(value: float) -> str:
    """A coordinate: at most one digit after the point, never "-0"."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


_MOST_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` linearly onto places from `start` to `end`; beyond, the ends are used."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the scale, at most `_MOST_TICKS`, in steps of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
        step = next(factor * power for factor in (1, 2, 5, 10, 20, 50) if span / (factor * power) <= _MOST_TICKS - 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(n * step, 10) for n in range(first, last + 1)]


def around(values: Sequence[float], low: float, high: float, least: float = -math.inf, most: float = math.inf) -> tuple:
    """Ends of a scale that holds `low`, `high` and the values, but nothing below `least` or above `most`."""
    ends = max(least, min([low, *values])), min(most, max([high, *values]))
    margin = 0.04 * (ends[1] - ends[0])
    return ends[0] - margin, ends[1] + margin


class Drawing:
    """An SVG with a name and a description for those who do not see it; who draws sets the height at the end."""

    def __init__(self, key: str, title: str, description: str, width: float) -> None:
        self.width, self.height = width, 0.0
        self._root = ElementTree.Element(
            "svg", {"role": "img", "aria-labelledby": f"{key}-title", "aria-describedby": f"{key}-desc"}
        )
        self.text_element("title", title).set("id", f"{key}-title")
        self.text_element("desc", description).set("id", f"{key}-desc")

    def text_element(self, tag: str, text: str, parent: ElementTree.Element | None = None) -> ElementTree.Element:
        """An element that holds nothing but text."""
        element = ElementTree.SubElement(self._root if parent is None else parent, tag)
        element.text = text
        return element

    def add(self, tag: str, classes: str, tip: str | None = None, **attributes: float | str) -> None:
        """A shape; numbers are coordinates, and `tip` is shown to who points at it."""
        shown = {
            name.replace("_", "-"): value if isinstance(value, str) else number(value)
            for name, value in attributes.items()
        }
        element = ElementTree.SubElement(self._root, tag, {"class": classes, **shown})
        if tip is not None:
            self.text_element("title", tip, element)

    def line(self, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
        """A straight line."""
        self.add("line", classes, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, points: Sequence[tuple[float, float]], classes: str, *, closed: bool = False) -> None:
        """A line through points, or the area that they enclose."""
        steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.add("path", classes, d=f"M{steps}{'Z' * closed}")

    def mark(self, shape: Shape, x: float, y: float, size: float, classes: str, tip: str | None = None) -> None:
        """A circle, diamond or square around a place."""
        if shape == "circle":
            self.add("circle", classes, tip, cx=x, cy=y, r=size)
        else:
            corners = "L".join(f"{number(x + size * dx)} {number(y + size * dy)}" for dx, dy in _SHAPES[shape])
            self.add("path", classes, tip, d=f"M{corners}Z")

    def text(self, x: float, y: float, text: str, classes: str = "label", anchor: str = "start") -> None:
        """Text on a baseline."""
        ElementTree.SubElement(
            self._root, "text", {"class": classes, "x": number(x), "y": number(y), "text-anchor": anchor}
        ).text = text

    def to_svg(self, classes: str) -> str:
        """The finished drawing."""
        width, height = number(self.width), number(self.height)
        self._root.attrib.update({"class": classes, "viewBox": f"0 0 {width} {height}"})
        self._root.attrib.update({"width": width, "height": height})
        return ElementTree.tostring(self._root, encoding="unicode")
