"""The repository of an output's base: which one it is, that it really is the base, what its card and licence say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.domain import ModelRef
from amnesia.errors import PublishError, SourceError, library_errors_as
from amnesia.files.companions import is_legal
from amnesia.hub.card import BaseCard
from amnesia.hub.contents import built_in_base, hub_base
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.remote import HubFiles, list_hub_files
from amnesia.sources.resolve import hub_ref
from amnesia.weights.manifest import GGUF_START, Base, Manifest
from amnesia.weights.safetensors import header_of

MAX_SMALL = 2**24


@dataclass(frozen=True)
class BaseRepo:
    """The base as its repository shows it.

    `matched` is the entry of the manifest whose files the repository was seen to hold. `files` is None where the Hub
    does not show the repository.
    """

    card: BaseCard
    matched: Base | None
    files: HubFiles | None


def find_base(manifest: Manifest, name: str | None, notice: Callable[[str], None]) -> BaseRepo:
    """The repository `name`, or without a name the one that the manifest knows.

    `notice` is told what could not be checked or had. Raises PublishError when no repository is known, or when `name`
    is not the base, and SourceError when `name` cannot be seen.
    """
    if name is not None:
        origin = list_hub_files(hub_ref(name))
        matched = next((step.base for step in manifest.history() if _is_base(origin, step.base)), None)
        known = [row.file for step in manifest.history() for row in step.base.files if row.file in origin.files]
        if matched is None and known:
            raise PublishError(f"{origin} is not the base: its {known[0]} is another file; name the right repository")
        if matched is None:
            notice(f"{origin} does not hold the file that was edited: that it is the base was not checked")
        return BaseRepo(_card_of(origin), matched, origin)
    entry = hub_base(manifest)
    if entry is None:
        known = built_in_base(manifest)
        if known is None:
            raise PublishError(
                f"the base {manifest.base.ref.name} is a file of this machine, which a card cannot name: give its "
                "repository with --base"
            )
        fields = _metadata(BUILT_IN[known.name].card)
        return BaseRepo(_fields(fields, ModelRef(fields["base_model"])), None, None)
    try:
        origin = list_hub_files(entry.ref)
    except SourceError as error:
        notice(f"{error}; licence and unchanged files cannot be taken from there")
        return BaseRepo(BaseCard(entry.ref), None, None)
    return BaseRepo(_card_of(origin), entry, origin)


def _is_base(origin: HubFiles, base: Base) -> bool:
    for row in base.files:
        file = origin.files.get(row.file)
        if file is None or file.size != row.size:
            return False
        if row.scope == "file":
            if file.sha256 != row.sha256:
                return False
        elif hashlib.sha256(start_of(origin, row.file)).hexdigest() != row.sha256:
            return False
    return True


def start_of(hub: HubFiles, name: str) -> bytes:
    """The bytes of a weight file that say what is in it: a safetensors header, or the beginning of a GGUF."""
    if name.endswith(".safetensors"):
        return header_of(Path(name), hub.files[name].size, lambda offset, size: hub.read(name, offset, size)).content
    return hub.read(name, 0, min(hub.files[name].size, GGUF_START))


def _card_of(origin: HubFiles) -> BaseCard:
    text = origin.content("README.md", MAX_SMALL).decode("utf-8", "replace") if "README.md" in origin.files else ""
    return _fields(_metadata(text), origin.ref)


def _metadata(card: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    with library_errors_as(PublishError, "the card of the base has metadata that is not YAML", "mend it"):
        return ModelCard(card, ignore_metadata_errors=True).data.to_dict()


def _fields(data: Mapping[str, Any], ref: ModelRef) -> BaseCard:
    def text(key: str) -> str | None:
        value = data.get(key)
        return value if isinstance(value, str) else None

    languages = data.get("language") or []
    languages = [languages] if isinstance(languages, str) else languages
    return BaseCard(
        ref,
        text("license"),
        text("license_name"),
        text("license_link"),
        tuple(item for item in languages if isinstance(item, str)),
    )


def licence_files(origin: HubFiles) -> dict[str, bytes]:
    """The base's licence files, which must travel with a full model."""
    return {
        name: origin.content(name, MAX_SMALL)
        for name, file in origin.files.items()
        if is_legal(name) and file.size <= MAX_SMALL
    }
