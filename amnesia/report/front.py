"""The figure of a choice's front: how much is forgotten, at which harm, on how many columns."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia.choice.results import FrontPoint
from amnesia.numbers import signed
from amnesia.report.axes import CHAR, both, grid, legend
from amnesia.report.charts import CONTROL, TARGET
from amnesia.report.svg import Drawing, Scale, around


def front(points: Sequence[FrontPoint]) -> str:
    """Edits that the choice could have taken, the knowledge that they leave over the harm that they do."""
    described = "; ".join(
        f"{row.n_columns} columns: {signed(row.target)} at {row.harm:.4f}{', chosen' * row.chosen}" for row in points
    )
    across = around([row.harm for row in points], 0.0, max(row.harm for row in points) or 1.0)
    up = around([row.target for row in points], 0.0, max(row.target for row in points))

    def draw(name: str, width: float) -> Drawing:
        drawing = Drawing(
            name, "Which edits there were to choose from", f"Knowledge left at a harm. {described}.", width
        )
        top = legend(drawing, [(*TARGET, "the chosen edit"), (*CONTROL, "others, with their columns")]) + 22
        bottom = top + (240 if width > 500 else 200)
        x, y = Scale(*across, 34, width - 10), Scale(*up, bottom, top)
        drawing.text(0, top - 10, "↑ knowledge score of the search facts", "label small")
        grid(drawing, x, y, "harm to text: nats per token →")
        for row in points:
            shape, classes = TARGET if row.chosen else CONTROL
            left, height = x(row.harm), y(row.target)
            label = str(row.n_columns)
            is_right = left + 10 + CHAR * len(label) < width
            place, anchor = (left + 9, "start") if is_right else (left - 9, "end")
            drawing.mark(shape, left, height, 4.6, classes, f"{signed(row.target)} at {row.harm:.4f}")
            drawing.text(place, height + 4, label, "label small", anchor)
        return drawing

    return both(draw, "front")
