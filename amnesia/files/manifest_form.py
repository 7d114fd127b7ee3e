"""The form in which manifests of outputs are written, by which one is told into which somebody has written since.

Knows keys and bytes; what a manifest means, `weights.manifest_file` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Names of keys, and after a bar of those that are only there where they say something.
MANIFEST_KEYS = (
    "format_version tool libraries format base edits edits_sha256 tensors untouched undo added replaced left_out "
    "recipe scores previous tensor_type in_place | written"
)
BASE_KEYS = "id revision files"
BASE_FILE_KEYS = "file size sha256 scope"
FILE_KEYS = "file size sha256"
TENSOR_KEYS = "name file axis layer sha256 | expert part first share"
HASH_KEYS = "before after scope"


def manifest_text(document: Mapping[str, Any]) -> str:
    """The text of a manifest: the same one always gives the same. Raises ValueError for a number that is not finite."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def rows_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of the rows of edits of a manifest, in compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_as_written(content: bytes) -> bool:
    """Whether the bytes of a manifest are what this package makes of what they say, with nothing that it does not."""
    try:
        document = json.loads(content)
        if manifest_text(document).encode() != content:
            return False
        while document is not None:
            if not _has_own_keys(document):
                return False
            document = document["previous"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return True


def _has_own_keys(document: Mapping[str, Any]) -> bool:
    """Whether one of the edits of a manifest has its keys and no other; those of its rows of edits a hash proves."""
    base, tensors = document["base"], document["tensors"]
    rows = [
        (document, MANIFEST_KEYS),
        (base, BASE_KEYS),
        *((row, BASE_FILE_KEYS) for row in base["files"]),
        *((row, FILE_KEYS) for row in (*document["untouched"], *document.get("written", ()))),
        *((row, TENSOR_KEYS) for row in tensors),
        *((row["sha256"], HASH_KEYS) for row in tensors),
    ]
    return all(map(_has_keys, *zip(*rows, strict=True))) and rows_hash(document["edits"]) == document["edits_sha256"]


def _has_keys(row: Mapping[str, Any], keys: str) -> bool:
    needed, _, optional = keys.partition("|")
    return {*needed.split()} <= row.keys() <= {*needed.split(), *optional.split()}
