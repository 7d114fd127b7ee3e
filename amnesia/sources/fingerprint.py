"""By what a model on this disk is known again, wherever its folder lies, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from amnesia.errors import SourceError, os_errors_as
from amnesia.files.disk import hash_file
from amnesia.files.staging import MAX_HASHED
from amnesia.sources.source import ModelSource
from amnesia.weights.gguf.container import read_model

_N_SAMPLES = 64
_SAMPLE = 4096  # Bytes.


def fingerprint(source: ModelSource) -> str:
    """sha256 (hexadecimal) of the sizes of a model's weight files and of bytes spread evenly over each.

    Training changes nearly all bytes, so that it shows; an edit of a few columns may not. Raises SourceError for files
    that cannot be read, else as `ModelSource.checkpoint`.
    """
    if source.gguf is not None:
        paths = [source.gguf]
    else:
        paths = [source.folder / name for name in sorted(source.checkpoint.weights.headers)]
    found = hashlib.sha256()
    for path in paths:
        with os_errors_as(SourceError, f"{path} cannot be read", "check its permissions"):
            _add(found, path)
    return found.hexdigest()


def fingerprints(source: ModelSource) -> dict[str, str]:
    """sha256 (hexadecimal) of each file that is read of a model, by name: of all of it up to `MAX_HASHED` bytes, else
    of its size and of bytes spread evenly over it.

    Raises as `fingerprint`, and CheckpointError for a damaged GGUF.
    """
    if source.gguf is not None:
        paths = {file.path.name: file.path for file in read_model(source.gguf).files}
    else:
        paths = {name: source.folder / name for name in source.checkpoint.files}
    found = {}
    for name, path in sorted(paths.items()):
        with os_errors_as(SourceError, f"{path} cannot be read", "check its permissions"):
            if path.stat().st_size <= MAX_HASHED:
                found[name] = hash_file(path)
            else:
                _add(digest := hashlib.sha256(), path)
                found[name] = digest.hexdigest()
    return found


def _add(found: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    found.update(f"{size};".encode())
    with path.open("rb") as file:
        for start in sorted({(size - _SAMPLE) * place // (_N_SAMPLES - 1) for place in range(_N_SAMPLES)}):
            file.seek(max(0, start))
            found.update(file.read(_SAMPLE))
