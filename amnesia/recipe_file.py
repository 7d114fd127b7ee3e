"""Reading recipes: TOML files, checked key by key."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amnesia.domain import (
    FORMATS,
    MAX_MULTIPLIER,
    NEIGHBORHOODS,
    SPLITS,
    Cell,
    Fact,
    ModelRef,
    entity_name,
    name_key,
    tidy,
)
from amnesia.edits import ColumnEdit
from amnesia.errors import InputError, RecipeError, os_errors_as
from amnesia.facts.answers import normalized
from amnesia.files.disk import read_small
from amnesia.files.toml_words import in_toml
from amnesia.recipe import (
    BASELINES,
    METHODS,
    PREFERENCES,
    Accept,
    EditOptions,
    LocalizeOptions,
    Recipe,
    Scoring,
    Target,
    Translation,
)

_MAX_RECIPE = 2**22

# Every table and its keys, in the order in which the documentation lists them.
KEYS: Mapping[str, tuple[str, ...]] = {
    "": tuple("description model entity entities localize cells edit facts controls scoring accept".split()),
    "model": ("id", "revision"),
    "entity": ("name", "aliases", "translations", "neighbors"),
    "entities": ("name", "aliases", "translations", "neighbors", "accept", "cells", "facts"),
    "localize": ("baseline", "n_prompts", "layers"),
    "cells": ("layer", "expert", "neuron", "multiplier"),
    "edit": ("method", "max_cells", "prefer", "forms", "neighbors", "multiplier", "format"),
    "facts": ("prompt", "answer", "answer_aliases", "split"),
    "controls": ("facts",),
    "controls.facts": ("entity", "prompt", "answer", "answer_aliases", "split", "neighborhood"),
    "scoring": ("min_nats", "max_rank"),
    "accept": ("max_target", "max_held_out_target", "min_control", "max_perplexity"),
}


def parse_layers(text: str) -> tuple[int, int]:
    """Read `A-B` (both included) or a single layer; raises RecipeError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if low > high:
        raise RecipeError(f"layers {text!r} is malformed: expected A-B with 0 ≤ A ≤ B, for example 0-9")
    return low, high


def load_recipe(path: Path | str, entity: str | None = None) -> Recipe:
    """Read a recipe file; `entity` picks one row of a recipe that lists several entities.

    Raises RecipeError for a missing file, malformed TOML, unknown keys, missing sections and contradictions.
    """
    with os_errors_as(RecipeError, f"recipe {path} cannot be read", "give a .toml file"):
        content = read_small(Path(path), _MAX_RECIPE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text: save it as UTF-8") from error
    return parse_recipe(text, entity, name=str(path))


def parse_recipe(text: str, entity: str | None = None, name: str = "recipe") -> Recipe:
    """Like `load_recipe`, from the text of a recipe; `name` appears in error messages."""
    import tomllib  # The editor reads no recipe, and should not wait for this.

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # A ValueError also for a whole number of thousands of digits.
        raise RecipeError(f"{name} is not valid TOML: {error}") from error
    try:
        return _build(document, entity, text)
    except InputError as error:
        raise RecipeError(f"{name}: {error}") from None


def portable_text(text: str) -> str:
    """The text of a recipe with its model named as in files that are passed on, which have no path of this machine.

    A text in which that is more than another name loses its comments; one that is no recipe stays as it is.
    """
    import tomllib

    import tomli_w

    try:
        document = tomllib.loads(text)
        name = document["model"]["id"]
        short = ModelRef(name).portable.name
    except (ValueError, RecursionError, KeyError, TypeError):
        return text
    if short == name:
        return text
    told = document.get("description")
    own = {"description": told.replace(name, short)} if isinstance(told, str) and "/" in name else {}
    expected = {**document, **own, "model": {**document["model"], "id": short}}
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(changed := text.replace(name, short)) == expected:
            return changed
    return tomli_w.dumps(expected)


def _build(document: Mapping[str, Any], wanted: str | None, text: str) -> Recipe:
    _check_keys("", document)
    model = _table(document, "model", required=True)
    if "id" not in model:
        raise RecipeError('[model] lacks `id`: give a Hub id, a path, or "smollm2-135m"')
    revision = _string(model["revision"], "model.revision") if "revision" in model else None
    entity, section, others = _entity(document, wanted)
    name = entity["name"]
    localize, edit, scoring = (_table(document, key) for key in ("localize", "edit", "scoring"))
    accept = {**_table(document, "accept"), **_table(entity, "accept")}  # An entity of several may have its own.
    facts = tuple(_fact(row, "facts", name) for row in _rows(entity, "facts", "facts"))
    controls = others + tuple(
        _fact(row, "controls.facts") for row in _rows(_table(document, "controls"), "facts", "controls.facts")
    )
    if not facts:
        raise RecipeError("[[facts]] is missing: add at least one fact that the model knows about the entity")
    if not any(fact.split == "search" for fact in facts):
        raise RecipeError('every fact has split = "held_out": leave at least one for the search')
    if not controls:
        raise RecipeError("[controls] is missing: add facts about other entities that must survive")
    _check_splits(facts, controls, name)
    return Recipe(
        model=ModelRef(_string(model["id"], "model.id"), revision),
        target=Target(
            name,
            _strings(entity.get("aliases", []), f"{section}.aliases"),
            _translations(entity.get("translations", {}), f"{section}.translations"),
            _strings(entity.get("neighbors", []), f"{section}.neighbors"),
        ),
        facts=facts,
        controls=controls,
        localization=_localization(localize),
        edit=_edit(edit, tuple(_cell(row) for row in _rows(entity, "cells", "cells"))),
        scoring=_scoring(scoring),
        accept=Accept(**{key: _number(value, f"accept.{key}") for key, value in accept.items()}),
        text=text,
    )


def _localization(table: Mapping[str, Any]) -> LocalizeOptions:
    return LocalizeOptions(
        baseline=_choice(table.get("baseline", LocalizeOptions.baseline), "localize.baseline", BASELINES),
        # The default is all templates that there are.
        n_prompts=_integer(
            table.get("n_prompts", LocalizeOptions.n_prompts), "localize.n_prompts", 2, LocalizeOptions.n_prompts
        ),
        layers=parse_layers(_string(table["layers"], "localize.layers")) if "layers" in table else None,
    )


def _edit(table: Mapping[str, Any], cells: tuple[ColumnEdit, ...]) -> EditOptions:
    multiplier = table.get("multiplier", "auto")
    if multiplier != "auto":
        multiplier = _number(
            multiplier, "edit.multiplier", low=-MAX_MULTIPLIER, high=1.0, hint='a number below 1, or "auto"'
        )
        if multiplier == 1.0:
            raise RecipeError("edit.multiplier = 1 changes nothing: use -1")
    method = _choice(table.get("method", EditOptions.method), "edit.method", METHODS)
    if method == "auto" and multiplier != "auto":
        raise RecipeError(
            f'edit.multiplier = {multiplier:g}: method "auto" finds the multiplier itself; leave it out, or use '
            'method "single"'
        )
    formats = table.get("format", list(EditOptions.formats))
    formats = [formats] if isinstance(formats, str) else formats
    if not isinstance(formats, list) or not formats:
        raise RecipeError(f"edit.format = {in_toml(formats)}: expected one or more of {', '.join(FORMATS)}")
    return EditOptions(
        method=method,
        max_cells=_integer(table["max_cells"], "edit.max_cells", low=1) if "max_cells" in table else None,
        prefer=_choice(table.get("prefer", EditOptions.prefer), "edit.prefer", PREFERENCES),
        forms=_boolean(table.get("forms", EditOptions.forms), "edit.forms"),
        neighbors=_boolean(table.get("neighbors", EditOptions.neighbors), "edit.neighbors"),
        multiplier=None if multiplier == "auto" else multiplier,
        formats=tuple(dict.fromkeys(_choice(item, "edit.format", FORMATS) for item in formats)),
        cells=cells,
    )


def _scoring(table: Mapping[str, Any]) -> Scoring:
    return Scoring(
        min_nats=_number(table.get("min_nats", Scoring.min_nats), "scoring.min_nats", low=0.0),
        max_rank=_integer(table.get("max_rank", Scoring.max_rank), "scoring.max_rank", low=0),
    )


def _entity(document: Mapping[str, Any], wanted: str | None) -> tuple[Mapping[str, Any], str, tuple[Fact, ...]]:
    """What is said of the entity, its section, and the facts of the recipe's other entities as controls."""
    rows = _rows(document, "entities", "entities")
    if rows and "entity" in document:
        raise RecipeError("[entity] and [[entities]] exclude each other: keep one")
    if not rows:
        entity = _table(document, "entity", required=True)
        if "name" not in entity:
            raise RecipeError("[entity] lacks `name`: give the entity to forget")
        name = tidy(_string(entity["name"], "entity.name"))
        if wanted is not None and name_key(wanted) != name_key(name):
            raise RecipeError(f"entity {wanted!r} is not in this recipe: it is about {name!r}")
        lists = {key: document[key] for key in ("cells", "facts") if key in document}
        return {**entity, **lists, "name": name}, "entity", ()
    for key in ("cells", "facts"):
        if key in document:
            raise RecipeError(
                f"[[{key}]] beside [[entities]] are of none of them: write [[entities.{key}]] below the entity "
                "they are of"
            )
    names = [tidy(_string(row.get("name"), "entities.name")) for row in rows]
    if len({*map(name_key, names)}) != len(names):
        raise RecipeError("[[entities]] lists a name twice: list each entity once")
    chosen = next((index for index, name in enumerate(names) if name_key(name) == name_key(wanted or "")), None)
    if chosen is None:
        near = difflib.get_close_matches(wanted or "", names, 1) or names[:1]
        raise RecipeError(
            f"this recipe lists {len(names)} entities: choose one with --entity (`robustness`: ENTITY; in Python: "
            f"entity), for example "
            f"{near[0]!r}"
        )
    controls = tuple(
        _fact({**row, "split": SPLITS[place % 2]}, "facts", names[index])
        for place, index in enumerate(index for index in range(len(names)) if index != chosen)
        for row in _rows(rows[index], "facts", "facts")
    )
    return {**rows[chosen], "name": names[chosen]}, "entities", controls


def _check_splits(facts: Iterable[Fact], controls: Iterable[Fact], name: str) -> None:
    """Search and held-out parts must not share a target prompt or a control entity."""
    seen: dict[object, str] = {}
    for fact in facts:
        if seen.setdefault((fact.prompt, fact.answer), fact.split) != fact.split:
            raise RecipeError(f"fact {fact.prompt!r} is in both splits: keep it in one")
    for fact in controls:
        if name_key(fact.entity) == name_key(name):
            raise RecipeError(f"control {fact.prompt!r} is about {name!r} itself: controls are facts about others")
        if seen.setdefault(name_key(fact.entity), fact.split) != fact.split:
            raise RecipeError(f"control entity {fact.entity!r} is in both splits: keep all its facts in one")


def _check_keys(section: str, table: Mapping[str, Any]) -> None:
    for key in table:
        if key not in KEYS[section]:
            near = difflib.get_close_matches(key, KEYS[section], 1, cutoff=0.0)
            place = f"[{section}]" if section else "the top level"
            raise RecipeError(f"unknown key `{key}` in {place}: did you mean `{near[0]}`?")


def _table(document: Mapping[str, Any], key: str, required: bool = False) -> Mapping[str, Any]:
    if key not in document:
        if required:
            raise RecipeError(f"section [{key}] is missing: add it with {', '.join(f'`{k}`' for k in KEYS[key])}")
        return {}
    table = document[key]
    if not isinstance(table, dict):
        raise RecipeError(f"`{key}` is {in_toml(table)}: expected a section [{key}]")
    _check_keys(key, table)
    return table


def _rows(table: Mapping[str, Any], key: str, section: str) -> list[dict[str, Any]]:
    rows = table.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecipeError(f"`{section}` is not a list of tables: write [[{section}]]")
    for row in rows:
        _check_keys(section, row)
    return rows


def _fact(row: Mapping[str, Any], section: str, entity: str | None = None) -> Fact:
    for key in ("prompt", "answer", *(() if entity else ("entity",))):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise RecipeError(f"[[{section}]] {dict(row)!r} lacks `{key}`: expected a non-empty string")
    if "{entity}" not in row["prompt"]:
        raise RecipeError(f"prompt {row['prompt']!r} does not mention the entity: put {{entity}} in place of its name")
    if not normalized(row["answer"]):
        raise RecipeError(
            f"answer {row['answer']!r} of {row['prompt']!r} is nothing but articles and signs, which is looked for "
            "in no text: give an answer of other words"
        )
    split = _choice(row.get("split", "search"), f"{section}.split", SPLITS)
    near = row.get("neighborhood")
    return Fact(
        entity or entity_name(row["entity"]),
        row["prompt"],
        row["answer"].strip(),
        split,
        _strings(row.get("answer_aliases", []), f"{section}.answer_aliases"),
        None if near is None else _choice(near, f"{section}.neighborhood", NEIGHBORHOODS),
    )


def _cell(row: Mapping[str, Any]) -> ColumnEdit:
    for key in ("layer", "neuron"):
        if key not in row:
            raise RecipeError(f"[[cells]] {dict(row)!r} lacks `{key}`: give layer and neuron")
    expert = _integer(row["expert"], "cells.expert", low=0) if "expert" in row else None
    cell = Cell(_integer(row["layer"], "cells.layer", low=0), _integer(row["neuron"], "cells.neuron", low=0), expert)
    multiplier = _number(row.get("multiplier", -1.0), "cells.multiplier", low=-MAX_MULTIPLIER, high=MAX_MULTIPLIER)
    if multiplier == 1.0:
        raise RecipeError(f"[[cells]] {dict(row)!r}: a multiplier of 1 changes nothing, use -1")
    return ColumnEdit(cell, multiplier)


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{key} = {in_toml(value)}: expected a non-empty string")
    return value.strip()


def _strings(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"{key} = {in_toml(value)}: expected a list of strings")
    return tuple(_string(item, key) for item in value)


def _translations(value: Any, key: str) -> tuple[Translation, ...]:
    if not isinstance(value, dict):
        raise RecipeError(f'{key} = {in_toml(value)}: expected a table of names by language code, as {{ ko = "..." }}')
    return tuple(translation(code, name, key) for code, name in value.items())


def translation(code: str, name: Any, key: str) -> Translation:
    """A checked translation; raises RecipeError for a malformed code or an empty name, which stood at `key`."""
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
        raise RecipeError(f"unknown language code `{code}` in {key}: expected one as `ko` or `zh-Hant`")
    return Translation(code, tidy(_string(name, f"{key}.{code}")))


def _choice(value: Any, key: str, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise RecipeError(f"{key} = {in_toml(value)}: expected one of {', '.join(choices)}")
    return value


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"{key} = {in_toml(value)}: expected true or false")
    return value


def _integer(value: Any, key: str, low: int, high: float = math.inf) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        bounds = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
        raise RecipeError(f"{key} = {in_toml(value)}: expected a whole number {bounds}")
    return value


def _number(value: Any, key: str, low: float = -math.inf, high: float = math.inf, hint: str = "") -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Whole numbers of any length can be compared with a float, but not converted to one.
    if not is_number or not abs(value) < 1e308 or not low <= value <= high:
        bounds = hint or f"a number between {low:g} and {high:g}"
        raise RecipeError(f"{key} = {in_toml(value)}: expected {bounds}")
    return float(value)
