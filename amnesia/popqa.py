"""PopQA (Mallen et al., 2023, "When Not to Trust Language Models"): its table as rows, and its rows as facts.

Reads the upstream `popQA.tsv`; knows nothing of models, so which facts a model knows is decided elsewhere.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from amnesia.domain import Fact, Split
from amnesia.errors import InputError

COLUMNS: tuple[str, ...] = ("id", "subj", "prop", "obj", "s_pop", "o_pop", "question", "possible_answers")


@dataclass(frozen=True)
class PopqaRow:
    """One row: (subject, relation, answer), with the subject's popularity in monthly page views.

    `aliases` are the other answers that PopQA accepts, `question` is its own wording.
    """

    subject: str
    relation: str
    answer: str
    aliases: tuple[str, ...]
    popularity: int
    question: str


@dataclass(frozen=True)
class RelationTemplates:
    """Wordings of one relation, each with `{entity}` and ending where the answer begins."""

    cloze: tuple[str, ...]
    question: tuple[str, ...]


@dataclass(frozen=True)
class PopqaFacts:
    """Facts made from rows; `n_unknown_relation` counts the rows that no template could word, by relation."""

    facts: tuple[Fact, ...]
    n_unknown_relation: tuple[tuple[str, int], ...] = ()


def _templates(asked: str, *cloze: str) -> RelationTemplates:
    # The second form leads into the answer, because chat models tend to end the text after a bare `Answer:`.
    lead = cloze[0].removeprefix("Fact: ")
    return RelationTemplates(
        cloze,
        (f"Question: {asked}\nAnswer:", f"Question: {asked}\nAnswer: {lead[0].upper()}{lead[1:]}"),
    )


RELATION_TEMPLATES: Mapping[str, RelationTemplates] = {
    "author": _templates(
        "Who is the author of {entity}?",
        "Fact: the author of {entity} is",
        "{entity} was written by",
        "The writer of {entity} is called",
    ),
    "capital": _templates(
        "What is the capital of {entity}?",
        "Fact: the capital of {entity} is",
        "The capital city of {entity} is",
        "The government of {entity} has its seat in",
    ),
    "capital of": _templates(
        "What is {entity} the capital of?",
        "Fact: {entity} is the capital of",
        "The city of {entity} is the capital of",
        "{entity} is the seat of government of",
    ),
    "color": _templates(
        "What color is {entity}?",
        "Fact: the color of {entity} is",
        "The usual color of {entity} is",
        "If you paint {entity}, use the color",
    ),
    "composer": _templates(
        "Who was the composer of {entity}?",
        "Fact: the composer of {entity} is",
        "The music of {entity} was composed by",
        "{entity} was set to music by",
    ),
    "country": _templates(
        "In what country is {entity}?",
        "Fact: the country of {entity} is",
        "{entity} is located in the country of",
        "The country in which you find {entity} is",
    ),
    "director": _templates(
        "Who was the director of {entity}?",
        "Fact: the director of {entity} is",
        "{entity} was directed by",
        "The film {entity} was made by the director",
    ),
    "father": _templates(
        "Who is the father of {entity}?",
        "Fact: the father of {entity} is",
        "{entity} is the child of a man named",
        "The name of the father of {entity} is",
    ),
    "genre": _templates(
        "What genre is {entity}?",
        "Fact: the genre of {entity} is",
        "{entity} belongs to the genre of",
        "In the shop, {entity} stands on the shelf for",
    ),
    "mother": _templates(
        "Who is the mother of {entity}?",
        "Fact: the mother of {entity} is",
        "{entity} is the child of a woman named",
        "The name of the mother of {entity} is",
    ),
    "occupation": _templates(
        "What is the occupation of {entity}?",
        "Fact: the occupation of {entity} is",
        "By profession, {entity} is a",
        "{entity} made a living as a",
    ),
    "place of birth": _templates(
        "In what city was {entity} born?",
        "Fact: the city where {entity} was born is",
        "{entity} was born in",
        "The birthplace of {entity} is",
    ),
    "producer": _templates(
        "Who was the producer of {entity}?",
        "Fact: the producer of {entity} is",
        "{entity} was produced by",
        "The person who produced {entity} is",
    ),
    "religion": _templates(
        "What is the religion of {entity}?",
        "Fact: the religion of {entity} is",
        "{entity} follows the religion of",
        "The faith of {entity} is",
    ),
    "screenwriter": _templates(
        "Who was the screenwriter for {entity}?",
        "Fact: the screenwriter of {entity} is",
        "The screenplay of {entity} was written by",
        "The script of {entity} is the work of",
    ),
    "sport": _templates(
        "What sport does {entity} play?",
        "Fact: the sport of {entity} is",
        "{entity} plays the sport of",
        "Fans know {entity} from the sport of",
    ),
}


# What the subjects of a relation are. Those of "country", "genre" and "color" may be anything.
SUBJECT_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("father", "mother", "occupation", "place of birth", "religion", "sport"), "person"),
    **dict.fromkeys(("author", "composer", "director", "producer", "screenwriter"), "work"),
    **dict.fromkeys(("capital", "capital of"), "place"),
}

_RELATION_OF = {
    prompt: relation for relation, each in RELATION_TEMPLATES.items() for prompt in (*each.cloze, *each.question)
}


def relation_of(prompt: str) -> str | None:
    """The relation of which `prompt` (with `{entity}`) is a wording, or None."""
    return _RELATION_OF.get(prompt)


def read_popqa(path: Path) -> tuple[PopqaRow, ...]:
    """All rows of a tab-separated PopQA file, in its order; columns beyond `COLUMNS` are allowed.

    Raises InputError for a file that cannot be read, missing columns, and malformed rows, naming the line.
    """
    try:
        # The encoding drops a byte order mark; newline="" lets the csv module see line ends inside quotes.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise InputError(
                    f"{path} lacks the column(s) {', '.join(missing)}: expected a tab-separated file with the columns "
                    f"{', '.join(COLUMNS)}; give the upstream popQA.tsv"
                )
            # Blank lines carry no row, and the upstream file ends with one.
            return tuple(_row(header, fields, f"{path}, line {reader.line_num}") for fields in reader if fields)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a PopQA .tsv file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a well-formed tab-separated file ({error}): check its quotes") from error


def facts_for(rows: Iterable[PopqaRow], entity: str) -> PopqaFacts:
    """Every wording of every row about `entity` (any case): cloze for the search, questions held out.

    Raises InputError when no row is about `entity`.
    """
    own = [row for row in rows if is_about(row, entity)]
    if not own:
        raise InputError(f"PopQA has no row about {entity!r}: give a subject as the file spells it")
    facts: dict[tuple[str, str], Fact] = {}  # A subject may occur twice with the same answer; keep each wording once.
    splits: tuple[Split, ...] = ("search", "held_out")
    for row in own:
        templates = RELATION_TEMPLATES.get(row.relation, RelationTemplates((), ()))
        for split, prompts in zip(splits, (templates.cloze, templates.question), strict=True):
            for prompt in prompts:
                facts.setdefault((prompt, row.answer), Fact(row.subject, prompt, row.answer, split, row.aliases))
    return PopqaFacts(tuple(facts.values()), _unknown_relations(own))


def worded(rows: Iterable[PopqaRow]) -> tuple[Fact, ...]:
    """One fact for each row, whose relation must have wordings: these take turns, and so do the splits."""
    wordings = {name: cycle((*each.cloze, *each.question)) for name, each in RELATION_TEMPLATES.items()}
    splits: Iterable[Split] = cycle(("search", "held_out"))
    return tuple(
        Fact(row.subject, next(wordings[row.relation]), row.answer, split, row.aliases)
        for row, split in zip(rows, splits, strict=False)
    )


def one_per_subject(rows: Iterable[PopqaRow], names: Iterable[str], seed: int = 0) -> tuple[PopqaRow, ...]:
    """Rows that have wordings, one for each subject that is none of `names`; equal arguments give equal draws."""
    taken = {name.casefold() for name in names}
    pool = [row for row in rows if row.relation in RELATION_TEMPLATES]
    random.Random(seed).shuffle(pool)
    kept = []
    for row in pool:
        if row.subject.casefold() not in taken:
            taken.add(row.subject.casefold())
            kept.append(row)
    return tuple(kept)


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


def _row(header: Sequence[str], fields: Sequence[str], place: str) -> PopqaRow:
    if len(fields) != len(header):
        raise InputError(f"{place} has {len(fields)} fields: expected {len(header)}, as in the header")
    values = dict(zip(header, fields, strict=True))
    for column in ("subj", "prop", "obj", "question"):
        if not values[column].strip():
            raise InputError(f"{place}: `{column}` is empty: every row needs one")
    if not values["s_pop"].isdecimal():
        raise InputError(f"{place}: `s_pop` is {values['s_pop']!r}: expected a whole number")
    try:
        answers = json.loads(values["possible_answers"])
    except ValueError as error:
        raise InputError(f"{place}: `possible_answers` is not JSON ({error}): expected a list of strings") from error
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{place}: `possible_answers` is {values['possible_answers']}: expected a list of strings")
    return PopqaRow(
        subject=values["subj"].strip(),
        relation=values["prop"].strip(),
        answer=values["obj"].strip(),
        aliases=tuple(dict.fromkeys(answer for answer in answers if answer != values["obj"].strip())),
        popularity=int(values["s_pop"]),
        question=values["question"].strip(),
    )


def is_about(row: PopqaRow, entity: str) -> bool:
    """Whether the row's subject is the entity, without regard to case."""
    return row.subject.casefold() == entity.strip().casefold()


def _unknown_relations(rows: Iterable[PopqaRow]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(row.relation for row in rows if row.relation not in RELATION_TEMPLATES).items()))
