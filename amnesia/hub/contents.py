"""What an output becomes when it is published: no path of this machine, a model card, and no target if so wished.

The folder itself is never changed. The manifest that goes along is the one of the folder with other names in it, so
that `verify` and `undo` work on what others download. With private targets every entity's name becomes a keyed hash:
whoever has the key can show which entity it was, and nobody can find it by trying names. The cells stay, because
without them nothing could be verified or undone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import TemplateError

from amnesia.domain import ADAPTERS, ModelRef, is_gguf_name
from amnesia.edits import EntityEdits
from amnesia.errors import PublishError, os_errors_as
from amnesia.files.cache import cache_folder
from amnesia.files.companions import ADAPTER_NAMES, CONFIGURATIONS, LORA_NAME, MODELFILE_NAME, REPOSITORY_FILE
from amnesia.files.disk import read_small
from amnesia.files.listing import list_files
from amnesia.files.staging import MANIFEST_NAME, PAGE_NAME, REPORT_NAME
from amnesia.files.strict_json import StrictJson, json_bytes
from amnesia.guessing import as_declared
from amnesia.hub.card import BaseCard, model_card
from amnesia.hub.local_paths import without_local_paths
from amnesia.plain_text import for_terminal
from amnesia.report.page import report_html
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.remote import HubFile
from amnesia.weights.adapter import CONFIG_NAME, KEY_PREFIX, README_NAME, WEIGHTS_NAME, auto_class_name
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME, open_source
from amnesia.weights.gguf.modelfile import modelfile
from amnesia.weights.manifest import Base, Manifest, UntouchedFile, declared_files
from amnesia.weights.manifest_file import manifest_bytes, read_manifest, written_file
from amnesia.weights.safetensors import read_header

# Files of ours that say nothing about the target; with private targets no other file of ours goes along.
_NEUTRAL = (README_NAME, *ADAPTER_NAMES, LORA_NAME, UNDO_NAME, MODELFILE_NAME)
# Files of ours that are published without the target.
_REDACTED = (REPORT_NAME, PAGE_NAME)

_MAX_DOCUMENT = 2**28
# Names in a message.
_N_SHOWN = 8

Content = Path | bytes


@dataclass(frozen=True)
class Publication:
    """The files of a repository: name → a file on this disk, or bytes. `title` is for the commit.

    `left_out` are files of the folder that are no part of the output, and are not published.
    """

    manifest: Manifest
    files: Mapping[str, Content]
    title: str
    left_out: tuple[str, ...] = ()


def on_hub(base: Base) -> bool:
    """Whether a base was fetched from the Hub: it then has a commit, which folders do not have."""
    return base.ref.may_be_on_hub and re.fullmatch(r"[0-9a-f]{40}", base.ref.revision or "") is not None


def hub_base(manifest: Manifest) -> Base | None:
    """The newest base in the history of an output that is a repository on the Hub; None when all are files here."""
    return next((step.base for step in manifest.history() if on_hub(step.base)), None)


def built_in_base(manifest: Manifest) -> ModelRef | None:
    """The built-in model in the history of an output, if it goes back to one."""
    return next((step.base.ref for step in manifest.history() if step.base.ref.name in BUILT_IN), None)


def prepare(
    folder: Path,
    repo_id: str,
    base: BaseCard,
    *,
    matched: Base | None = None,
    there: Mapping[str, HubFile] | None = None,
    key: bytes | None = None,
    extra: Mapping[str, bytes] | None = None,
    leave_out: bool = False,
) -> Publication:
    """The publication of the output in `folder` as `repo_id`.

    `matched` is the base in the manifest that the repository `base` was seen to be, `there` are its files by name. With
    `key` the targets are private. `extra` are further files, the licence of the base for example. Raises PublishError
    for a damaged report and, unless they are to be `leave_out`, for files that are no part of the output, and what
    `read_manifest` and `list_files` raise.
    """
    manifest = read_manifest(folder)
    names, others = _names(folder, manifest)
    if others and not leave_out:
        raise PublishError(
            f"{folder} holds {_listed(others)}, which {'are' if len(others) > 1 else 'is'} no part of the output: "
            "remove what is not to be published, or leave all of it out with --leave-out (in Python: leave_out=True)"
        )
    if key is not None:
        ours = {*manifest.added, *manifest.replaced}
        # Manifests and reports of earlier edits lie deeper, and are redacted where they lie.
        redacted = {*_REDACTED, MANIFEST_NAME}
        names = [name for name in names if name not in ours or name in _NEUTRAL or Path(name).name in redacted]
    files: dict[str, Content] = {name: folder / name for name in names}
    paths = {step.base.ref.name for step in manifest.history() if not _is_name(step.base)}
    report = report_in(folder, manifest)
    if report is not None:
        report["model"] = base.ref.to_json()
    published = _rename(manifest, base, matched, key, paths)
    for depth, name, content in _reports(folder, files, manifest, base, key):
        files[f"{BASE_FOLDER}/" * depth + name] = content
        published = _with_content(published, name, content, depth)
    for name, content in _configurations([*files], folder, base.ref.name, there or {}):
        files[name] = content
        published = _with_content(published, name, content)
    for name, content in (extra or {}).items():
        if name not in files:
            files[name] = content
            if manifest.format != "safetensors":
                published = replace(published, added=(*published.added, name))
            else:  # Of a model folder they are files of the base like others.
                published = _with_file(
                    published, UntouchedFile(name, len(content), hashlib.sha256(content).hexdigest())
                )
    if README_NAME in files and README_NAME not in (*manifest.added, *manifest.replaced):
        files[f"{BASE_FOLDER}/{README_NAME}"] = files.pop(README_NAME)
        published = replace(published, replaced=(*published.replaced, README_NAME))
    elif README_NAME not in files:
        published = replace(published, added=(*published.added, README_NAME))
    published = replace(
        published, added=tuple(name for name in published.added if name in files or name == README_NAME)
    )
    if manifest.format == "adapter":
        files[CONFIG_NAME] = _adapter_config(folder / CONFIG_NAME, published.base)
    weights = sorted(name for name in files if is_gguf_name(name))
    if manifest.format == "gguf" and MODELFILE_NAME not in files and (text := modelfile(weights)) is not None:
        files[MODELFILE_NAME] = text
        published = replace(published, added=(*published.added, MODELFILE_NAME))
    published = _add_manifests(published, files)
    auto_class = _auto_class(folder, manifest)
    card = model_card(published, base, repo_id, report, private=key is not None, weights=weights, auto_class=auto_class)
    files[README_NAME] = card.encode()
    title = "Upload an edited model" if key is not None else f"Upload {base.ref.name} without {manifest.entity}"
    return Publication(published, files, for_terminal(" ".join(title.split()))[:200], tuple(others))


def _add_manifests(manifest: Manifest, files: dict[str, Content]) -> Manifest:
    """Add the manifests of all steps to `files`; returns the newest, which says what these files are.

    Edits on top of each other keep the manifests of the earlier ones, which must agree with the newest.
    """
    for depth, step in enumerate(manifest.history()):
        name = f"{BASE_FOLDER}/" * depth + MANIFEST_NAME
        if depth and name in files:
            files[name] = manifest_bytes(step)
    # People go on writing on the card, on the Hub, too.
    names = dict.fromkeys(name for name in manifest.names_written if name in files and name != README_NAME)
    manifest = replace(manifest, written=tuple(written_file(name, files[name]) for name in names))
    files[MANIFEST_NAME] = manifest_bytes(manifest)
    return manifest


def _with_file(manifest: Manifest, row: UntouchedFile) -> Manifest:
    """The manifest with a further file of the base, which all its edits then found."""
    previous = manifest.previous
    return replace(
        manifest,
        untouched=(*manifest.untouched, row),
        previous=None if previous is None else _with_file(previous, row),
    )


def _configurations(
    names: Collection[str], folder: Path, model: str, there: Mapping[str, HubFile]
) -> Iterator[tuple[str, bytes]]:
    """The configurations that name a path of this machine, each as it is published, without it.

    Those that the Hub has in the base's repository are left as they are.
    """
    for name in CONFIGURATIONS:
        if name in names:
            found = read_small(folder / name, _MAX_DOCUMENT)
            if name in there and there[name].holds(found):
                continue
            if (shown := without_local_paths(found, model)) != found:
                yield name, shown


@as_declared()
def _auto_class(folder: Path, manifest: Manifest) -> str | None:
    """The Auto class of transformers by which an output is loaded; None for GGUF."""
    if manifest.format == "safetensors":
        return open_source(folder).shape.layout.auto_class
    if manifest.format != "adapter":
        return None
    names = read_header(folder / WEIGHTS_NAME).tensors
    return auto_class_name([name.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight") for name in names])


def _names(folder: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """The files that belong to the output, without its manifest, and all others.

    To an output belongs what its manifest lists, and what the Hub puts into every repository. By its name alone nothing
    does: whatever came to the folder later may be of its owner alone, and other weights still know the entity.
    """
    names = [name for name in list_files(folder) if name != MANIFEST_NAME]
    own = {*declared_files(manifest), REPOSITORY_FILE}
    if manifest.format not in ADAPTERS:
        own |= {row.file for row in (*manifest.base.files, *manifest.untouched)}
    return [name for name in names if name in own], [name for name in names if name not in own]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(for_terminal, names[:_N_SHOWN]))
    return shown if len(names) <= _N_SHOWN else f"{shown} and {len(names) - _N_SHOWN} more files"


def pseudonym(entity: str, key: bytes) -> str:
    """What stands for an entity where targets are private."""
    return f"entity-{hmac.new(key, entity.encode(), hashlib.sha256).hexdigest()[:24]}"


def secret_key() -> bytes:
    """The secret key of this user's pseudonyms, made once; kept so that a repeated push gives the same bytes."""
    path = cache_folder() / "pseudonym-key"
    with os_errors_as(PublishError, f"{path} cannot be written", "set AMNESIA_CACHE to another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = read_small(path, 32)
            if len(key) != 32:
                raise PublishError(f"{path} has {len(key)} bytes, expected 32: remove it to get a new key") from None
            return key
        key = secrets.token_bytes(32)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
        return key


def _is_name(base: Base) -> bool:
    return on_hub(base) or base.ref.name in BUILT_IN


def _rename(
    manifest: Manifest, base: BaseCard, matched: Base | None, key: bytes | None, paths: Collection[str]
) -> Manifest:
    """The manifest with names of the Hub in place of paths, and pseudonyms in place of entities when there is a key."""
    origin, stand_in = manifest.base, built_in_base(manifest) or replace(base.ref, revision=None)
    if matched is not None and origin == matched:
        origin = replace(origin, ref=base.ref)
    elif not _is_name(origin):
        origin = replace(origin, ref=stand_in)
    recipe = None if key is not None or manifest.recipe is None else _public_recipe(manifest.recipe, paths, base)
    edits = manifest.edits
    if key is not None:
        edits = tuple(EntityEdits(pseudonym(row.entity, key), row.edits) for row in edits)
    previous = manifest.previous
    return replace(
        manifest,
        base=origin,
        edits=edits,
        recipe=recipe,
        written=(),  # The files of earlier edits are published otherwise, and those of the newest are looked at last.
        left_out=(),  # Names of files on this machine.
        previous=None if previous is None else _rename(previous, base, matched, key, paths),
    )


def _public_recipe(text: str, paths: Collection[str], base: BaseCard) -> str | None:
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
    return tomli_w.dumps({**document, "model": {"id": base.ref.name}})


def _reports(
    folder: Path, files: Mapping[str, Content], manifest: Manifest, base: BaseCard, key: bytes | None
) -> Iterator[tuple[int, str, bytes]]:
    """The reports of all steps and their pages as they are published, each with how many steps back it is.

    Each step keeps the files that it replaced, so that the report of an earlier edit lies in `amnesia-base/`.
    """
    steps = list(manifest.history())
    for depth in range(len(steps)):
        place = f"{BASE_FOLDER}/" * depth
        present = [
            name
            for name in _REDACTED
            # A model may come with a file of that name, which is not ours to change.
            if place + name in files and any(name in (*step.added, *step.replaced) for step in steps[depth:])
        ]
        if not present:
            continue
        path = folder / place / REPORT_NAME
        report = {**_report(path), "model": base.ref.to_json()}
        try:
            shown = report if key is None else _without_targets(report, key)
            for name in present:
                yield depth, name, json_bytes(shown) if name == REPORT_NAME else report_html(shown).encode()
        except (TemplateError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise PublishError(f"{path} is not a report of amnesia ({error!r}): make it again") from error


def _with_content(manifest: Manifest, name: str, content: bytes, depth: int = 0) -> Manifest:
    """The manifest of an output in which a file of an earlier edit gets other bytes, `depth` steps back."""
    row = UntouchedFile(name, len(content), hashlib.sha256(content).hexdigest())
    untouched = tuple(row if entry.file == name else entry for entry in manifest.untouched)
    previous = manifest.previous
    if depth:
        assert previous is not None, "a step has a manifest"
        # The edit that replaced the file found it like this.
        found = untouched if depth == 1 else manifest.untouched
        return replace(manifest, untouched=found, previous=_with_content(previous, name, content, depth - 1))
    if name in manifest.added or name in manifest.replaced:
        return manifest  # The file is of this edit; what was there before it stays in its own place.
    return replace(
        manifest,
        untouched=untouched,
        previous=None if previous is None else _with_content(previous, name, content),
    )


def report_in(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The content of an output's `report.json`, of this edit or an earlier one; None where there is none of ours.

    Raises PublishError for one that is damaged.
    """
    ours = any(REPORT_NAME in (*step.added, *step.replaced) for step in manifest.history())
    return _report(folder / REPORT_NAME) if ours and (folder / REPORT_NAME).exists() else None


def _report(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_small(path, _MAX_DOCUMENT))
    except (OSError, ValueError) as error:
        raise PublishError(f"{path} cannot be read as JSON ({error}): make the output again") from error
    if not isinstance(document, dict):
        raise PublishError(f"{path} is not a report of amnesia: make the output again")
    return document


def _without_targets(report: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """Aggregates only, and of these none that tells what kind of facts the target's are."""
    public = {name: report[name] for name in ("format_version", "tool", "model", "accepted", "damage", "n_excluded")}
    return {
        **public,
        "edited": None,
        "entity": pseudonym(str(report.get("entity")), key),
        "findings": [],
        "aggregates": [row for row in report["aggregates"] if row["group"] == "all"],
        "prompts": [],
    }


def _adapter_config(path: Path, base: Base) -> bytes:
    """The configuration of an adapter with the name under which others find the base."""
    check = StrictJson(str(path), PublishError, "make the adapter again")
    with os_errors_as(PublishError, f"{path} cannot be read", "make the adapter again"):
        config = check.mapping(check.parse(read_small(path, _MAX_DOCUMENT)), "settings")
    return json_bytes({**config, "base_model_name_or_path": base.ref.name, "revision": base.ref.revision})
