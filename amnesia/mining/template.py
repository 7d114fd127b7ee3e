"""A recipe to fill in: every section and key with what it means and its default, which are the reader's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from amnesia.domain import FORMATS, NEIGHBORHOODS, SPLITS, ModelRef, entity_name
from amnesia.mining.recipe_text import in_line
from amnesia.recipe import BASELINES, METHODS, PREFERENCES, Accept, EditOptions, LocalizeOptions, Scoring
from amnesia.recipe_file import KEYS

_SECTIONS: Mapping[str, str] = {
    "model": "",
    "entity": "",
    "entities": "Several entities, in place of [entity] and [[facts]]: `--entity` takes one, the others are controls.",
    "localize": 'How cells are ranked, for method "single"; `layers` also bounds where directions are looked for.',
    "cells": "Fixes the edit, so that nothing is searched.",
    "edit": "What is edited, and what is written.",
    "facts": "What the model knows of the entity and should forget, one table for each fact.",
    "controls.facts": "What it knows of others and must keep.",
    "scoring": "Which facts count as known. Scores are 1 where all is as before, 0 like an unknown name.",
    "accept": "Bounds on mean scores. A run that misses one exits with 1.",
}
_FACT = {
    "prompt": "with {entity} in place of the name, ending where the answer begins",
    "answer": "what the model says there",
    "answer_aliases": "other answers that count as right",
    "split": f"one of {', '.join(SPLITS)}: the choice of the edit sees the first; hold some wordings out",
}
_COMMENTS: Mapping[str, Mapping[str, str]] = {
    "": {"description": "one line for people"},
    "model": {
        "id": "Hub id, model folder, .gguf file, or a built-in name",
        "revision": "branch, tag or commit of a Hub id; by default the newest",
    },
    "entity": {
        "name": "whom or what the model should forget, as prompts name it",
        "aliases": "its other names",
        "translations": "its name by language code",
        "neighbors": "names of others that are easily taken for it and must stay",
    },
    "localize": {
        "baseline": f"what cells are compared with, one of {', '.join(BASELINES)}: prompts about others, or sentences",
        "n_prompts": "prompts about the entity, 2 to 100",
        "layers": "layers that are searched, from 0, both ends included; by default the early ones",
    },
    "cells": {
        "layer": "from 0",
        "expert": "from 0, in a mixture of experts only",
        "neuron": "from 0",
        "multiplier": "factor of the cell's column; 1 changes nothing",
    },
    "edit": {
        "method": f"one of {', '.join(METHODS)}: a direction over many cells, or the column of one cell",
        "max_cells": "most columns that change, from 1; by default there is no bound",
        "prefer": f"one of {', '.join(PREFERENCES)}: few columns, or all of them for the mildest edit",
        "forms": "whether other forms of the name go with it",
        "neighbors": "whether names that share a word with it are spared, where need be by more columns",
        "multiplier": 'below 1, for method "single" only; "auto" tries several',
        "format": f"one or more of {', '.join(FORMATS)}",
    },
    "facts": _FACT,
    "controls.facts": {
        "entity": "whom the fact is about; all facts about one stand in one split",
        **_FACT,
        "neighborhood": f"how close it is, one of {', '.join(NEIGHBORHOODS)}; by default that is found out",
    },
    "scoring": {
        "min_nats": "nats above an unknown name, from 0",
        "max_rank": "highest rank of the answer's first token, from 0, the best",
    },
    "accept": {
        "max_target": "facts about the entity that the choice saw: at most",
        "max_held_out_target": "those held out: at most",
        "min_control": "facts about others: at least",
        "max_perplexity": "perplexity in each language of the model, as a multiple of that before: at most",
    },
}
_EXAMPLES: Mapping[str, Any] = {
    "model.revision": "main",
    "entity.translations": {},
    "localize.layers": "0-5",
    "cells.layer": 1,
    "cells.expert": 0,
    "cells.neuron": 100,
    "cells.multiplier": -1.0,
    "edit.max_cells": 128,
    "edit.multiplier": "auto",
}
"""Values of keys that are not there by default, or whose default is written in another way than the reader keeps it."""


def template(entity: str, model: str) -> str:
    """The text of a recipe for an entity that `load_recipe` reads, with places for its facts.

    What has a default is commented out. Raises InputError as `entity_name`.
    """
    name = entity_name(entity)
    ref = ModelRef.parse(model)
    kept: dict[str, dict[str, Any]] = {
        "": {"description": f"{ref.name} forgets {name}"},
        "model": {"id": ref.name, **({"revision": ref.revision} if ref.revision else {})},
        "entity": {"name": name},
    }
    parts = ["\n".join(_lines("", kept[""]))]
    for section in ("model", "entity"):
        parts.append("\n".join([f"[{section}]", *_lines(section, kept[section])]))
    keys = ", ".join(KEYS["entities"])
    parts.append(f"# {_SECTIONS['entities']}\n# [[entities]]\n# Its keys: {keys}.")
    for section in ("localize", "edit", "scoring", "accept"):
        parts.append("\n".join([f"# {_SECTIONS[section]}", f"[{section}]", *_lines(section, {})]))
    parts.append("\n".join([f"# {_SECTIONS['cells']}", "# [[cells]]", *_lines("cells", {})]))
    for section, about in (("facts", {}), ("controls.facts", {"entity": "another name"})):
        for split in SPLITS:
            fact = {**about, "prompt": f"{{entity}} is known for ({split})", "answer": "an answer", "split": split}
            fact |= {"entity": f"{about['entity']} ({split})"} if about else {}
            comment = [f"# {_SECTIONS[section]}"] if split == SPLITS[0] else []
            lines = _lines(section, fact) if comment else [f"{key} = {in_line(value)}" for key, value in fact.items()]
            parts.append("\n".join([*comment, f"[[{section}]]", *lines]))
    return "\n\n".join(parts) + "\n"


def _lines(section: str, kept: Mapping[str, Any]) -> list[str]:
    """The keys of a section, each below its meaning; commented out unless they are `kept`."""
    lines = []
    for key in KEYS[section]:
        if section == "" and key not in _COMMENTS[""]:
            continue  # A section of its own.
        lines.append(f"# {key}: {_COMMENTS[section][key]}")
        if key in kept:
            lines.append(f"{key} = {in_line(kept[key])}")
        else:
            lines.append(f"# {key} = {in_line(_default(section, key))}")
    return lines


def _default(section: str, key: str) -> Any:
    """What the reader takes where a key is missing, or an example where that is nothing."""
    if f"{section}.{key}" in _EXAMPLES:
        return _EXAMPLES[f"{section}.{key}"]
    options = {"localize": LocalizeOptions, "edit": EditOptions, "scoring": Scoring, "accept": Accept}
    if section in options:
        values = asdict(options[section]())
        found = values["formats" if (section, key) == ("edit", "format") else key]
        return list(found) if isinstance(found, tuple) else found
    return NEIGHBORHOODS[-1] if key == "neighborhood" else []
