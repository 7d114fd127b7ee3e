"""The figures of `report.html`. Targets are filled diamonds and controls open circles, so that no color is needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.choice.results import AnswerCounts, Answers, ScreenedPlace, Screening
from amnesia.edits import ColumnEdit, token_name
from amnesia.evaluation.results import PromptScore, StrengthSweep
from amnesia.numbers import flat, plus, share, short, signed
from amnesia.report.axes import CHAR, MANY, WIDTHS, apart, both, grid, landmarks, legend, ticks_below
from amnesia.report.content import Direction, ShownEdit
from amnesia.report.svg import Drawing, Scale, around
from amnesia.report.view import score_of, unknown_of

TARGET, CONTROL = ("diamond", "target full"), ("circle", "control open")
_LARGEST = 12  # Cells of a direction that are drawn.
_EDGES = (-2.0, 2.0)
"""Knowledge scores beyond these are drawn at the edge, so that one odd fact does not flatten all others."""


@dataclass(frozen=True)
class Interval:
    """A mean with its interval and, behind it, the single values. `mark` is a shape and its classes."""

    label: str
    mark: tuple[str, str]
    mean: float
    low: float
    high: float
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """A point of a line; `error` is half the height of a band around it, if it has one."""

    x: float
    y: float
    error: float | None = None


@dataclass(frozen=True)
class Series:
    """A line through points, with a band around it where these have errors."""

    label: str
    mark: tuple[str, str]
    line: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Track:
    """Two shares (0 to 1) of one subject, joined by a line; None where one was not measured."""

    label: str
    shape: str
    color: str
    before: float | None
    after: float | None


def intervals(rows: Sequence[Interval], title: str, key: str) -> str:
    """Means of knowledge scores with their 95 % intervals, one below the other, over the facts themselves."""
    described = "; ".join(f"{row.label}: {_with_interval(row)}" for row in rows)
    ends = around([value for row in rows for value in (row.low, row.high, *row.values)], -0.25, 1.25, *_EDGES)

    def draw(name: str, width: float) -> Drawing:
        drawing = Drawing(name, title, f"Mean knowledge score with 95 % interval. {described}.", width)
        x = Scale(*ends, 10, width - 10)
        # Where both do not fit on a line, the numbers go below the label.
        below = 18 * any(CHAR * len(row.label + _with_interval(row)) > width for row in rows)
        height = 54 + below
        bottom = 22 + height * len(rows)
        landmarks(drawing, x, 22, bottom)
        for index, row in enumerate(rows):
            top = 22 + height * index
            drawing.text(0, top + 19, row.label)
            place, anchor = (0, "start") if below else (width, "end")
            drawing.text(place, top + 19 + below, _with_interval(row), "label strong", anchor)
            y = top + 38 + below
            shape, classes = row.mark
            # The golden ratio spreads the facts evenly over the height without a draw.
            places = [(x(value), y - 8 + 16 * (n * 0.618034 % 1), None) for n, value in enumerate(row.values)]
            for across, up, _ in apart(places):
                drawing.mark(shape, across, up, 2.4, f"{classes} faint")
            drawing.line(x(row.low), y, x(row.high), y, f"interval {classes.split()[0]}")
            for end in (row.low, row.high):
                drawing.line(x(end), y - 6, x(end), y + 6, f"interval {classes.split()[0]}")
            drawing.mark(shape, x(row.mean), y, 5.5, f"{classes} mean")
        ticks_below(drawing, x, bottom)
        drawing.height = bottom + 24
        return drawing

    return both(draw, key)


def scatter(prompts: Sequence[PromptScore], entity: str) -> str:
    """What each scored fact was worth before the edit and is worth after it, in nats above an unknown name."""
    facts = [(row, row.before.logprob - unknown_of(row), row.after.logprob - unknown_of(row)) for row in prompts]
    most = max(before for _, before, _ in facts)
    across = around([before for _, before, _ in facts], 0, most)
    # A fact can fall without limit; what falls below twice the largest gain is drawn at the edge.
    up = around([after for _, _, after in facts], -most / 8, most, -2 * most, 2 * most)
    n_targets = sum(row.role == "target" for row, _, _ in facts)
    n_edge = sum(not up[0] <= after <= up[1] for _, _, after in facts)
    described = (
        f"{n_targets} facts about {entity} as filled diamonds, {len(facts) - n_targets} about others as open circles. "
        "On the rising line a fact is worth as much as before, on the level line no more than for an unknown name."
        + f" {n_edge} lie beyond the figure and are drawn at its edge."
        * (n_edge > 0)
    )

    def draw(key: str, width: float) -> Drawing:
        drawing = Drawing(key, f"Each fact before and after the edit: {entity} against others", described, width)
        entries = [(*TARGET, f"{n_targets} facts about {entity}"), (*CONTROL, f"{len(facts) - n_targets} about others")]
        top = legend(drawing, entries) + 22
        bottom = top + (330 if width > 500 else 280)
        x, y = Scale(*across, 34, width - 10), Scale(*up, bottom, top)
        drawing.text(0, top - 10, "↑ after the edit: nats above an unknown name", "label small")
        grid(drawing, x, y, "before the edit: nats above an unknown name →")
        drawing.line(x(0), y(0), x(across[1]), y(0), "guide")
        drawing.text(x(0), y(0) + 16, "like an unknown name: score 0", "label small")
        end = min(across[1], up[1])
        drawing.line(x(0), y(0), x(end), y(end), "guide dashed")
        drawing.text(x(end) - 12, y(end) + 6, "as before: score 1", "label small", "end")
        for (shape, classes), role in ((CONTROL, "control"), (TARGET, "target")):
            places = [(x(before), y(after), row) for row, before, after in facts if row.role == role]
            for left, top, row in apart(places):
                tip = None
                if len(facts) <= MANY and width == WIDTHS["wide"]:
                    tip = f"{flat(row.prompt, 90)} {flat(row.answer, 90)}: score {signed(score_of(row))}"
                drawing.mark(shape, left, top, 3.8, classes, tip)
        return drawing

    return both(draw, "scatter")


def sweep(swept: StrengthSweep, entity: str) -> str:
    """Mean knowledge scores over the strength of the edit, with bands of one standard error."""
    styles = {"target": (TARGET, "target"), "control": (CONTROL, "control dashed")}
    series = [
        Series(
            f"{entity if curve.role == 'target' else 'others'}, {curve.n} facts",
            *styles[curve.role],
            tuple(Point(*point) for point in zip(swept.strengths, curve.mean, curve.standard_error, strict=True)),
        )
        for curve in swept.curves
    ]
    return lines(series, "sweep", "Knowledge score by strength of the edit", "strength of the edit →")


def lines(series: Sequence[Series], key: str, title: str, axis: str) -> str:
    """Curves of knowledge scores."""
    described = " ".join(
        f"{one.label}: {', '.join(f'{signed(end.y)} at {end.x:g}' for end in (one.points[0], one.points[-1]))}."
        for one in series
    )
    places = [point.x for one in series for point in one.points]
    ends = around([point.y for one in series for point in one.points], 0, 1, *_EDGES)

    def draw(name: str, width: float) -> Drawing:
        drawing = Drawing(name, title, f"Knowledge score. {described}", width)
        top = legend(drawing, [(*one.mark, one.label) for one in series]) + 22
        bottom = top + (260 if width > 500 else 220)
        sides = (34, width - 12)
        x = Scale(min(places), max(places), *sides)
        y = Scale(*ends, bottom, top)
        drawing.text(0, top - 10, "↑ knowledge score", "label small")
        grid(drawing, x, y, axis)
        for level in (0, 1):
            drawing.line(sides[0], y(level), sides[1], y(level), "guide dashed")
        for one in series:
            banded = [(x(point.x), point.y, point.error) for point in one.points if point.error is not None]
            if banded:
                band = [(across, y(middle + error)) for across, middle, error in banded]
                band += [(across, y(middle - error)) for across, middle, error in reversed(banded)]
                drawing.path(band, f"band {one.line.split()[0]}", closed=True)
            drawing.path([(x(point.x), y(point.y)) for point in one.points], f"curve {one.line}")
            for point in one.points:
                tip = f"{one.label}: {signed(point.y)} at {point.x:g}"
                drawing.mark(one.mark[0], x(point.x), y(point.y), 3.4, one.mark[1], tip)
        return drawing

    return both(draw, key)


def cells(edits: Sequence[ShownEdit]) -> str:
    """The scaled cells, a row for each layer, and for each direction its largest cells, in boxes."""
    layers: dict[str, list[str]] = defaultdict(list)
    for edit in sorted((row for row in edits if isinstance(row, ColumnEdit)), key=lambda row: row.cell):
        expert = "" if edit.cell.expert is None else f"{edit.cell.expert}:"
        layers[f"layer {edit.cell.layer}"].append(f"{expert}{edit.cell.neuron} × {short(edit.multiplier)}")
    for edit in (row for row in edits if isinstance(row, Direction)):
        pairs = sorted(zip(edit.columns, edit.read, strict=True), key=lambda pair: (-abs(pair[1]), pair[0]))
        token = f"−{edit.token}" if edit.token else ""
        layers[f"{edit.layer}{token} × {short(edit.multiplier)}"] += [
            f"{column}: {plus(number, 3)}" for column, number in pairs[:_LARGEST]
        ]
    described = "; ".join(f"{place}: {', '.join(texts)}" for place, texts in layers.items())

    def draw(key: str, width: float) -> Drawing:
        described_as = (
            "Neuron × multiplier by layer; of a direction, neuron: weight in the read-out, the largest first."
        )
        drawing = Drawing(key, "What was changed", f"{described_as} {described}.", width)
        box = CHAR * max(len(text) for texts in layers.values() for text in texts) + 16
        left = max(78.0, 10 + 1.1 * CHAR * max(map(len, layers)))
        y = 0.0
        for layer, texts in layers.items():
            drawing.text(0, y + 19, layer, "label strong")
            x = left
            for text in texts:
                if x + box > width and x > left:
                    x, y = left, y + 34
                drawing.add("rect", "cell", x=x + 1, y=y + 1, width=min(box, width - left - 2), height=26, rx=5)
                drawing.text(x + min(box, width - left - 2) / 2 + 1, y + 19, text, "label mono", "middle")
                x += box + 8
            y += 40
        drawing.height = y
        return drawing

    return both(draw, "cells")


def histograms(answers: Answers, entity: str) -> str:
    """What each direction answers to the entity, to other names and to text, one below the other on the same scale."""
    subjects = {"entity": (entity, "target"), "names": ("other names", "control"), "text": ("text", "control")}
    panels: dict[str, list[AnswerCounts]] = defaultdict(list)
    for row in answers.rows:
        panels[f"layer {row.layer}, {token_name(row.token)}"].append(row)
    described = "; ".join(
        f"{place}: " + ", ".join(f"{subjects[row.group][0]} {_spread(row)}" for row in rows)
        for place, rows in panels.items()
    )
    ends = around([answers.low, answers.high], 0, 1)

    def draw(key: str, width: float) -> Drawing:
        described_as = f"The median of the size, the bound of 99 %, and how many there are. {described}."
        drawing = Drawing(key, "What the directions answer to", described_as, width)
        x = Scale(*ends, 10, width - 10)
        step = (answers.high - answers.low) / len(answers.rows[0].counts)
        bottom = 22.0 + sum(30 + 52 * len(rows) for rows in panels.values())
        landmarks(drawing, x, 22, bottom, ("0: nothing", "1: the entity"))
        y = 22.0
        for place, rows in panels.items():
            drawing.text(0, y + 20, place, "label strong")
            y += 30
            for row in rows:
                label, color = subjects[row.group]
                spread = _spread(row)
                drawing.text(0, y + 14, flat(label, int(width / CHAR) - len(spread) - 1))
                drawing.text(width, y + 14, spread, anchor="end")
                y += 52
                outline = [(x(answers.low), y)]
                for n, count in enumerate(row.counts):
                    # A single answer must show beside thousands.
                    height = 30 * math.log1p(count) / math.log1p(max(row.counts))
                    outline += [(x(answers.low + step * end), y - height) for end in (n, n + 1)]
                drawing.path([*outline, (x(answers.high), y)], f"histogram {color}", closed=True)
                drawing.line(x.start, y, x.end, y, "grid")
        ticks_below(drawing, x, bottom)
        drawing.height = bottom + 24
        return drawing

    return both(draw, "histograms")


def screening(screened: Screening) -> str:
    """Layers and tokens that a choice considered: knowledge left with each alone, and how far it moves the stream."""
    columns = list(enumerate(screened.tokens))[::-1]
    places = {(row.layer, row.token): row for row in screened.places}
    layers = sorted({layer for layer, _ in places})

    def said(row: ScreenedPlace) -> str:
        return "not tried" if row.score is None else signed(row.score)

    described = "; ".join(
        f"layer {layer}: "
        + ", ".join(
            f"“{text}” {said(row)}, moves {row.shift:.3g}{', chosen' * row.chosen}"
            for token, text in columns
            if (row := places.get((layer, token))) is not None
        )
        for layer in layers
    )

    def draw(key: str, width: float) -> Drawing:
        title = "Which layers and tokens hold the knowledge"
        drawing = Drawing(key, title, f"Knowledge score, and how far the residual stream moves. {described}.", width)
        left = 68.0
        box = min(150.0, (width - left) / len(columns))
        for n, (_, text) in enumerate(columns):
            middle = left + box * (n + 0.5)
            drawing.text(middle, 14, flat(f"“{text}”", int(box / CHAR)), anchor="middle")
        for y, layer in zip(range(24, 24 + 48 * len(layers), 48), layers, strict=True):
            drawing.text(0, y + 26, f"layer {layer}", "label strong")
            for n, (token, _) in enumerate(columns):
                if (row := places.get((layer, token))) is None:
                    continue
                x, middle = left + box * n, left + box * (n + 0.5)
                heat = 0 if row.score is None else min(4, max(0, round(4 * (1 - row.score))))
                drawing.add(
                    "rect", f"heat h{heat}{' chosen' * row.chosen}", x=x + 3, y=y, width=box - 6, height=42, rx=5
                )
                drawing.text(middle, y + 18, said(row), f"label inside{' strong' * (row.score is not None)}", "middle")
                drawing.text(middle, y + 34, f"moves {row.shift:.3g}", "label small inside", "middle")
                if row.chosen:
                    drawing.mark(TARGET[0], x + 14, y + 13, 4.6, TARGET[1])
        drawing.height = 24.0 + 48 * len(layers)
        return drawing

    return both(draw, "screening")


def attacks(rows: Sequence[tuple[str, Sequence[Track]]], title: str, key: str) -> str:
    """Shares of right answers under each attack: an open mark for the original model, a filled one for the edited."""
    described = "; ".join(
        f"{label}: " + ", ".join(f"{one.label} {_share(one.before)} to {_share(one.after)}" for one in tracks)
        for label, tracks in rows
    )
    subjects = {one.label: one for _, tracks in rows for one in tracks}

    def draw(name: str, width: float) -> Drawing:
        drawing = Drawing(name, title, f"Right answers, original to edited model. {described}.", width)
        entries = [
            (one.shape, f"{one.color} {fill}", f"{one.label}, {model}")
            for one in subjects.values()
            for fill, model in (("open", "original"), ("full", "edited"))
        ]
        y = top = legend(drawing, entries) + 8
        x = Scale(0, 1, 10, width - 10)
        heights = [26 + 16 * len(tracks) for _, tracks in rows]
        bottom = top + sum(heights)
        for tick in x.ticks():
            drawing.line(x(tick), top, x(tick), bottom, "grid")
            drawing.text(x(tick), bottom + 16, share(tick), "label small", "middle")
        for (label, tracks), height in zip(rows, heights, strict=True):
            drawing.text(0, y + 17, label)
            for n, one in enumerate(tracks):
                place = y + 28 + 16 * n
                if one.before is not None and one.after is not None:
                    drawing.line(x(one.before), place, x(one.after), place, f"interval {one.color}")
                for value, fill in ((one.before, "open"), (one.after, "full")):
                    if value is not None:
                        # The open mark is larger, so that it shows where both are in one place.
                        drawing.mark(one.shape, x(value), place, 5.2 if fill == "open" else 3.4, f"{one.color} {fill}")
            y += height
        drawing.height = bottom + 24
        return drawing

    return both(draw, key)


def _with_interval(row: Interval) -> str:
    return f"{signed(row.mean)} ({signed(row.low)} to {signed(row.high)})"


def _spread(row: AnswerCounts) -> str:
    return f"{signed(row.median)}, 99 % within {signed(row.percentile_99)} ({row.n:,})"


def _share(value: float | None) -> str:
    return "not measured" if value is None else share(value)
