"""Tables of facts as rows, and their rows as facts: PopQA (Mallen et al., 2023, "When Not to Trust Language Models").

Reads the upstream `popQA.tsv` and tables of one's own; knows nothing of models, so which facts a model knows is decided
elsewhere.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, zip_longest
from pathlib import Path

import numpy as np

from amnesia.domain import MAX_NAME, Fact, Split, name_key, tidy
from amnesia.errors import InputError
from amnesia.facts.relations import relation_templates
from amnesia.files.disk import read_small

# The columns that are read, with PopQA's names for them; only the first three must be there.
COLUMNS: Mapping[str, str] = {
    "subject": "subj", "relation": "prop", "object": "obj", "aliases": "possible_answers", "popularity": "s_pop",
    "question": "question", "type": "type",
}  # fmt: skip
N_NEEDED = 3
MAX_DIGITS = 18
_MAX_TABLE = 2**28


@dataclass(frozen=True)
class PopqaRow:
    """One row: (subject, relation, answer), with the subject's popularity in monthly page views.

    `aliases` are the other answers that the table accepts, `question` is its own wording, if any, and `type` says what
    the subject is (a person, a city), where the table does.
    """

    subject: str
    relation: str
    answer: str
    aliases: tuple[str, ...]
    popularity: int
    question: str = ""
    type: str | None = None


@dataclass(frozen=True)
class PopqaFacts:
    """Facts made from rows; `n_unknown_relation` counts the rows that no template could word, by relation."""

    facts: tuple[Fact, ...]
    n_unknown_relation: tuple[tuple[str, int], ...] = ()


def read_popqa(path: Path) -> tuple[PopqaRow, ...]:
    """All rows of a tab-separated table of facts, in its order: PopQA, or one with the columns of `COLUMNS`.

    A table of one's own needs subject, relation and object. Aliases are a JSON list, or separated by `|`; popularity
    is a whole number. Other columns are allowed. Quotes stay as they are, but for fields that a program has quoted, as
    `records` says. Raises InputError for a file that cannot be read, missing columns, and malformed rows, naming the
    line.
    """
    try:
        text = read_small(path, _MAX_TABLE).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a PopQA .tsv file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    rows = records(text)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    columns = {
        name: own
        for name, upstream in COLUMNS.items()
        if (own := next((column for column in (name, upstream) if column in header), None)) is not None
    }
    missing = [name for name in list(COLUMNS)[:N_NEEDED] if name not in columns]
    if missing:
        raise InputError(
            f"{path} lacks the column(s) {', '.join(missing)}: expected a tab-separated file with the columns "
            f"{', '.join(COLUMNS)}, or the upstream popQA.tsv"
        )
    if twice := [own for own in columns.values() if header.count(own) > 1]:
        raise InputError(f"{path} has the column {twice[0]} {header.count(twice[0])} times: keep one")
    # Blank lines carry no row, and the upstream file ends with one.
    return tuple(_row(columns, header, fields, f"{path}, line {line}") for line, fields in rows if fields != [""])


_FIELD = re.compile(r'(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^\t\r\n]*))(?P<end>\t|\r\n?|\n|\Z)')
_LINE_END = re.compile(r"\r\n?|\n")


def records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a tab-separated table as (number of the line, fields).

    Programs quote a field where it holds a quote, which is then doubled, a tab or a line break, or they quote every
    field, the header's too. All other quotes are the author's own: `"Heroes"`, `"Weird Al" Yankovic`.
    """
    line, row = 1, []
    every: bool | None = None
    for match in _FIELD.finditer(text):
        row.append(match)
        if match["end"] == "\t":
            continue
        if every is None:
            every = all(field["quoted"] is not None for field in row)
        yield line, [_content(field, every) for field in row]
        line += sum(len(_LINE_END.findall(field[0])) for field in row)
        row = []


def _content(field: re.Match[str], every: bool) -> str:
    inside = field["quoted"]
    if inside is None or not (every or re.search(r'""|[\t\r\n]', inside)):
        return field[0].removesuffix(field["end"])
    return inside.replace('""', '"')


def facts_for(rows: Iterable[PopqaRow], entity: str) -> PopqaFacts:
    """Every wording of every row about `entity` (as `is_about`), those for the search and those held out from it.

    Raises InputError when no row is about `entity`.
    """
    own = [row for row in rows if is_about(row, entity)]
    if not own:
        raise InputError(
            f"the table has no row about {entity!r}, but about {len({row.subject for row in rows})} others: give a "
            "subject as it spells it, or add rows about this one"
        )
    facts: dict[tuple[str, str], Fact] = {}  # A subject may occur twice with the same answer; keep each wording once.
    splits: tuple[Split, ...] = ("search", "held_out")
    for row in own:
        templates = relation_templates().get(row.relation)
        for split, prompts in zip(splits, (templates.search, templates.held_out) if templates else (), strict=False):
            for prompt in prompts:
                facts.setdefault((prompt, row.answer), Fact(row.subject, prompt, row.answer, split, row.aliases))
    return PopqaFacts(tuple(facts.values()), _unknown_relations(own))


def worded(rows: Iterable[PopqaRow]) -> tuple[Fact, ...]:
    """One fact for each row, whose relation must have wordings: these take turns, and so do the splits."""
    wordings = {name: cycle(each.wordings) for name, each in relation_templates().items()}
    splits: Iterable[Split] = cycle(("search", "held_out"))
    return tuple(
        Fact(row.subject, next(wordings[row.relation]), row.answer, split, row.aliases)
        for row, split in zip(rows, splits, strict=False)
    )


def one_per_subject(rows: Iterable[PopqaRow], names: Iterable[str], seed: int = 0) -> tuple[PopqaRow, ...]:
    """Rows that have wordings, one for each subject that is none of `names`; equal arguments give equal draws.

    Every other one is of the quarter of the most popular, as long as these last: a model knows little of the others.
    """
    taken = {name_key(name) for name in names}
    pool = [row for row in rows if row.relation in relation_templates()]
    random.Random(seed).shuffle(pool)
    views = [row.popularity for row in pool]
    edge = max(float(np.quantile(views, 0.75)), min(views) + 1) if pool else 0.0
    popular, others = ([row for row in pool if (row.popularity >= edge) is wanted] for wanted in (True, False))
    chosen = []
    for row in chain.from_iterable(zip_longest(popular, others)):
        if row is not None and name_key(row.subject) not in taken:
            taken.add(name_key(row.subject))
            chosen.append(row)
    return tuple(chosen)


def strata(rows: Sequence[PopqaRow]) -> Callable[[int], str]:
    """The quarter of the rows, the least popular first, to which a popularity belongs, as a label with its bounds."""
    edges = [int(edge) for edge in np.quantile([row.popularity for row in rows], (0.25, 0.5, 0.75))]
    labels = (
        f"quarter 1 (up to {edges[0]:,})",
        f"quarter 2 (up to {edges[1]:,})",
        f"quarter 3 (up to {edges[2]:,})",
        f"quarter 4 (above {edges[2]:,})",
    )
    return lambda popularity: labels[sum(popularity > edge for edge in edges)]


def _row(columns: Mapping[str, str], header: Sequence[str], fields: Sequence[str], place: str) -> PopqaRow:
    """`columns` maps the names in `COLUMNS` to those in the file's header."""
    if len(fields) != len(header):
        raise InputError(f"{place} has {len(fields)} fields: expected {len(header)}, as in the header")
    by_header = dict(zip(header, fields, strict=True))
    values = {name: tidy(by_header[own]) for name, own in columns.items()}
    for name in list(COLUMNS)[:N_NEEDED]:
        if not values[name]:
            raise InputError(f"{place}: `{columns[name]}` is empty: every row needs one")
    if (n := len(values["subject"])) > MAX_NAME:
        raise InputError(f"{place}: `{columns['subject']}` has {n:,} characters: expected at most {MAX_NAME}")
    popularity = values.get("popularity") or "0"
    if not popularity.isdecimal() or len(popularity) > MAX_DIGITS:
        raise InputError(f"{place}: `{columns['popularity']}` is {popularity[:80]!r}: expected a whole number")
    answers = _aliases(values["aliases"], columns["aliases"], place) if "aliases" in columns else []
    return PopqaRow(
        subject=values["subject"],
        relation=values["relation"],
        answer=values["object"],
        aliases=tuple(dict.fromkeys(answer for answer in answers if answer != values["object"])),
        popularity=int(popularity),
        question=values.get("question", ""),
        type=values.get("type") or None,
    )


def _aliases(text: str, column: str, place: str) -> list[str]:
    try:
        answers = json.loads(text)
        if column != COLUMNS["aliases"] and not isinstance(answers, list):
            raise ValueError("one word, which may be a number")
    except (ValueError, RecursionError) as error:
        if column != COLUMNS["aliases"]:
            return [alias for part in text.split("|") if (alias := part.strip())]
        raise InputError(f"{place}: `{column}` is not JSON ({error}): expected a list of strings") from error
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{place}: `{column}` is {text}: expected a list of strings")
    return [answer for answer in answers if answer.strip()]


def is_about(row: PopqaRow, entity: str) -> bool:
    """Whether the row's subject is the entity, without regard to case, normal form, spaces and kind of apostrophe."""
    return name_key(row.subject) == name_key(entity)


def _unknown_relations(rows: Iterable[PopqaRow]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(row.relation for row in rows if row.relation not in relation_templates()).items()))
