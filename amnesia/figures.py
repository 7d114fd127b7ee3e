"""Figures of the experiments, drawn from the JSON documents that the commands write. Needs matplotlib, and only it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from amnesia.errors import InputError

TARGET, CONTROL, NEUTRAL, FAINT = "#c1440e", "#1f6f78", "#3a3a3a", "#b8b8b8"
_STYLE = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 150,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # Text stays text, so that it can be searched and set in the reader's font.
    "svg.hashsalt": "amnesia",
    "savefig.bbox": "tight",
}
Document = Mapping[str, Any]


def check_available() -> None:
    """Raise InputError, before any work is done, when matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "figures need matplotlib, which is not installed: pip install 'amnesia[plots]', or give --no-plots"
        ) from error


def draw(document: Document) -> dict[str, bytes]:
    """The figure of a document as files by suffix: `.svg` and `.png`. `document["figure"]` says which figure it is."""
    check_available()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        FIGURES[document["figure"]](figure, document)
        files = {}
        for suffix in (".svg", ".png"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
            files[suffix] = buffer.getvalue()
    return files


def _cell(row: Document) -> str:
    return f"{row['layer']}:{row['neuron']}"


def _panels(figure: Any, n: int, width: float = 6.4, height: float = 3.2, **options: Any) -> list[Any]:
    """A column of `n` panels."""
    figure.set_size_inches(width, height * n)
    return list(figure.subplots(n, 1, squeeze=False, **options)[:, 0])


def _layers(figure: Any, document: Document) -> None:
    rows = document["entities"]
    layers = document["layers"]
    for axes, row in zip(_panels(figure, len(rows), height=2.3, sharex=True), rows, strict=True):
        values = row["significance"]
        best = max(range(len(layers)), key=values.__getitem__)
        colors = [TARGET if n == best else FAINT for n in range(len(layers))]
        axes.bar(layers, values, color=colors, width=0.8)
        axes.set_title(f"{row['entity']}: layer {layers[best]}", loc="left")
        axes.set_ylabel("significance S")
        axes.grid(axis="x", visible=False)
    axes.set_xlabel("layer")
    figure.suptitle(f"Layer significance in {document['model']}, {document['n_prompts']} prompts")


def _localize(figure: Any, document: Document) -> None:
    rows = document["entities"]
    for axes, row in zip(_panels(figure, len(rows), height=2.7), rows, strict=True):
        cells = row["cells"][:20]
        top = cells[0]["layer"]
        runner_up = next((cell["layer"] for cell in cells if cell["layer"] != top), None)
        # The layer of the best cell stands out; the runner-up is grey, and what belongs to neither is paler still.
        colors = {top: TARGET, runner_up: "#8a8a8a"}
        axes.bar(
            range(len(cells)),
            [cell["score"] for cell in cells],
            color=[colors.get(cell["layer"], "#dcdcdc") for cell in cells],
        )
        axes.set_xticks(range(len(cells)), [_cell(cell) for cell in cells], rotation=60, ha="right", fontsize=7)
        axes.set_title(row["entity"], loc="left")
        axes.set_ylabel("stability")
        axes.grid(axis="x", visible=False)
        for layer, color in ((top, TARGET), (runner_up, "#8a8a8a")):
            if layer is not None:
                axes.bar([0], [0], color=color, label=f"layer {layer}")
        axes.bar([0], [0], color="#dcdcdc", label="other layers")
        axes.legend(loc="upper right")
    axes.set_xlabel("cell (layer:neuron)")
    figure.suptitle(f"Cells by stability in {document['model']}, {document['baseline']} baseline")


def _sweep(figure: Any, document: Document) -> None:
    axes = figure.subplots()
    x = document["multipliers"]
    zero = x.index(0.0) if 0.0 in x else None
    for curve, color in zip(document["curves"], (TARGET, CONTROL), strict=True):
        mean, error = curve["mean"], curve["standard_error"]
        label = f"{document['entity']} ({curve['n']} facts)" if curve["kind"] == "target" else f"others ({curve['n']})"
        axes.plot(x, mean, color=color, marker="o", markersize=3, label=label)
        low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        if zero is not None:
            axes.annotate(f"{mean[zero]:.2f}", (0, mean[zero]), xytext=(4, 6), textcoords="offset points", color=color)
    for level, style in ((1, "--"), (0, ":")):
        axes.axhline(level, color=NEUTRAL, linewidth=0.8, linestyle=style)
    if zero is not None:
        axes.axvline(0, color=FAINT, linewidth=6, alpha=0.5, zorder=0)
        axes.text(0, 1.01, "zero ablation", transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
    axes.invert_xaxis()
    axes.set_xlabel("multiplier of the cells" + (" at the entity's token" if document["tokens"] == "entity" else ""))
    axes.set_ylabel("knowledge score ± s.e.")
    axes.legend()
    cells = ", ".join(map(_cell, document["cells"][:4])) + (" …" if len(document["cells"]) > 4 else "")
    n = len(document["cells"])
    axes.set_title(f"{document['entity']}: {n} cell{'s' * (n > 1)} ({cells})", loc="left", pad=14)


FIGURES: Mapping[str, Callable[[Any, Document], None]] = {
    "layers": _layers,
    "localize": _localize,
    "sweep": _sweep,
}
