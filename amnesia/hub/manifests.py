"""The manifests of what is published: names of the Hub in place of paths, and the files as they are published.

`verify` and `undo` work on what others download, so the manifests of all edits, newest and earlier, which lie in
`amnesia-base/` and in the newest, must agree with each other and with the files. Edits that came from a repository go
along as they are there, byte for byte: what is fetched is then proven against that repository, too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import tomli_w

from amnesia.domain import ModelRef
from amnesia.edits import EntityEdits
from amnesia.files.companions import BASE_FOLDER
from amnesia.files.disk import MANIFEST_NAME
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.remote import HubFile
from amnesia.weights.manifest import Base, Manifest, UntouchedFile, same_edits
from amnesia.weights.manifest_file import manifest_bytes, written_file


def on_hub(base: Base) -> bool:
    """Whether a base was fetched from the Hub: it then has a commit, which folders do not have."""
    return base.ref.may_be_on_hub and re.fullmatch(r"[0-9a-f]{40}", base.ref.revision or "") is not None


def hub_base(manifest: Manifest) -> Base | None:
    """The newest base in the history of an output that is a repository on the Hub; None when all are files here."""
    return next((step.base for step in manifest.history() if on_hub(step.base)), None)


def built_in_base(manifest: Manifest) -> ModelRef | None:
    """The built-in model in the history of an output, if it goes back to one."""
    return next((step.base.ref for step in manifest.history() if step.base.ref.name in BUILT_IN), None)


def _is_name(base: Base) -> bool:
    return on_hub(base) or base.ref.name in BUILT_IN


def pseudonym(entity: str, key: bytes) -> str:
    """What stands for an entity where targets are private."""
    return f"entity-{hmac.new(key, entity.encode(), hashlib.sha256).hexdigest()[:24]}"


def held_there(manifest: Manifest, there: Mapping[str, HubFile]) -> bool:
    """Whether the files `there` of a repository have this manifest, byte for byte."""
    return MANIFEST_NAME in there and there[MANIFEST_NAME].holds(manifest_bytes(manifest))


def n_published_anew(manifest: Manifest, matched: Base | None, there: Mapping[str, HubFile]) -> int:
    """How many of the edits, the newest first, no repository holds yet: all those beneath are as they were fetched.

    `matched` is the base in the manifest that the files `there` are of.
    """
    for count, step in enumerate(manifest.history(), start=1):
        earlier = step.previous
        if earlier is not None and (on_hub(step.base) or (step.base == matched and held_there(earlier, there))):
            return count
    return len([*manifest.history()])


def renamed(
    manifest: Manifest, base: ModelRef, matched: Base | None, earlier: Manifest | None, key: bytes | None, n_anew: int
) -> Manifest:
    """The manifest with names of the Hub in place of paths, and pseudonyms in place of entities when there is a key.

    `base` is the repository of the base, `matched` which base in the manifest that was seen to be, and `earlier` the
    manifest that it holds: of what the edits before were made, it says. Only the newest `n_anew` edits change.
    """
    paths = {step.base.ref.name for step in manifest.history() if not _is_name(step.base)}
    steps = [*manifest.history()]
    refs = [*_refs(manifest, base, matched, earlier)][:n_anew]
    found = steps[n_anew] if n_anew < len(steps) else None
    for step, ref in zip(reversed(steps[:n_anew]), reversed(refs), strict=True):
        recipe = None if key is not None or step.recipe is None else _public_recipe(step.recipe, paths, base.name)
        edits = step.edits
        if key is not None:
            edits = tuple(EntityEdits(pseudonym(row.entity, key), row.edits) for row in edits)
        found = replace(
            step,
            base=replace(step.base, ref=ref),
            edits=edits,
            recipe=recipe,
            left_out=(),  # Names of files on this machine.
            previous=found,
        )
    assert found is not None, "an output has a manifest"
    return found


def _refs(manifest: Manifest, base: ModelRef, matched: Base | None, earlier: Manifest | None) -> Iterator[ModelRef]:
    """The bases of all edits, newest first, as they are published."""
    stand_in = built_in_base(manifest) or replace(base, revision=None)
    there: Manifest | None = None
    for step in manifest.history():
        # An edit in place, on top of another, names the same files as that.
        if step.base == matched and same_edits(step.previous, earlier):
            yield base
            there = earlier
            continue
        yield step.base.ref if _is_name(step.base) else stand_in if there is None else there.base.ref
        there = None if there is None else there.previous


def add_manifests(manifest: Manifest, files: dict[str, Path | bytes], n_anew: int) -> Manifest:
    """Add the manifests of the newest `n_anew` edits to `files`, which say what all files are as they are published.

    Edits on top of each other keep the manifests of the earlier ones. Returns the newest.
    """
    steps = [*manifest.history()]
    places = [{name: name for name in files}]
    for step in steps[:-1]:
        places.append(_places_before(step, places[-1]))
    made = steps[n_anew] if n_anew < len(steps) else None
    for depth in reversed(range(n_anew)):
        step, found = replace(steps[depth], previous=made), places[depth]
        names = dict.fromkeys(name for name in step.names_written if name in found)
        made = replace(step, written=tuple(written_file(name, files[found[name]]) for name in names))
        if MANIFEST_NAME in found or not depth:  # An adapter keeps no files of edits before.
            files[found.get(MANIFEST_NAME, MANIFEST_NAME)] = manifest_bytes(made)
    assert made is not None, "an output has a manifest"
    return made


def _places_before(manifest: Manifest, places: Mapping[str, str]) -> dict[str, str]:
    """Where the files lie that an edit found, by their names then, from where those lie that it left."""
    kept = {name: f"{BASE_FOLDER}/{name}" for name in manifest.replaced}
    before = {
        name: place
        for name, place in places.items()
        if name != MANIFEST_NAME and name not in manifest.added and not name.startswith(f"{BASE_FOLDER}/")
    }
    return before | {name: places[place] for name, place in kept.items() if place in places}


def with_file(manifest: Manifest, row: UntouchedFile, n_anew: int) -> Manifest:
    """The manifest with a further file of the base, which its newest `n_anew` edits then found."""
    previous = manifest.previous
    return replace(
        manifest,
        untouched=(*manifest.untouched, row),
        previous=previous if previous is None or n_anew == 1 else with_file(previous, row, n_anew - 1),
    )


def with_content(manifest: Manifest, name: str, content: bytes, depth: int = 0) -> Manifest:
    """The manifest of an output in which a file of an earlier edit gets other bytes, `depth` steps back."""
    row = UntouchedFile(name, len(content), hashlib.sha256(content).hexdigest())
    untouched = tuple(row if entry.file == name else entry for entry in manifest.untouched)
    previous = manifest.previous
    if depth:
        assert previous is not None, "a step has a manifest"
        # The edit that replaced the file found it like this.
        found = untouched if depth == 1 else manifest.untouched
        return replace(manifest, untouched=found, previous=with_content(previous, name, content, depth - 1))
    if name in manifest.added or name in manifest.replaced:
        return manifest  # The file is of this edit; what was there before it stays in its own place.
    return replace(
        manifest,
        untouched=untouched,
        previous=None if previous is None else with_content(previous, name, content),
    )


def _public_recipe(text: str, paths: Collection[str], base: str) -> str | None:
    """A recipe in which the model is called as on the Hub; without its comments, where that changes anything.

    None for a text that is no recipe.
    """
    try:
        document = tomllib.loads(text)
        name = document["model"]["id"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if isinstance(name, str) and name not in paths and (name in BUILT_IN or ModelRef(name).may_be_on_hub):
        return text
    return tomli_w.dumps({**document, "model": {"id": base}})
