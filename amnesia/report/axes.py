"""What the figures of `report.html` have in common: two widths, axes with their ticks, legends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amnesia.numbers import short
from amnesia.report.svg import Drawing, Scale

Place = tuple[float, float, Any]
"""Where a mark stands, across and up in CSS pixels, and what it stands for."""

# Each figure is drawn for two widths, in CSS pixels, so that text has its size on a phone too; the page shows one.
WIDTHS = {"wide": 800.0, "narrow": 330.0}
CHAR = 7.4
"""Width of an average character in pixels, by which legends and boxes are laid out."""
MANY = 600
"""Marks from which on they carry no text, and those that would cover each other are drawn once: for the page's size."""


def both(draw: Callable[[str, float], Drawing], key: str) -> str:
    """A figure for wide windows and for narrow ones; `draw` gets the prefix of ids and the width in pixels."""
    return "".join(draw(f"{key}-{name}", width).to_svg(f"figure {name}") for name, width in WIDTHS.items())


def apart(places: Sequence[Place]) -> Sequence[Place]:
    """Places of marks; of very many, one in each square of three pixels."""
    return places if len(places) <= MANY else list({(x // 3, y // 3): (x, y, row) for x, y, row in places}.values())


def landmarks(
    drawing: Drawing,
    x: Scale,
    top: float,
    bottom: float,
    labels: tuple[str, str] = ("0: unknown name", "1: as before"),
) -> None:
    """Dashed lines from `top` to `bottom` at the knowledge scores 0 and 1, with a label above each."""
    for value, label in enumerate(labels):
        drawing.line(x(value), top, x(value), bottom, "guide dashed")
        drawing.text(x(value), top - 8, label, "label small", "middle")


def ticks_below(drawing: Drawing, x: Scale, y: float) -> None:
    """The horizontal axis at the height `y`, with its ticks and their values below it."""
    drawing.line(x.start, y, x.end, y, "guide")
    for value in x.ticks():
        drawing.line(x(value), y, x(value), y + 4, "guide")
        drawing.text(x(value), y + 18, short(value), "label small", "middle")


def grid(drawing: Drawing, x: Scale, y: Scale, across: str) -> None:
    """Ticks of both axes, with lines through those of the vertical one; what `across` says below ends the drawing."""
    left, right = min(x.start, x.end), max(x.start, x.end)
    for value in y.ticks():
        drawing.line(left, y(value), right, y(value), "grid")
        drawing.text(left - 6, y(value) + 4, short(value), "label small", "end")
    ticks_below(drawing, x, y.start)
    drawing.text(right, y.start + 34, across, "label small", "end")
    drawing.height = y.start + 42


def legend(drawing: Drawing, entries: Sequence[tuple[str, str, str]]) -> float:
    """Marks with their meaning, in as many lines as they need; returns where the legend ends."""
    x, y = 0.0, 14.0
    for shape, classes, label in entries:
        width = 18 + CHAR * len(label) + 18
        if x and x + width > drawing.width:
            x, y = 0.0, y + 20
        drawing.mark(shape, x + 7, y - 4, 4.6, classes)
        drawing.text(x + 18, y, label)
        x += width
    return y + 6
