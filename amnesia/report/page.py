"""`report.html`: one file that shows a report to people. Pure: from a report to text.

The page needs no network, no script and no other file. What the report quotes (names, prompts, generated text) is
untrusted: the template escapes it, and the page's own policy lets no script run but the one that is written here.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from amnesia import numbers
from amnesia.evaluation.results import Aggregate
from amnesia.files.seals import PAGE_SEAL, report_seal, sealed_page
from amnesia.files.strict_json import json_bytes
from amnesia.plain_text import for_terminal
from amnesia.report import charts, view
from amnesia.report.charts import CONTROL, TARGET, Interval, Point, Series, Track
from amnesia.report.content import Report, read_report
from amnesia.report.front import front
from amnesia.report.glossary import terms
from amnesia.report.summary import summary
from amnesia.report.takeaway import takeaway
from amnesia.stress.results import TRAINED_ON, Relearning, Stress, StressScore, by_training

# Roles of colors; every text color here stands on every surface (paper, card, raised) with a contrast of 4.5 : 1.
PALETTES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "paper": "#faf8f4", "card": "#ffffff", "raised": "#f1ede4", "line": "#d9d2c4", "edge": "#857d6d",
        "ink": "#211e19", "muted": "#5c564b", "link": "#8a3a10",
        "target": "#a63c0a", "control": "#0d626c", "good": "#1f6639", "warning": "#7d5200", "damage": "#a11d30",
    },
    "dark": {
        "paper": "#15171a", "card": "#1d2024", "raised": "#272b30", "line": "#3b4148", "edge": "#868e97",
        "ink": "#ecebe7", "muted": "#b3b6bb", "link": "#ffb08a",
        "target": "#ff9d6e", "control": "#6fcbd5", "good": "#7fd49a", "warning": "#f0c25e", "damage": "#ff96a0",
    },
}  # fmt: skip


def report_html(document: Mapping[str, Any]) -> str:
    """The page for the content of a `report.json`; the same content always gives the same page.

    It carries the sha256 of `report.json` as `json_bytes` writes the document, which proves that file with the page.

    Raises InputError, with the place, for what is no report.
    """
    report = read_report(document)
    entity = numbers.flat(view.entity_of(report), 24)
    shown = Markup(report_seal(json_bytes(document)))
    trainings = {} if report.relearning is None else _relearning_figures(report.relearning, entity)
    return render(
        "report.html",
        report=report,
        report_seal=shown,
        summary=summary(report),
        takeaway=takeaway(report),
        sections=view.sections(report),
        figures={name: Markup(svg) for name, svg in _figures(report).items()},
        relearning_figures={title: Markup(svg) for title, svg in trainings.items()},
        view=view,
        terms=list(terms(report)),
        model_argument=shlex.quote(str(report.model)),
    )


def look(css: str = "report.css") -> str:
    """The style of every page, in both color schemes."""
    return _palette_css() + _own_text(css)


def policy_of(style: str, script: str) -> str:
    """The content security policy of a page that has this style and this script in it, and nothing from elsewhere."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def render(template: str, css: str = "report.css", **content: Any) -> str:
    """A page of this package's look, whose policy lets nothing but its own style and script be used.

    It carries its own sha256, by which a change by hand shows.
    """
    style, script = look(css), _own_text("report.js")
    return sealed_page(
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            policy=policy_of(style, script),
            seal=Markup(PAGE_SEAL),
            **content,
        )
    )


def summary_html(document: Mapping[str, Any]) -> str:
    """The page for the content of a queue's `summary.json`, which links to the reports of its entities."""
    rows = document["entities"]
    return render(
        "summary.html",
        rows=rows,
        model=document["model"],
        together=next((row["together"] for row in rows if row["together"]), None),
        perplexity=document["perplexity_by_language"],
        neighbors=sorted(document["neighbors"], key=lambda row: row["score"]),
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("amnesia.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # What a model writes may hold signs that are no text; they are shown as on the terminal.
        finalize=_shown,
    )
    environment.filters |= {
        name: getattr(numbers, name) for name in ("signed", "short", "positive", "share", "change", "flat", "tried")
    }
    return environment


def _shown(value: Any) -> Any:
    return for_terminal(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _own_text(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _palette_css() -> str:
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in PALETTES[scheme].items()) for scheme in ("light", "dark")
    )
    # Paper is white, whatever the screen is.
    return (
        f":root{{color-scheme:light dark;{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def _figures(report: Report) -> dict[str, str]:
    """The figures of the sections that the report has."""
    entity = numbers.flat(view.entity_of(report), 24)
    present = view.sections(report)
    found: dict[str, str] = {}
    alone = view.is_alone(report)
    if "means" in present and not alone:
        found["means"] = charts.intervals(
            [_interval(row, view.label(row, entity), view.scores_behind(row, report)) for row in view.whole(report)],
            "How much of the facts is left, by kind",
            "means",
        )
    if "neighborhoods" in present and not alone:
        rows = view.families(report, "neighborhood")
        found["neighborhoods"] = charts.intervals(
            [_interval(row, f"{view.group_name(row)} ({row.n})") for row in rows],
            "How much is left of facts about others, by their distance from the target",
            "neighborhoods",
        )
    if "scatter" in present:
        found["scatter"] = charts.scatter(view.scored(report), entity)
    if report.sweep is not None and "sweep" in present:
        found["sweep"] = charts.sweep(report.sweep, entity)
    if report.changed is not None:
        found["cells"] = charts.cells(report.changed.edits)
        if report.extraction is not None and report.extraction.answers is not None:
            found["histograms"] = charts.histograms(report.extraction.answers, entity)
        if report.extraction is not None and report.extraction.screening is not None:
            found["screening"] = charts.screening(report.extraction.screening)
        if report.extraction is not None and len(report.extraction.front) > 1:
            found["front"] = front(report.extraction.front)
    return found | ({} if report.stress is None else _stress_figures(report.stress, entity))


def _interval(row: Aggregate, label: str, values: Sequence[float] = ()) -> Interval:
    score, mark = row.knowledge_score, TARGET if row.role == "target" else CONTROL
    return Interval(label, mark, score.mean, score.low, score.high, tuple(values))


def _stress_figures(stress: Stress, entity: str) -> dict[str, str]:
    found = {}
    styles = {
        "entity": (entity, "diamond", "target"),
        "never_known": ("never-known name", "circle", "control"),
        "control": ("others", "square", "control"),
    }
    for name, groups in (
        ("attacks", [(row.attack, row.rows) for row in stress.attacks]),
        ("quantization", [(row.method, row.rows) for row in stress.quantization]),
    ):
        rows = [(view.attack_name(label), tracks) for label, one in groups if (tracks := _tracks(one, styles))]
        if rows:
            title = "Right answers under each attack" if name == "attacks" else "Right answers when quantized"
            found[name] = charts.attacks(rows, title, name)
    return found


def _relearning_figures(relearning: Relearning, entity: str) -> dict[str, str]:
    """One figure for each training: the entity in each model, and an invented name in the edited one."""
    found = {}
    for n, ((text, way), runs) in enumerate(by_training(relearning).items()):
        series = [
            Series(
                f"{label}, {view.trained_model(model)}",
                (shape, f"{color} {'open' if line else 'full'}"),
                f"{color} {line}".strip(),
                tuple(Point(step.step, step.knowledge_score.mean) for step in runs[model, subject].steps),
            )
            for model, subject, label, shape, color, line in (
                ("edited", "entity", entity, "diamond", "target", ""),
                ("unlearned", "entity", entity, "square", "target", "dashed"),
                ("original", "entity", entity, "diamond", "target", "dashed"),
                ("edited", "never_known", "never-known name", "circle", "control", ""),
            )
            if (model, subject) in runs
        ]
        title = f"Knowledge score while fine-tuned ({way}) on {TRAINED_ON.get(text, text)}"
        found[title] = charts.lines(series, f"relearning-{n}", title, "training steps →")
    return found


def _tracks(rows: Sequence[StressScore], styles: Mapping[str, tuple[str, str, str]]) -> list[Track]:
    """What of an attack can be drawn: the shares of right answers of each subject that has any."""
    shares = {(row.subject, row.model): row.exact_match for row in rows}
    return [
        Track(label, shape, color, shares.get((subject, "original")), shares.get((subject, "edited")))
        for subject, (label, shape, color) in styles.items()
        if any(shares.get((subject, model)) is not None for model in ("original", "edited"))
    ]
