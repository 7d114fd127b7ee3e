"""GGUF files as float32 folders, converted once by transformers and kept in the cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from pathlib import Path

from amnesia.domain import ModelRef
from amnesia.errors import SourceError, library_errors_as, os_errors_as
from amnesia.files.cache import aside, cache_folder, remove_all_abandoned, scratch_folder
from amnesia.files.disk import check_settled, hash_file, read_small
from amnesia.progress import quiet
from amnesia.sources.opening import open_gguf
from amnesia.sources.rotary import rotary_settings
from amnesia.sources.source import ModelSource, Notice
from amnesia.weights.configuration import MAX_CONFIG


def from_gguf(path: Path, notice: Notice = lambda _: None) -> ModelSource:
    """Float32 folder of a `.gguf` file, converted once by transformers and kept in the cache by the file's hash."""
    check_gguf_file(path)
    _check_header(path)
    folder = cache_folder() / "gguf" / hash_file(path)[:32]
    if not folder.exists():
        notice(f"converting {path.name} to float32 weights")
        with made_once(folder) as made:
            convert_gguf(path, made)
    return ModelSource(folder, ModelRef(str(path)), path)


def check_gguf_file(path: Path) -> None:
    """Raises SourceError unless `path` is a file, CheckpointError when an edit in place of it was interrupted."""
    if not path.is_file():
        found = "does not exist" if not path.exists() else "is a folder" if path.is_dir() else "is no regular file"
        raise SourceError(f"{path} {found}: give the path of a .gguf file")
    check_settled(path.parent)


def _check_header(path: Path) -> None:
    """Raise CheckpointError for what cannot be edited, SourceError for what transformers cannot read."""
    from amnesia.weights.gguf.container import read_model
    from amnesia.weights.gguf.layout import gguf_shape

    model = read_model(path)
    gguf_shape(model)
    if len(model.files) > 1:
        raise SourceError(
            f"{path} is one of {len(model.files)} parts, which can be edited, but transformers reads whole files only: "
            "join the parts with `llama-gguf-split --merge`"
        )


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights of a `.gguf` file as float32 safetensors, with config and tokenizer, into `folder`."""
    model, tokenizer = open_gguf(gguf)
    what, remedy = f"{gguf} cannot be converted", "free some space or set AMNESIA_CACHE"
    with quiet(), library_errors_as(SourceError, what, remedy):
        # A path of this machine has no business in a file that people publish.
        model.config.name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _complete_rotary(gguf, folder / "config.json")


def _complete_rotary(gguf: Path, path: Path) -> None:
    """Give a configuration the rotary scaling that transformers did not read, and all of it as transformers 4 had it.

    mlx-lm (0.32.2) looks nowhere else for a Llama, and takes 10,000 without scaling where it finds nothing.
    """
    config = json.loads(read_small(path, MAX_CONFIG))
    parameters = config.get("rope_parameters") or {}
    whole = parameters.get("full_attention", parameters)
    theta = whole.get("rope_theta")
    if theta is None:
        return
    found = rotary_settings(gguf, theta)
    whole |= found
    config["rope_theta"] = found.pop("rope_theta")
    if found and whole is parameters:
        config["rope_scaling"] = found
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def made_once(folder: Path, *, anew: bool = False) -> Generator[Path]:
    """A temporary sibling that becomes `folder` when the block succeeds, and vanishes when it does not.

    With `anew`, one that is there makes room only then, and whoever reads its files goes on.
    """
    with os_errors_as(
        SourceError, f"cache folder {folder.parent} cannot be written", "set AMNESIA_CACHE to another one"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with os_errors_as(SourceError, f"{folder} cannot be made", "free some space or set AMNESIA_CACHE"):
        remove_all_abandoned(folder.parent)
        with scratch_folder(folder) as made:
            yield made
            if anew:
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(aside(made))
            try:
                made.rename(folder)
            except OSError:
                # Another process finished the same work first; its result is as good as this one.
                if not folder.exists():
                    raise
