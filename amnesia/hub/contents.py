"""What an output becomes when it is published: no path of this machine, a model card, and no target if so wished.

The folder itself is never changed. The manifest that goes along is the one of the folder with other names in it, so
that `verify` and `undo` work on what others download. With private targets every entity's name becomes a keyed hash:
whoever has the key can show which entity it was, and nobody can find it by trying names. The cells stay, because
without them nothing could be verified or undone.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from amnesia.domain import ADAPTERS, ModelRef, is_gguf_name
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
from amnesia.hub.manifests import (
    add_manifests,
    held_there,
    n_published_anew,
    on_hub,
    pseudonym,
    renamed,
    with_content,
    with_file,
)
from amnesia.plain_text import for_terminal
from amnesia.report.page import report_html
from amnesia.sources.remote import HubFile
from amnesia.weights.adapter import CONFIG_NAME, KEY_PREFIX, README_NAME, WEIGHTS_NAME, auto_class_name
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME, open_source
from amnesia.weights.configuration import nested_rotary, read_config
from amnesia.weights.gguf.modelfile import modelfile
from amnesia.weights.manifest import Base, Manifest, UntouchedFile, declared_files, same_edits
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.safetensors import read_header

# Files of ours that say nothing about the target; with private targets no other file of ours goes along.
_NEUTRAL = (README_NAME, *ADAPTER_NAMES, LORA_NAME, UNDO_NAME, MODELFILE_NAME)
# Files of ours that are published without the target.
_REDACTED = (REPORT_NAME, PAGE_NAME)

# What stands for the card of an edit whose targets are private.
_NO_CARD = b"The model card that was here names what was to be forgotten, which is not published.\n"

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


def prepare(
    folder: Path,
    repo_id: str,
    base: BaseCard,
    *,
    matched: Base | None = None,
    earlier: Manifest | None = None,
    there: Mapping[str, HubFile] | None = None,
    key: bytes | None = None,
    extra: Mapping[str, bytes] | None = None,
    leave_out: bool = False,
) -> Publication:
    """The publication of the output in `folder` as `repo_id`.

    `matched` is the base in the manifest that the repository `base` was seen to be, `there` are its files by name, and
    `earlier` is its own manifest, if it is an output. With `key` the targets are private. `extra` are further files,
    the licence of the base for example. Raises PublishError for a damaged report, for a base that is this output's only
    by its weights and, unless they are to be `leave_out`, for files that are no part of the output, and what
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
    report = report_in(folder, manifest)
    if report is not None:
        report["model"] = base.ref.to_json()
    n_anew = len([*manifest.history()])
    if key is None:
        n_anew = n_published_anew(manifest, matched, there or {})
        _check_kept(folder, manifest, base.ref, matched, earlier, there or {})
    published = renamed(manifest, base.ref, matched, earlier, key, n_anew)
    for depth, name, content in _redacted(folder, files, manifest, base, key, n_anew):
        files[f"{BASE_FOLDER}/" * depth + name] = content
        published = with_content(published, name, content, depth)
    for name, content in _configurations([*files], folder, base.ref.name, there or {}):
        files[name] = content
        published = with_content(published, name, content)
    published = _with_extra(published, files, extra or {}, n_anew)
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
    auto_class = _auto_class(folder, manifest)
    card = model_card(
        published,
        base,
        repo_id,
        report,
        private=key is not None,
        weights=weights,
        auto_class=auto_class,
        rotary=nested_rotary(read_config(folder)) if manifest.format == "safetensors" else None,
    )
    files[README_NAME] = card.encode()
    published = add_manifests(published, files, n_anew)
    title = "Upload an edited model" if key is not None else f"Upload {base.ref.name} without {manifest.entity}"
    return Publication(published, files, for_terminal(" ".join(title.split()))[:200], tuple(others))


def _check_kept(
    folder: Path,
    manifest: Manifest,
    base: ModelRef,
    matched: Base | None,
    earlier: Manifest | None,
    there: Mapping[str, HubFile],
) -> None:
    """Raises PublishError where the repository of the base holds an earlier edit otherwise than the output keeps it.

    Against that repository nothing could then be proven, and going back would not lead there.
    """
    for step in manifest.history():
        found = step.previous
        if found is None or step.base != matched or on_hub(step.base) or not same_edits(found, earlier):
            continue
        if manifest.format not in ADAPTERS and not held_there(found, there):
            raise PublishError(
                f"{base} holds the edit for {for_terminal(found.entity)} with other names than {folder} keeps of it: "
                f"make the output on that, `amnesia replay {shlex.quote(str(folder))} -o NEW --base {base}`, and push "
                "NEW, or name the repository of the original with --base"
            )


def _with_extra(manifest: Manifest, files: dict[str, Content], extra: Mapping[str, bytes], n_anew: int) -> Manifest:
    """The manifest of an output to whose `files` those further ones are added that it lacks."""
    for name, content in extra.items():
        if name not in files:
            files[name] = content
            if manifest.format != "safetensors":
                manifest = replace(manifest, added=(*manifest.added, name))
            else:  # Of a model folder they are files of the base like others.
                row = UntouchedFile(name, len(content), hashlib.sha256(content).hexdigest())
                manifest = with_file(manifest, row, n_anew)
    return manifest


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


def _redacted(
    folder: Path, files: Mapping[str, Content], manifest: Manifest, base: BaseCard, key: bytes | None, n_anew: int
) -> Iterator[tuple[int, str, bytes]]:
    """Reports, pages and, with a key, cards of edits as they are published, each with how many steps back it is.

    Each step keeps the files that it replaced, so that the report of an earlier edit lies in `amnesia-base/`. Those of
    other edits than the newest `n_anew` came from a repository, and stay as they are.
    """
    steps = list(manifest.history())
    for depth in range(n_anew):
        place = f"{BASE_FOLDER}/" * depth

        def is_ours(name: str, place: str = place, depth: int = depth) -> bool:
            """A model may come with a file of that name, which is not ours to change."""
            brought = (step for step in steps[depth:] if name in (*step.added, *step.replaced))
            owner = next(brought, None)
            return place + name in files and owner is not None and steps.index(owner) < n_anew

        if key is not None and is_ours(README_NAME):
            yield depth, README_NAME, _NO_CARD
        present = [name for name in _REDACTED if is_ours(name)]
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
