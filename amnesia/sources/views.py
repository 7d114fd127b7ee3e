"""The folders in which transformers and PEFT find what they may read, and nothing else.

They hold links to files that were checked, and copies of settings without what names code.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amnesia.errors import CheckpointError, SourceError, os_errors_as
from amnesia.files.disk import read_small
from amnesia.files.lfs import POINTER, check_no_pointer
from amnesia.weights.checkpoint import CheckpointSource
from amnesia.weights.configuration import MAX_CONFIG, small_object
from amnesia.weights.safetensors import INDEX_FILE

# Settings that make the libraries fetch, import or choose code, read other weights, or answer in another form. How a
# model is computed is decided here; that changes nothing but the order of additions.
_NAMES_CODE = frozenset(
    ("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation", "experts_implementation",
     "_experts_implementation", "fusion_config", "kernel_config", "distributed_config", "transformers_weights",
     "output_attentions", "return_dict", "torchscript")
)  # fmt: skip
GENERATION = "generation_config.json"
_SETTINGS = ("config.json", "tokenizer_config.json", GENERATION)
TEXTS = (
    *_SETTINGS,
    "tokenizer.json", "tokenizer.*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "*.model", "*.tiktoken", "*.jinja",
)  # fmt: skip


@contextlib.contextmanager
def shown(checkpoint: CheckpointSource) -> Generator[Path]:
    """A temporary folder in which transformers find a model and its tokenizer, and nothing else.

    Raises CheckpointError for settings that are not JSON objects, and for pointers of Git LFS.
    """
    weights = {name: checkpoint.folder / name for name in checkpoint.weights.headers}
    names = (*checkpoint.files, *checkpoint.left_out)
    if INDEX_FILE in names:
        weights[INDEX_FILE] = checkpoint.folder / INDEX_FILE
    with folder_of(_texts(checkpoint.folder, names) | weights) as view:
        yield view


@contextlib.contextmanager
def shown_texts(folder: Path) -> Generator[Path]:
    """The same of a folder that may have no weights, without them; raises the same."""
    names = [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *folder.glob("*/*.jinja"))]
    with folder_of(_texts(folder, names)) as view:
        yield view


def _texts(folder: Path, names: Iterable[str]) -> dict[str, Path | bytes]:
    """What is read of a model beside its weights; templates may lie in a folder of their own."""
    found = {name: folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in TEXTS)}
    return {
        name: settings_of(str(path), small_content(path)) if name in _SETTINGS else path for name, path in found.items()
    }


@contextlib.contextmanager
def folder_of(files: Mapping[str, Path | bytes]) -> Generator[Path]:
    """A temporary folder with links to files, and with contents, under the given names; raises SourceError."""
    with contextlib.ExitStack() as stack:
        with os_errors_as(SourceError, "no temporary folder can be made", "free space, or set TMPDIR to another disk"):
            view = Path(stack.enter_context(TemporaryDirectory(prefix="amnesia-")))
            for name, content in files.items():
                target = view / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    with target.open("xb") as file:
                        file.write(content)
                else:
                    with content.open("rb") as file:
                        check_no_pointer(str(content), file.read(len(POINTER)))
                    target.symlink_to(content.absolute())
        yield view


def settings_of(where: str, content: bytes) -> bytes:
    """The JSON object in a file, for the libraries to read."""
    settings = _object_of(where, content)
    if str(settings.get("tokenizer_class")).startswith("MistralCommon"):
        del settings["tokenizer_class"]  # It gives no character offsets; tokenizer.json is read without it.
    return json.dumps(settings).encode()


def small_content(path: Path) -> bytes:
    """The bytes of a file that is read whole, beyond `MAX_CONFIG` no more than one; raises CheckpointError."""
    with os_errors_as(CheckpointError, f"{path} cannot be read", "fetch it again"):
        return read_small(path, MAX_CONFIG)


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without what names code. Raises CheckpointError."""
    return _object_of(str(path), small_content(path))


def _object_of(where: str, content: bytes) -> dict[str, Any]:
    json_file, settings = small_object(where, content, "fetch it again", "the file")
    try:
        return _without_code(settings)
    except RecursionError as error:
        raise json_file.fail("is nested too deeply") from error


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in _NAMES_CODE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value
