"""Figures of the experiments, drawn from the JSON documents that the commands write. Needs matplotlib, and only it."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from amnesia.errors import InputError
from amnesia.files.seals import sealed_drawing
from amnesia.numbers import share

TARGET, CONTROL, NEUTRAL, FAINT = "#c1440e", "#1f6f78", "#3a3a3a", "#b8b8b8"
_STYLE = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 150,
    "font.size": 9,
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
# For names in other scripts, where one of these is installed. An SVG holds the text itself, whatever the font.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial Unicode MS", "SimHei")
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
    """The figure of a document as files by suffix: `.svg` and `.png`. `document["figure"]` says which figure it is.

    Each carries its own sha256, by which a change by hand shows.
    """
    check_available()
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())
    # Any, because matplotlib annotates each of its settings by name.
    style: Any = _STYLE | {"font.family": [name for name in _FONTS if name in installed]}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        files = {}
        for suffix, shown in ((".svg", document), (".png", _drawable(document, _glyphs()))):
            figure = Figure(layout="constrained")
            FIGURES[document["figure"]](figure, _literal(shown))
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
            files[suffix] = sealed_drawing(buffer.getvalue())
    return files


def _glyphs() -> set[int]:
    """The characters of the fonts in use."""
    import matplotlib
    from matplotlib import font_manager

    families = matplotlib.rcParams["font.family"]
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    return {code for font in fonts for code in font.get_charmap()}


def _literal(value: Any) -> Any:
    """A document in whose texts no dollar begins a formula; the ticks of logarithmic axes are set as such."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return value.replace("$", r"\$") if isinstance(value, str) else value


def _drawable(value: Any, glyphs: set[int]) -> Any:
    """A document in which texts that the fonts cannot show name their script instead.

    Scripts written from right to left are among them, because matplotlib does not set them. An SVG holds the text
    itself, and the reader's fonts show it.
    """
    if isinstance(value, Mapping):
        return {key: _drawable(item, glyphs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_drawable(item, glyphs) for item in value]
    if not isinstance(value, str):
        return value
    hidden = [c for c in value if ord(c) not in glyphs or unicodedata.bidirectional(c) in ("R", "AL")]
    return f"[{unicodedata.name(hidden[0], 'other script').split()[0].lower()}]" if hidden else value


def _cell(row: Document) -> str:
    return f"{row['layer']}:{row['neuron']}"


def _panels(figure: Any, n: int, height: float, **options: Any) -> list[Any]:
    """A column of `n` panels, each `height` inches high."""
    figure.set_size_inches(6.4, height * n)
    return list(figure.subplots(n, 1, squeeze=False, **options)[:, 0])


def _layers(figure: Any, document: Document) -> None:
    rows = document["entities"]
    layers = document["layers"]
    for axes, row in zip(_panels(figure, len(rows), height=2.3, sharex=True), rows, strict=True):
        values = row["significance"]
        best, *rest = sorted(range(len(layers)), key=lambda n: -values[n])
        colors = [TARGET if n == best else FAINT for n in range(len(layers))]
        axes.bar(layers, values, color=colors, width=0.8)
        # One layer may exceed the others many times; the cosines, and so S, may also be negative.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=min(0, *values))
        runner_up = f", then layer {layers[rest[0]]}" if rest else ""
        axes.set_title(f"{row['entity']}: layer {layers[best]}{runner_up}", loc="left")
        axes.set_ylabel("significance S (log)")
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
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3)
    axes.set_xlabel("cell (layer:neuron)")
    figure.suptitle(f"Cells by stability in {document['model']}, {document['baseline']} baseline")


def _sweep(figure: Any, document: Document) -> None:
    axes = figure.subplots()
    x = document["multipliers"]
    zero = x.index(0.0) if 0.0 in x else None
    for curve, color in zip(document["curves"], (TARGET, CONTROL), strict=True):
        mean, error = curve["mean"], curve["standard_error"]
        label = f"{document['entity']} ({curve['n']} facts)" if curve["role"] == "target" else f"others ({curve['n']})"
        axes.plot(x, mean, color=color, marker="o", markersize=3, label=label)
        low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        if zero is not None:
            below = curve["role"] == "target"  # The curves nearly meet here.
            offset = (-5, -13) if below else (5, 5)
            axes.annotate(
                f"{mean[zero]:.2f}",
                (0, mean[zero]),
                xytext=offset,
                textcoords="offset points",
                color=color,
                ha="right" if below else "left",
            )
    for level, style in ((1, "--"), (0, ":")):
        axes.axhline(level, color=NEUTRAL, linewidth=0.8, linestyle=style)
    if zero is not None:
        axes.axvline(0, color=FAINT, linewidth=6, alpha=0.5, zorder=0)
        axes.text(0, 1.01, "zero ablation", transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
    axes.invert_xaxis()
    axes.set_xlabel("multiplier of the cells" + (" at the entity's token" if document["tokens"] == "entity" else ""))
    axes.set_ylabel("knowledge score ± s.e.")
    axes.legend(loc="lower left", frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    cells = ", ".join(map(_cell, document["cells"][:4])) + (" …" if len(document["cells"]) > 4 else "")
    n = len(document["cells"])
    axes.set_title(f"{document['entity']}: {n} cell{'s' * (n > 1)} ({cells})", loc="left", pad=14)


def _injected(put: Document) -> str:
    """What was put at the placeholder, in a few words."""
    if put["form"] == "direction":
        layers = ", ".join(map(str, put["layers"]))
        return f"direction of layer{'s' * (len(put['layers']) > 1)} {layers} × {put['strength']:g}"
    n = len(put["cells"])
    return f"{n} cell{'s' * (n > 1)}" + ("" if put["factor"] is None else f" × {put['factor']:g}")


def _inject(figure: Any, document: Document) -> None:
    rows, put = document["conditions"], document["put"]
    names = [row["condition"] for row in rows][::-1]
    colors = [*[CONTROL] * (len(rows) - 1), TARGET]
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key in ((left, "score"), (right, "first")):
        estimates = [row[key] for row in rows][::-1]
        values = [row["mean"] for row in estimates]
        errors = [
            [max(0.0, row["mean"] - row["low"]) for row in estimates],
            [max(0.0, row["high"] - row["mean"]) for row in estimates],
        ]
        axes.barh(names, values, color=colors, height=0.6)
        axes.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor=NEUTRAL, capsize=3, linewidth=1)
        axes.grid(axis="y", visible=False)
    left.axvline(0, color=NEUTRAL, linewidth=0.8)
    left.axvline(1, color=NEUTRAL, linewidth=0.8, linestyle="--")
    left.set_xlabel("knowledge score (95 % interval)\n1: as with the name, 0: unknown name")
    right.set_xlim(0, 1)
    # Numbers, so that a panel of zeros does not look empty.
    for line, row in enumerate(rows[::-1]):
        right.annotate(
            share(row["first"]["mean"]),
            (row["first"]["high"], line),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    right.set_xlabel("right answers at first rank")
    figure.suptitle(f"{document['entity']} injected at “{put['placeholder']}”: {_injected(put)}, {rows[0]['n']} facts")


def _sufficiency(figure: Any, document: Document) -> None:
    figure.set_size_inches(6.4, 6.6)
    top, bottom, last = figure.subplots(3, 1, height_ratios=(3, 1.3, 2))
    # The curve starts where all is frozen.
    first = {"n_unfrozen": 0, **document["references"]["frozen"]}
    steps = [first, *document["steps"]]
    top.set_xticks(range(len(steps)))
    top.plot([row["n_unfrozen"] for row in steps], [row["mean_logprob"] for row in steps], color=TARGET, marker="o")
    for level, label, style in (
        ("injected", "nothing frozen", "--"),
        ("frozen", "all frozen", ":"),
        ("clean", "nothing frozen, no injection", "-."),
        ("last_token", "all frozen but the last token", (0, (1, 3))),
    ):
        value = document["references"][level]["mean_logprob"]
        top.axhline(value, color=NEUTRAL, linewidth=0.8, linestyle=style, label=label)
    # Above the axes: the lines may lie anywhere, also on top of each other.
    top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)
    for row in steps:
        top.annotate(
            f"{row['n_rank_0']}/{document['n_facts']}",
            (row["n_unfrozen"], row["mean_logprob"]),
            xytext=(3, -9),
            textcoords="offset points",
            fontsize=7,
        )
    top.set_xlabel("unfrozen components of the last token (label: right answers at rank 0)")
    top.set_ylabel("log p of the answers (nats)")
    chosen = {(row["component"], row["layer"]) for row in document["unfrozen"]}
    for line, component in enumerate(("mlp", "attention")):
        colors = [TARGET if (component, n) in chosen else "#e6e6e6" for n in range(document["n_layers"])]
        bottom.bar(range(document["n_layers"]), 0.8, bottom=line, color=colors, width=0.85, align="center")
    bottom.set_yticks([0.4, 1.4], ["MLP", "attention"])
    bottom.set_xlabel("layer (coloured: recomputed at the last token; all else is frozen)")
    bottom.grid(visible=False)
    rows = document["enrichment"]
    last.plot([row["layer"] for row in rows], [row["mean_logprob"] for row in rows], color=TARGET, marker="o", ms=3)
    last.axhline(document["references"]["injected"]["mean_logprob"], color=NEUTRAL, linewidth=0.8, linestyle="--")
    last.axhline(document["references"]["last_token"]["mean_logprob"], color=NEUTRAL, linewidth=0.8, ls=(0, (1, 3)))
    last.set_xlim(bottom.get_xlim())
    last.set_xlabel("layer up to which the entity's tokens are recomputed, too")
    last.set_ylabel("log p (nats)")
    figure.suptitle(f"{document['entity']} ({_injected(document['put'])}): what must be recomputed")


def _robustness(figure: Any, document: Document) -> None:
    rows, cells, directions = document["names"], document["cells"], document["directions"]
    figure.set_size_inches(4.4 + 0.72 * (len(cells) + 2 * len(directions)), 1.4 + 0.26 * len(rows))
    limit = max(1.0, *(abs(value) for row in rows for value in row["mean_z"]))
    shown = [([_cell(row) for row in cells], "mean_z", limit, "mean z-score of cells")]
    if directions:
        heads = [f"direction\n{row['layer']}, token {row['token']}" for row in directions]
        shown.insert(0, (heads, "answers", 1.0, "answer uᵀa of directions"))
    widths = [len(columns) for columns, *_ in shown]
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (columns, key, end, label) in zip(panels, shown, strict=True):
        image = axes.imshow([row[key] for row in rows], cmap="RdBu_r", vmin=-end, vmax=end, aspect="auto")
        for y, row in enumerate(rows):
            for x, value in enumerate(row[key]):
                color = "white" if abs(value) > 0.6 * end else NEUTRAL
                text = f"{value:.2f}" if key == "answers" else f"{value:.1f}\n#{row['ranks'][x]}"
                axes.text(x, y, text, ha="center", va="center", fontsize=6, color=color)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        split = sum(row["kind"] != "unrelated" for row in rows)
        axes.axhline(split - 0.5, color=NEUTRAL, linewidth=1.2)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    panels[0].set_yticks(
        range(len(rows)), [f"{row['name']}  ({row['language'] or row['kind']})" for row in rows], fontsize=7
    )
    figure.suptitle(f"{document['entity']}: what answers to its names")


def _atlas(figure: Any, document: Document) -> None:
    figure.set_size_inches(6.4, 5.6 if document["popularity"] else 3.2)
    panels = figure.subplots(2 if document["popularity"] else 1, 1, squeeze=False)[:, 0]
    shown = [(document["histogram"], CONTROL, "top cell")]
    if document["directions"]:
        shown.append((document["directions"], TARGET, "direction"))
    width = 0.85 / len(shown)
    for place, (found, color, label) in enumerate(shown):
        layers = [layer + (place - (len(shown) - 1) / 2) * width for layer in found["layers"]]
        panels[0].bar(layers, found["counts"], color=color, width=width, label=label)
    panels[0].set_xlabel("layer of the " + " and of the ".join(label for *_, label in shown))
    if len(shown) > 1:
        panels[0].legend(frameon=False)
    panels[0].set_ylabel("entities")
    panels[0].grid(axis="x", visible=False)
    panels[0].set_title(f"{document['n_entities']} entities in {document['model']}", loc="left")
    if document["popularity"]:
        found = document["popularity"]
        panels[1].scatter(found["popularity"], found["score"], s=9, color=TARGET, alpha=0.7, linewidth=0)
        panels[1].set_xscale("log")
        panels[1].set_yscale("log")
        panels[1].set_xlabel("popularity (page views a month)")
        panels[1].set_ylabel("stability of the top cell")
        rho = "undefined" if found["rank_correlation"] is None else f"{found['rank_correlation']:.2f}"
        panels[1].set_title(f"rank correlation {rho}", loc="left")


FIGURES: Mapping[str, Callable[[Any, Document], None]] = {
    "atlas": _atlas,
    "inject": _inject,
    "layers": _layers,
    "localize": _localize,
    "robustness": _robustness,
    "sufficiency": _sufficiency,
    "sweep": _sweep,
}
