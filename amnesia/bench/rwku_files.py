"""The published files of RWKU, found in a folder and read as items.

Two layouts are published. Of all targets, in the folder `All` of the data set `jinzhuoran/RWKU`; by target, as folders
`Target/NUMBER_First_Last`, which hold the same rows once more. In both, a part is one file `NAME.json` (a list of
rows), called as the configuration of the data set is, or otherwise (`PARTS` has both names). Also read are `NAME.jsonl`
(a row on each line), a folder `NAME` with such files in it, and files that are in no folder.

Rows have a `subject`, the target, and

- `forget_…`, `neighbor_…`: `query`, `answer`, and of level 3 `type`;
- general ability (MMLU): `question`, `choices`, `answer` (a number from 0), `task`, `examples` (rows of the same);
- reasoning (BBH): `question`, `answer` (one, or a list), `cot`, examples with chains of thought;
- truthfulness: `question`, `mc1_targets` with `choices` and `labels`; factuality: `question`, `answers`;
- fluency: `instruction`; membership: `text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.domain import name_key, tidy
from amnesia.errors import InputError, os_errors_as
from amnesia.files.disk import hash_file, read_small
from amnesia.files.strict_json import StrictJson

_ENDS = ("json", "jsonl")
NEEDED = ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2")
PARTS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in NEEDED},
    "utility_general": ("utility_general", "retain_mmlu"),
    "utility_reason": ("utility_reason", "retain_bbh"),
    "utility_truthfulness": ("utility_truthfulness", "truthful"),
    "utility_factuality": ("utility_factuality", "triviaqa"),
    "utility_fluency": ("utility_fluency", "fluency"),
    "mia_forget": ("mia_forget", "forget_mia"),
    "mia_retain": ("mia_retain", "retain_mia"),
}
"""Each part with the names of its files, by the configuration and as they are published."""

_ALL = "All"
PATTERNS = tuple(
    f"{folder}{name}{inside}.{end}"
    for folder in ("", f"{_ALL}/")
    for names in PARTS.values()
    for name in names
    for inside in ("", "/*")
    for end in _ENDS
)
"""What of a repository with these files is read: those of all targets, not the thousands by target beside them."""

_MAX_FILE = 2**28
_REMEDY = "give the file as it was published"
_TARGET = re.compile(r"\d+_(?P<name>.+)")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """The rows of each part with the checks of their file, the targets as the files spell them, and SHA-256 by file."""

    rows: Mapping[str, tuple[tuple[StrictJson, Row], ...]]
    targets: tuple[str, ...]
    hashes: Mapping[str, str]


def read_published(folder: Path, targets: Sequence[str], name: str | None = None) -> Published:
    """What the files say of some targets; raises InputError for files that are missing or of another form.

    `name` is that of the data set, where it is not known by its folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one with the files of RWKU (forget_level1.json, …)")
    wanted = {name_key(target) for target in targets}
    hashes: dict[str, str] = {}
    rows = {part: [] for part in PARTS}
    places = _places(folder, targets)
    for place in places:
        for part in PARTS:
            rows[part] += _rows(place, part, hashes, folder)
    own = {part: _of_targets(part, found, wanted) for part, found in rows.items()}
    for part in NEEDED:
        if not rows[part]:
            where = name or ", ".join(map(str, places))
            raise InputError(f"{where} has no rows of {part}: expected {part}.json or {part}.jsonl, as published")
        if not own[part]:
            known = sorted({str(row.get("subject")) for _, row in rows[part]})
            raise InputError(_unknown(part, targets, known))
    spelled = dict.fromkeys(tidy(str(row["subject"])) for _, row in own[NEEDED[0]] if row.get("subject"))
    return Published(own, tuple(spelled) or tuple(targets), hashes)


def _unknown(what: str, targets: Sequence[str], known: Sequence[str]) -> str:
    return (
        f"{what} of RWKU has no probe about {', '.join(map(repr, targets))}: its targets are "
        f"{', '.join(known[:5])}{', …' * (len(known) > 5)}; give one of them"
    )


def _places(folder: Path, targets: Sequence[str]) -> Sequence[Path]:
    """The one with the files of all targets, or the folders of these targets, or the folder itself."""
    if (folder / _ALL).is_dir():
        return [folder / _ALL]
    for parent in (folder, folder / "Target"):
        found = {
            name_key(match["name"].replace("_", " ")): path
            for path in (sorted(parent.iterdir()) if parent.is_dir() else ())
            if path.is_dir() and (match := _TARGET.fullmatch(path.name))
        }
        if found:
            missing = [target for target in targets if name_key(target) not in found]
            if missing:
                raise InputError(_unknown(str(parent), missing, [path.name for path in found.values()]))
            return [found[key] for key in dict.fromkeys(map(name_key, targets))]
    return [folder]


def _of_targets(
    part: str, rows: Sequence[tuple[StrictJson, Row]], wanted: set[str]
) -> tuple[tuple[StrictJson, Row], ...]:
    """The rows about the targets, and those about nobody; of texts about others, which need not name a target, all."""
    own = [(check, row) for check, row in rows if row.get("subject") is None or name_key(str(row["subject"])) in wanted]
    if part == "mia_retain":
        own = own or rows
        # The folders of all targets have the same ones.
        own = list({str(row.get("text")): (check, row) for check, row in own}.values())
    return tuple(own)


def _rows(place: Path, part: str, hashes: dict[str, str], folder: Path) -> Iterator[tuple[StrictJson, Row]]:
    names = PARTS[part]
    found = [path for name in names for end in _ENDS if (path := place / f"{name}.{end}").is_file()]
    if len(found) > 1:
        raise InputError(f"{place} has {found[0].name} and {found[1].name}: keep one of them")
    inside = (path for name in names if (place / name).is_dir() for path in sorted((place / name).iterdir()))
    for path in found or [path for path in inside if path.suffix in (".json", ".jsonl")]:
        with os_errors_as(InputError, f"{path} cannot be read", "give the published files"):
            content = read_small(path, _MAX_FILE)
            hashes[path.relative_to(folder).as_posix()] = hash_file(path)
        check = StrictJson(str(path), InputError, _REMEDY)
        lines = [line for line in content.splitlines() if line.strip()] if path.suffix == ".jsonl" else None
        rows = check.list(check.parse(content), "rows") if lines is None else map(check.parse, lines)
        yield from ((check, check.mapping(row, "a row")) for row in rows)
