"""The repository of an output's base: which one it is, that it really is the base, what its card and licence say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.domain import ADAPTERS, OF_GGUF, ModelRef
from amnesia.errors import PublishError, SourceError, VerificationError, library_errors_as
from amnesia.files.companions import is_legal
from amnesia.files.disk import MANIFEST_NAME
from amnesia.hub.card import BaseCard
from amnesia.hub.manifests import built_in_base, hub_base, on_hub
from amnesia.plain_text import for_terminal
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.remote import HubFiles, list_hub_files
from amnesia.sources.resolve import hub_ref
from amnesia.weights.manifest import GGUF_START, Base, Manifest, same_edits
from amnesia.weights.manifest_file import MAX_MANIFEST, parse_manifest
from amnesia.weights.safetensors import header_of

MAX_SMALL = 2**24
_OR_BOTH = "give its id with --base, or make one adapter of both edits for the original"


@dataclass(frozen=True)
class BaseRepo:
    """The base as its repository shows it.

    `matched` is the entry of the manifest whose files the repository was seen to hold. `files` is None where the Hub
    does not show the repository. `earlier` is the repository's own manifest, where it was looked at and is of the base.
    """

    card: BaseCard
    matched: Base | None
    files: HubFiles | None
    earlier: Manifest | None = None


def find_base(manifest: Manifest, name: str | None, notice: Callable[[str], None]) -> BaseRepo:
    """The repository `name`, or without a name the one that the manifest knows.

    `notice` is told what could not be checked or had. Raises PublishError when no repository is known, or when `name`
    is not the base, and SourceError when `name` cannot be seen.
    """
    # What an adapter acts on is the model of its own base, whatever that was made of.
    on_output = manifest.format in ADAPTERS and manifest.previous is not None
    if name is not None:
        return _named_base([manifest] if on_output else [*manifest.history()], hub_ref(name), on_output, notice)
    entry = manifest.base if on_output and on_hub(manifest.base) else None if on_output else hub_base(manifest)
    if entry is None:
        known = None if on_output else built_in_base(manifest)
        if known is None:
            what, where = ("an edited model", f"push it, and {_OR_BOTH}") if on_output else ("a file", "")
            raise PublishError(
                f"the base {manifest.base.ref.name} is {what} of this machine, which a card cannot name: "
                + (where or "give its repository with --base")
            )
        fields = _metadata(BUILT_IN[known.name].card)
        return BaseRepo(_fields(fields, ModelRef(fields["base_model"])), None, None)
    try:
        origin = list_hub_files(entry.ref)
    except SourceError as error:
        notice(f"{error}; licence and unchanged files cannot be taken from there")
        return BaseRepo(BaseCard(entry.ref), None, None)
    return BaseRepo(_card_of(origin), entry, origin)


def _named_base(steps: Sequence[Manifest], ref: ModelRef, on_output: bool, notice: Callable[[str], None]) -> BaseRepo:
    """The repository that a user named for the base of one of the edits `steps`, the newest first."""
    origin = list_hub_files(ref)
    same = [step for step in steps if _is_base(origin, step.base)]
    held = {id(step): _earlier_in(origin, step) for step in same}
    found = next((step for step in same if same_edits(step.previous, held[id(step)])), None)
    if found is not None:
        return BaseRepo(_card_of(origin), found.base, origin, held[id(found)])
    if on_output:
        earlier = steps[0].previous
        assert earlier is not None, "it is an output's"
        raise PublishError(
            f"{origin} is not the base: it does not hold the edit for {for_terminal(earlier.entity)} that the adapter "
            f"was made on; push that model, and {_OR_BOTH}"
        )
    known = [row.file for step in steps for row in step.base.files if row.file in origin.files]
    if same:
        raise PublishError(
            f"{origin} is not the base: its {MANIFEST_NAME} does not say the edits that the base had; name the right "
            "repository"
        )
    if known:
        raise PublishError(f"{origin} is not the base: its {known[0]} is another file; name the right repository")
    notice(f"{origin} does not hold the file that was edited: that it is the base was not checked")
    return BaseRepo(_card_of(origin), None, origin)


def _earlier_in(origin: HubFiles, step: Manifest) -> Manifest | None:
    """The manifest in a repository, if it is of the files that an edit found there."""
    if MANIFEST_NAME not in origin.files:
        return None
    try:
        found = parse_manifest(origin.content(MANIFEST_NAME, MAX_MANIFEST))
    except VerificationError as error:
        raise PublishError(f"{origin} has a manifest that cannot be read ({error}): name another repository") from error
    if step.format not in OF_GGUF:
        return found if found.format == "safetensors" else None
    names = {row.file for row in (*step.base.files, *step.untouched)}  # Beside a GGUF others may have theirs.
    return found if found.format == "gguf" and names & {row.file for row in found.base.files} else None


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
