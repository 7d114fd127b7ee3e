"""The result files of commands: what is written into them, and which older ones may be written over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from amnesia.errors import OutputError
from amnesia.files.seals import is_sealed_json, sealed_json

Command = Literal["localize -o", "extract -o", "run --front"]


def result_bytes(command: Command, document: Mapping[str, Any]) -> bytes:
    """A result as JSON, with the command that it is of and the sha256 of all of it but this hash."""
    return sealed_json({"command": command, **document})


def replacing(command: Command) -> Callable[[Path, bytes], None]:
    """A check of the content of a file: it raises OutputError unless that is a result of the command, as written."""
    return partial(_check, command)


def _check(command: Command, path: Path, content: bytes) -> None:
    if not is_sealed_json(content) or json.loads(content).get("command") != command:
        raise OutputError(
            f"{path} exists, and is no result of `amnesia {command}` as it was written: choose another file, or "
            "remove it"
        )
