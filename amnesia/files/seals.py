"""Hashes that files carry of themselves, by which it shows whether they are still as this package wrote them.

A seal is no signature: it tells what somebody changed by hand from what a repeated command may replace.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amnesia.errors import OutputError, os_errors_as
from amnesia.files.disk import check_replaceable, read_small, replace_file
from amnesia.files.strict_json import json_bytes

_PAGE = b'<meta name="amnesia-sha256" content="%b">'
PAGE_SEAL = (_PAGE % b"").decode()
"""What a page has in its head until it is sealed."""
_PAGE_SEALED = re.compile(re.escape(_PAGE).replace(b"%b", b"([0-9a-f]{64})"))
_REPORT = b'<meta name="amnesia-report-sha256" content="%b">'
_SVG = b"<!-- sha256 %b -->\n"
_SVG_SEALED = re.compile(re.escape(_SVG).replace(b"%b", b"([0-9a-f]{64})") + rb"\Z")
# The last chunk of every PNG, and the one in which the seal is put before it: length, name, content, checksum.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_NAME = b"tEXtsha256\0"
_N_PNG = 4 + len(_PNG_NAME) + 64 + 4


MAX_SEALED = 2**28
"""Bytes of the longest file that is asked for its seal."""


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """A document as JSON, with the sha256 of all of it but this hash."""
    return json_bytes({**document, "sha256": _sha256(json_bytes(document)).decode()})


def is_sealed_json(content: bytes) -> bool:
    """Whether bytes are the JSON of `sealed_json`, as it was written."""
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or document.pop("sha256", None) is None:
            return False
        return sealed_json(document) == content
    except (ValueError, RecursionError):
        return False


def sealed_page(text: str) -> str:
    """A page that has `PAGE_SEAL` in its head, with the sha256 of itself, without this hash, put there."""
    return text.replace(PAGE_SEAL, (_PAGE % _sha256(text.encode())).decode(), 1)


def report_seal(report: bytes) -> str:
    """What a page that shows a `report.json` with these bytes has in its head, so that one proves the other."""
    return (_REPORT % _sha256(report)).decode()


def is_sealed_page(content: bytes, report: bytes | None = None) -> bool:
    """Whether bytes are a page of `sealed_page`, as it was written; with `report`, one that shows this `report.json`.

    A page of which nothing is known but that it shows another report is not it.
    """
    found = _PAGE_SEALED.search(content)
    if found is None or (report is not None and _REPORT % _sha256(report) not in content[: found.start()]):
        return False
    return _sha256(content[: found.start()] + PAGE_SEAL.encode() + content[found.end() :]) == found[1]


def sealed_drawing(content: bytes) -> bytes:
    """An SVG or PNG with the sha256 of all of it but this hash, as a comment or a chunk of text at its end."""
    sha256 = _sha256(content)
    if not content.endswith(_PNG_END):
        return content + _SVG % sha256
    chunk = _PNG_NAME + sha256
    size = (len(sha256) + len(_PNG_NAME) - 4).to_bytes(4, "big")
    return content.removesuffix(_PNG_END) + size + chunk + zlib.crc32(chunk).to_bytes(4, "big") + _PNG_END


def is_sealed_drawing(content: bytes) -> bool:
    """Whether bytes are a drawing of `sealed_drawing`, as it was written."""
    found = _SVG_SEALED.search(content)
    original = content[: found.start()] if found else content[: -_N_PNG - len(_PNG_END)] + _PNG_END
    return len(original) < len(content) and sealed_drawing(original) == content


def check_own(path: Path) -> None:
    """Raises OutputError for a file that would be replaced, and is not as this package has written and sealed it.

    Nothing in this place and an empty file pass. The ending of the name says what it must be.
    """
    with os_errors_as(OutputError, f"{path} cannot be replaced", "move it away"):
        check_replaceable(path)
        content = read_small(path, MAX_SEALED) if path.exists() else b""
    is_sealed = {".json": is_sealed_json, ".html": is_sealed_page}.get(path.suffix, is_sealed_drawing)
    if content and not is_sealed(content):
        raise OutputError(f"{path} is not as amnesia wrote it, and would be replaced: move it away")


def replace_own(path: Path, content: bytes) -> None:
    """Write a sealed file over an older one of this package, whole or not at all; raises what `check_own` raises."""
    check_own(path)
    with os_errors_as(OutputError, f"{path} cannot be written", "free space, or choose another output"):
        replace_file(path, content)
