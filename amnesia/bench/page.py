"""A bench as a table for the terminal, and as files: `bench.json`, and `bench.html` with the table and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from amnesia.bench.results import FORMAT_VERSION, RATIO, Bench, Measure
from amnesia.files.staging import staged_output
from amnesia.files.strict_json import json_bytes
from amnesia.files.typed_json import plain
from amnesia.numbers import flat, signed
from amnesia.report.axes import both, grid
from amnesia.report.page import render
from amnesia.report.svg import Drawing, Scale, around
from amnesia.weights.manifest import version_of

NAME = "bench"
_EDGES = (-0.5, 2.0)
"""Shares beyond these are drawn at the edge, so that one destroyed model does not flatten all others."""

Row = tuple[str, tuple[str, ...]]
"""A measure's name and its values, model by model."""


def bench_rows(bench: Bench) -> list[Row]:
    """The measures that any model has, each with its number of items, and a dash where a model has none."""
    keys = dict.fromkeys(_key(measure) for entry in bench.entries for measure in entry.measures)
    values = [{_key(measure): measure for measure in entry.measures} for entry in bench.entries]
    rows = [
        (
            f"{key[0]}: {key[1]}, {key[2]} ({key[3]})",
            tuple(_shown(found[key]) if key in found else "–" for found in values),
        )
        for key in keys
    ]
    ends = [("forgotten", "forget_left"), ("damage to neighbors", "neighbor_left")]
    return rows + [(name, tuple(signed(1 - getattr(entry, key)) for entry in bench.entries)) for name, key in ends]


def _key(measure: Measure) -> tuple[str, str, str, int]:
    return measure.set, measure.kind, measure.metric, measure.n


def _shown(measure: Measure) -> str:
    digits = 3 if measure.metric == RATIO else 2  # What a ratio is above 1 is mostly less than a hundredth.
    mean, low, high = (signed(value, digits) for value in (measure.value.mean, measure.value.low, measure.value.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def bench_text(bench: Bench) -> str:
    """The table: a row for each measure, a column for each model."""
    contract = bench.contract
    names = [entry.name for entry in bench.entries]
    rows = [("", tuple(names)), *bench_rows(bench)]
    widths = [max(len(row[1][n]) for row in rows) + 3 for n in range(len(names))]
    first = max(len(row[0]) for row in rows)
    return "\n".join(
        [
            f"{contract.suite}, version {contract.version}: {contract.n_prompts} prompts, "
            f"{', '.join(contract.entities)} to be forgotten; contract {contract.prompts[:16]}",
            *([] if bench.source is None else [f"data: {bench.source}"]),
            "",
            *(
                f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                for name, cells in rows
            ),
        ]
    )


def bench_figure(bench: Bench) -> str:
    """Forgetting against damage, a mark for each model: what is best stands at the right, at the bottom."""
    points = [(entry.name, 1 - entry.forget_left, 1 - entry.neighbor_left) for entry in bench.entries]
    across = around([x for _, x, _ in points], 0, 1, *_EDGES)
    up = around([y for _, _, y in points], 0, 0.25, *_EDGES)
    described = "; ".join(f"{name}: forgotten {signed(x)}, damage {signed(y)}" for name, x, y in points)

    def draw(key: str, width: float) -> Drawing:
        drawing = Drawing(key, "Forgetting against damage", f"{described}.", width)
        top, bottom = 30.0, 330.0
        x, y = Scale(*across, 44, width - 10), Scale(*up, bottom, top)
        drawing.text(0, top - 14, "↑ damage to neighbors, 1: all is lost", "label small")
        grid(drawing, x, y, "forgotten, 1: like an unknown name →")
        drawing.line(x(1), top, x(1), bottom, "guide dashed")
        for n, (name, forgotten, damage) in enumerate(points):
            shape, classes = ("circle", "control open") if n == 0 else ("diamond", "target full")
            drawing.mark(shape, x(forgotten), y(damage), 5, classes, flat(name, 90))
            anchor = "end" if x(forgotten) > width * 0.6 else "start"
            place = x(forgotten) + (-10 if anchor == "end" else 10)
            drawing.text(place, y(damage) - 8 - 14 * (n % 2), flat(name, 28), "label small", anchor)
        return drawing

    return both(draw, NAME)


def bench_document(bench: Bench) -> dict[str, object]:
    """The content of `bench.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "tool": {name: version_of(name) for name in ("amnesia", "torch", "transformers")},
        **plain(bench),
    }


def bench_html(bench: Bench) -> str:
    """One page that needs no network."""
    return render(
        "bench.html",
        contract=bench.contract,
        source=bench.source,
        names=[entry.name for entry in bench.entries],
        rows=bench_rows(bench),
        figure=Markup(bench_figure(bench)),
    )


def write_bench(bench: Bench, output: Path) -> None:
    """Write both files into a new folder, complete or not at all; raises OutputError where that cannot be."""
    files: Sequence[tuple[str, bytes]] = (
        (f"{NAME}.json", json_bytes(bench_document(bench))),
        (f"{NAME}.html", bench_html(bench).encode()),
    )
    with staged_output(output) as staging:
        for name, content in files:
            (staging / name).write_bytes(content)
