"""Paths of this machine in the configurations of a model, which whoever saved it may have left there.

What is published without them differs in these files from the folder that was edited, and so proves itself by its own
manifest, but not against that folder.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_MODEL = re.compile(r".*name_or_path")
_FILE = re.compile(r".*(path|file|filename|dir|directory|folder)s?")


def without_local_paths(content: bytes, model: str) -> bytes:
    """A configuration in which the settings that name a model name `model`, and those that name a file only the file,
    where they held an absolute path; the same bytes where none did, or the content is no JSON."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    shown = _shown(document, model)
    # Escaped, because a text may hold half a pair of surrogates, which UTF-8 does not.
    return content if shown == document else json.dumps(shown, indent=2).encode() + b"\n"


def _shown(value: Any, model: str) -> Any:
    if isinstance(value, list):
        return [_shown(item, model) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _setting(key, item, model) for key, item in value.items()}


def _setting(key: str, value: Any, model: str) -> Any:
    if isinstance(value, list):
        return [_setting(key, item, model) for item in value]
    if not isinstance(value, str) or not (named := _MODEL.fullmatch(key) or _FILE.fullmatch(key)):
        return _shown(value, model)
    kind = PureWindowsPath if re.match(r"[A-Za-z]:[\\/]|\\\\", value) else PurePosixPath
    if not (kind(value).is_absolute() or value.startswith("~")):
        return value
    return model if named.re is _MODEL else kind(value).name
